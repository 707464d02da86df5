"""A lineage as OpenLineage events: one START and one COMPLETE per stage execution, records as datasets."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final
from uuid import NAMESPACE_URL, uuid5

from tdm_r1.errors import ConfigError
from tdm_r1.runtime.layout import ONCE
from tdm_r1.runtime.lineage import Lineage, Node

if TYPE_CHECKING:
    from openlineage.client.event_v2 import InputDataset, OutputDataset, RunEvent

NAMESPACE: Final = "tdm-r1"


def write_events(lineage: Lineage, path: Path) -> int:
    """Write the events as NDJSON, in the order in which the records were needed; return how many.

    Raises:
        ConfigError: when the client library is not installed.
    """
    try:
        from openlineage.client.serde import Serde
    except ImportError as error:
        raise ConfigError("the OpenLineage client is not installed here", hint="pip install 'tdm-r1[audit]'") from error
    lines = [Serde.to_json(event) for node in lineage.nodes for event in events_of(lineage, node)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return len(lines)


def events_of(lineage: Lineage, node: Node) -> tuple[RunEvent, RunEvent]:
    """START and COMPLETE of the execution that committed `node`, with the same run ID whenever it is asked."""
    from openlineage.client.event_v2 import Job, Run, RunEvent, RunState
    from openlineage.client.generated.job_type_job import JobTypeJobFacet
    from openlineage.client.generated.processing_engine_run import ProcessingEngineRunFacet

    origin = node.manifest.provenance
    producer = f"urn:tdm-r1:{origin.code_version}"
    output = _output(lineage, node, producer)
    run_id = uuid5(NAMESPACE_URL, f"{output.namespace}|{output.name}|{node.digest}|{origin.started.isoformat()}")
    engine = ProcessingEngineRunFacet(version=origin.code_version, name=NAMESPACE, producer=producer)
    kind = JobTypeJobFacet(processingType="BATCH", integration="TDM_R1", jobType="STAGE", producer=producer)
    common: dict[str, Any] = {
        "run": Run(str(run_id), facets={"processing_engine": engine}),
        "job": Job(NAMESPACE, node.manifest.kind, facets={"jobType": kind}),
        "inputs": _inputs(lineage, node, producer),
        "producer": producer,
    }
    start = RunEvent(eventType=RunState.START, eventTime=origin.started.isoformat(), **common)
    complete = RunEvent(eventType=RunState.COMPLETE, eventTime=origin.finished.isoformat(), outputs=[output], **common)
    return start, complete


def dataset_name(root: str, location: str) -> tuple[str, str]:
    """Namespace and name of a record by OpenLineage's naming rules: `s3://bucket` and key, or `file` and path."""
    scheme, separator, rest = root.partition("://")
    if separator:
        bucket, _, prefix = rest.partition("/")
        return f"{scheme}://{bucket}", (PurePosixPath(prefix) / location).as_posix()
    return "file", (Path(root).absolute() / location).as_posix()


def _output(lineage: Lineage, node: Node, producer: str) -> OutputDataset:
    from openlineage.client.event_v2 import OutputDataset
    from openlineage.client.generated.dataset_version_dataset import DatasetVersionDatasetFacet
    from openlineage.client.generated.output_statistics_output_dataset import OutputStatisticsOutputDatasetFacet

    statistics = OutputStatisticsOutputDatasetFacet(
        rowCount=node.rows, size=node.size, fileCount=len(node.manifest.files), producer=producer
    )
    return OutputDataset(
        *dataset_name(lineage.root, node.location),
        facets={"version": DatasetVersionDatasetFacet(datasetVersion=node.digest, producer=producer)},
        outputFacets={"outputStatistics": statistics},
    )


def _inputs(lineage: Lineage, node: Node, producer: str) -> list[InputDataset]:
    """The parents with the digests that the stage saw; the stages that run once also read the base's weights."""
    from openlineage.client.event_v2 import InputDataset
    from openlineage.client.generated.dataset_version_dataset import DatasetVersionDatasetFacet

    named = [(*dataset_name(lineage.root, parent), digest) for parent, digest in sorted(node.manifest.parents.items())]
    if node.manifest.kind in ONCE and lineage.weights.digest is not None:
        named.append((NAMESPACE, f"weights/{lineage.weights.source}", lineage.weights.digest))
    return [
        InputDataset(
            namespace,
            name,
            facets={"version": DatasetVersionDatasetFacet(datasetVersion=digest, producer=producer)},
        )
        for namespace, name, digest in named
    ]
