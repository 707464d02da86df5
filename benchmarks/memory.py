"""Memory and time of commands on one table that does not fit the memory they use, on a local disk and on S3.

    python benchmarks/memory.py [--megabytes 1100] [--s3]

A run with one rollout of that size is written to a temporary folder, row group by row group. Each command then
runs in a process of its own; `MB_added` is its peak of resident memory above what it had before it opened the run.
The peak is the kernel's own (`VmHWM`), reset at that moment: a process inherits the one of `getrusage` from its
parent, which hides whatever stays below it. Linux only.
`load` is what a stage does, which keeps the whole table: it shows that the measure sees memory.
With --s3 the same run is put on a SeaweedFS of the extra `dev`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from tdm_r1.artifacts.codec import row_specs
from tdm_r1.artifacts.manifest import FileEntry, Manifest, Provenance, sha256_of
from tdm_r1.artifacts.records import Rollout
from tdm_r1.artifacts.rows import rows_column
from tdm_r1.artifacts.store import open_store
from tdm_r1.presets import resolve
from tdm_r1.runtime.run import create_run
from tests.s3 import seaweedfs

LOCATION = "iter-00001/rollout/shard-0000"
ROWS = 128
"""Per row group: 128 · (3 · 128² + 4 · 5 · 4 · 16²) bytes are 9 MB."""

PROBE: Final = """
import json, sys, time
import duckdb, torch
from tdm_r1.artifacts.records import Rollout
from tdm_r1.artifacts.repository import load
from tdm_r1.runtime.audit import audit
from tdm_r1.runtime.query import query
from tdm_r1.runtime.run import open_run
import tdm_r1.artifacts.s3_client, boto3
root, what = sys.argv[1:]
def kilobytes(name):
    [line] = [line for line in open("/proc/self/status") if line.startswith(name + ":")]
    return int(line.split()[1])
open("/proc/self/clear_refs", "w").write("5")
before, start = kilobytes("VmRSS"), time.perf_counter()
if what == "audit":
    [record] = [r for r in audit(root, threads=1).records if r.task.stage == "rollout"]
    assert record.rows and all(fault.kind == "lineage" for fault in record.faults), record.faults
elif what == "load":
    record, _ = load(open_run(root).store, "iter-00001/rollout/shard-0000", Rollout)
else:
    query(open_run(root), 'SELECT count(*), max("group") FROM rollouts')
print(json.dumps({"MB_added": (kilobytes("VmHWM") - before) // 1024, "seconds": round(time.perf_counter() - start, 1)}))
"""


def write_table(path: Path, megabytes: int) -> int:
    """Write a rollout of about this size and return its number of rows; one row group is in memory."""
    specs, rows, writer = row_specs(Rollout, "N"), 0, None
    images = torch.randint(0, 256, (ROWS, 128, 128, 3), dtype=torch.uint8)
    tensors = {"images": images, "states": torch.randn(ROWS, 5, 4, 16, 16)}
    while writer is None or path.stat().st_size < megabytes * 1_000_000:
        names: dict[str, list[Any]] = {
            "sample_id": [f"s{rows + n}" for n in range(ROWS)],
            "prompt_id": ["p0"] * ROWS,
            "group": [0] * ROWS,
        }
        table = Rollout.table("index", **names)
        for name, tensor in tensors.items():
            field, column = rows_column(name, specs[name], tensor, lists=False)
            table = table.append_column(field, pa.chunked_array([column]))
        writer = writer or pq.ParquetWriter(path, table.schema, compression={"states": "none", "images": "zstd"})
        writer.write_table(table)
        rows += ROWS
    writer.close()
    return rows


def build(root: str, table: Path, rows: int) -> None:
    """Commit the table as the only record of a run."""
    run = create_run(root, resolve("plane", {"iterations": 1}))
    now = datetime.now(UTC)
    entry = FileEntry(sha256=sha256_of(table), size=table.stat().st_size, rows=rows, stored_as=table.name)
    provenance = Provenance(
        code_version="0", libraries={}, device="cpu", threads=1, started=now, finished=now, seconds=1.0, seed_root=0
    )
    manifest = Manifest(
        kind="rollout",
        version=Rollout.version,
        files={table.name: entry},
        parents={},
        config_digest=run.config_digest,
        provenance=provenance,
    )
    store = open_store(root)
    store.put_file_if_absent(table, f"{LOCATION}/{table.name}")
    store.write_bytes_if_absent(f"{LOCATION}/manifest.json", manifest.to_bytes())


def probe(root: str, environment: Mapping[str, str]) -> dict[str, object]:
    """What each command added to the memory of its process."""
    found = {}
    for what in ("audit", "query", "load"):
        command = [sys.executable, "-c", PROBE, root, what]
        done = subprocess.run(command, env={**os.environ, **environment}, check=True, capture_output=True, text=True)
        found[what] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=1100)
    parser.add_argument("--s3", action="store_true")
    arguments = parser.parse_args()
    report: dict[str, object] = {}
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        table = scratch / "part.parquet"
        rows = write_table(table, arguments.megabytes)
        report["MB"], report["rows"] = table.stat().st_size // 1_000_000, rows
        build(str(scratch / "run"), table, rows)
        report["local"] = probe(str(scratch / "run"), {})
        if arguments.s3:
            (scratch / "server").mkdir()
            server = stack.enter_context(seaweedfs(scratch / "server"))
            os.environ.update(server.environment)
            root = server.fresh_root()
            build(root, table, rows)
            report["s3"] = probe(root, server.environment)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
