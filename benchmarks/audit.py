"""What an audit costs beside plain hashing of the same files, as ratios measured side by side in one run.

    python benchmarks/audit.py [--root RUN] [--iterations 3] [--threads 2] [--repeats 5] [--s3]

fast: `tdm-r1 audit --fast` against SHA-256 of the same files by the same number of threads; a ratio of throughputs.
full: the same for an audit that also reads every record piece by piece and checks it, as without options.
pixels: the same for `--pixels`, which decompresses every picture.
processor_ratio is that of processor seconds, which other programs on a busy machine change less. Both are medians
over pairs of measurements that follow each other; processor_ratio_of_minima is that of the least disturbed of each.
Without --root, a run of synthetic records (about 100 MB per iteration) is committed to a temporary directory.
With --s3 the run is put on a SeaweedFS of the extra `dev`, and plain hashing fetches each object first.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from tdm_r1.artifacts.codec import Record
from tdm_r1.artifacts.manifest import Provenance, sha256_of
from tdm_r1.artifacts.records import Base, Evaluation, GeneratorState, PromptSet, Rewards, Rollout, SurrogateState
from tdm_r1.artifacts.repository import commit
from tdm_r1.artifacts.store import Store, open_store
from tdm_r1.presets import resolve
from tdm_r1.runtime.audit import audit
from tdm_r1.runtime.layout import all_tasks, parents_of
from tdm_r1.runtime.run import create_run
from tests.s3 import seaweedfs

SAMPLES, SIDE = 1152, 64
"""Samples per shard and pixels per side: one iteration of the preset `shapes_cpu`, in each of two shards."""
WEIGHTS = 1_000_000
"""Per role."""


def training(kind: type[SurrogateState] | type[GeneratorState] | type[Base], role: str) -> Record:
    return kind(
        state={f"{role}/w": torch.randn(WEIGHTS)},
        optimizer={f"{role}/w.exp_avg": torch.randn(WEIGHTS), f"{role}/w.exp_avg_sq": torch.rand(WEIGHTS)},
        metrics=kind.table("metrics", step=[0], name=["loss"], value=[0.5]),
    )


def evaluation() -> Record:
    cells = {"name": ["tdm"], "nfe": [4], "tag": ["overall"], "count": [1], "value": [0.5], "low": [0.4], "high": [0.6]}
    samples = dict.fromkeys(("name", "prompt_id", "text", "tag"), ["x"] * 300)
    verdicts: dict[str, Any] = {"correct": [True] * 300, "strict": [True] * 300, "score": [1.0] * 300}
    return Evaluation(
        metrics=Evaluation.table("metrics", **cells),
        samples=Evaluation.table("samples", **samples, **verdicts),
        image=torch.randint(0, 256, (300, SIDE, SIDE, 3), dtype=torch.uint8),
        report="<html></html>",
    )


def prompt_set() -> Record:
    row = {"prompt_id": ["p0"], "text": ["a"], "tag": ["t"], "split": ["train"], "metadata": ["{}"]}
    embeddings = {"sequence": torch.randn(500, 8, 64), "pooled": torch.randn(500, 64)}
    return PromptSet(prompts=PromptSet.table("prompts", **row, embedding=[1]), embeddings=embeddings)


def names() -> dict[str, Any]:
    return {"sample_id": [f"s{n}" for n in range(SAMPLES)], "prompt_id": ["p0"] * SAMPLES, "group": [0] * SAMPLES}


def rollout() -> Record:
    images = torch.randint(0, 256, (SAMPLES, SIDE, SIDE, 3), dtype=torch.uint8)
    return Rollout(index=Rollout.table("index", **names()), images=images, states=torch.randn(SAMPLES, 5, 4, 16, 16))


def rewards() -> Record:
    verdict: dict[str, Any] = {"scorer": "shapes", "value": 1.0, "parts": [], "detail": None, "error": None}
    who: dict[str, Any] = {"name": "shapes", "use": "shapes", "version": "1", "revision": "", "options": "{}"}
    who |= {"higher_is_better": True, "deterministic": True, "low": 0.0, "high": 1.0, "device": "cpu", "licence": "MIT"}
    return Rewards(
        scores=Rewards.table("scores", **names(), **{name: [v] * SAMPLES for name, v in verdict.items()}),
        scorers=Rewards.table("scorers", **{name: [value] for name, value in who.items()}),
    )


SYNTHETIC: dict[str, Callable[[], Record]] = {
    "encode_prompts": prompt_set,
    "rollout": rollout,
    "reward_scoring": rewards,
    "surrogate_update": lambda: training(SurrogateState, "surrogate"),
    "generator_update": lambda: training(GeneratorState, "generator"),
    "distill_base": lambda: training(Base, "generator"),
    "evaluation": evaluation,
}
"""A valid record of each stage, of content that does not compress."""


def build(root: str, iterations: int) -> None:
    """Commit every record of a run of this length."""
    overrides = {"iterations": iterations, "rollout.groups": 16, "rollout.shards": 2, "evaluation.every": 1}
    run = create_run(root, resolve("plane", overrides))
    now = datetime.now(UTC)
    provenance = Provenance(
        code_version="0", libraries={}, device="cpu", threads=1, started=now, finished=now, seconds=1.0, seed_root=0
    )
    for task in all_tasks(run.config):
        parents = {parent.location: run.manifest(parent).digest for parent in parents_of(task, run.config)}
        given: dict[str, Any] = {"config_digest": run.config_digest, "provenance": provenance}
        commit(run.store, task.location, SYNTHETIC[task.stage](), parents=parents, **given)


def plain(store: Store, keys: Sequence[str], threads: int) -> None:
    """Fetch the objects, hash them and do nothing else."""

    def one(key: str) -> str:
        with tempfile.TemporaryDirectory() as scratch:
            store.fetch(key, Path(scratch, "file"))
            return sha256_of(Path(scratch, "file"))

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(one, keys))


def seconds(call: Callable[[], Any]) -> tuple[float, float]:
    """By the wall clock, and of the processor."""
    start, busy = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - start, time.process_time() - busy


def measure(root: str, *, threads: int, repeats: int, **how: bool) -> dict[str, float]:
    """Medians over interleaved repeats, after one warm-up of each; the audit must be clean."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    report, store = audit(root, threads=threads, **how), open_store(root)
    assert report.clean, report.faults
    keys = store.list("")
    plain(store, keys, threads)
    pairs = [
        (seconds(lambda: audit(root, threads=threads, **how)), seconds(lambda: plain(store, keys, threads)))
        for _ in range(repeats)
    ]
    ours, bare = (statistics.median(both[0] for both in column) for column in zip(*pairs, strict=True))
    least, bare_least = (min(both[1] for both in column) for column in zip(*pairs, strict=True))
    return {
        "MB": round(report.bytes / 1e6, 1),
        "files": len(keys),
        "MB_per_second": round(report.bytes / 1e6 / ours, 1),
        "plain_MB_per_second": round(report.bytes / 1e6 / bare, 1),
        "ratio": round(statistics.median(bare[0] / ours[0] for ours, bare in pairs), 3),
        "processor_ratio": round(statistics.median(bare[1] / ours[1] for ours, bare in pairs), 3),
        "processor_ratio_of_minima": round(bare_least / least, 3),
        "MB_of_memory_added": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024,
    }


def copied(root: str, target: str) -> str:
    """Put a run of a local directory into another store, manifests last."""
    source, store = open_store(root), open_store(target)
    for key in sorted(source.list(""), key=lambda key: key.endswith("manifest.json")):
        store.put_file_if_absent(Path(root, key), key)
    return target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", help="an existing run; it is only read")
    parser.add_argument("--iterations", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--s3", action="store_true")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        root = arguments.root or str(scratch / "run")
        if arguments.root is None:
            build(root, arguments.iterations)
        if arguments.s3:
            (scratch / "server").mkdir()
            server = stack.enter_context(seaweedfs(scratch / "server"))
            os.environ.update(server.environment)
            root = copied(root, server.fresh_root())
        options = {"threads": arguments.threads, "repeats": arguments.repeats}
        report: dict[str, Any] = {"threads": arguments.threads}
        for name, how in {"fast": {"load": False}, "full": {}, "pixels": {"pixels": True}}.items():
            report[name] = measure(root, **options, **how)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
