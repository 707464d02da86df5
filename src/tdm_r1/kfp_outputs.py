"""What KFP's UI shows of a stage, written from the executor input that KFP puts in the place of `{{$}}`.

Nothing here needs KFP: the executor input is JSON with the paths to write to.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tdm_r1.errors import ConfigError

MOUNTS = {"s3://": "/s3/", "gs://": "/gcs/", "minio://": "/minio/"}
"""Where the launcher mounts an artifact's URI, by scheme."""


def parse_executor_input(text: str) -> dict[str, Any]:
    """Parse the JSON.

    Raises:
        ConfigError: when it is none.
    """
    try:
        parsed = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"--executor-input is not JSON: {error}", hint="KFP passes it as {{$}}") from error
    if not isinstance(parsed, dict):
        raise ConfigError(
            f"--executor-input is a {type(parsed).__name__}, expected an object", hint="KFP passes it as {{$}}"
        )
    return parsed


def local_path(uri: str) -> Path:
    """The file behind an artifact's URI in this container."""
    for scheme, mount in MOUNTS.items():
        if uri.startswith(scheme):
            return Path(mount, uri.removeprefix(scheme))
    return Path(uri)


def write_outputs(
    executor_input: Mapping[str, Any],
    *,
    parameters: Mapping[str, str],
    metrics: Mapping[str, float],
    html: str | None,
    record: tuple[bytes, Mapping[str, Any]] | None = None,
) -> None:
    """Write output parameters as bare text, the HTML artifact, the pointer to the record, and the metadata.

    Args:
        record: content of the artifact `record`, which is the manifest, and its metadata.
    """
    outputs = executor_input.get("outputs", {})
    for name, target in outputs.get("parameters", {}).items():
        if name in parameters:
            _write(Path(target["outputFile"]), parameters[name])
    artifacts = {name: found["artifacts"][0] for name, found in outputs.get("artifacts", {}).items()}
    if html is not None and "report" in artifacts:
        _write(local_path(artifacts["report"]["uri"]), html)
    metadata: dict[str, Mapping[str, Any]] = {"metrics": metrics}
    if record is not None and "record" in artifacts:
        _write(local_path(artifacts["record"]["uri"]), record[0].decode())
        metadata["record"] = record[1]
    shown = {
        name: {"artifacts": [{key: artifacts[name][key] for key in ("name", "uri")} | {"metadata": dict(values)}]}
        for name, values in metadata.items()
        if name in artifacts
    }
    if shown and "outputFile" in outputs:
        _write(Path(outputs["outputFile"]), json.dumps({"artifacts": shown}))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
