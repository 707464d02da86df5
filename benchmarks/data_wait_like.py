"""How long a training stage of a large preset waits for its paths: `python benchmarks/data_wait_like.py ROOT`.

Writes one shard of random paths and images of the preset's shapes to ROOT (a folder or an s3:// prefix), reads it
again as a stage does (fetch, hash, parse), and sets the seconds for all shards against what `tdm-r1 plan --memory`
computes for one optimizer step. A folder that was just written lies in the page cache: its disk is not measured.
"""

from __future__ import annotations

import argparse
import time
import uuid
from datetime import UTC, datetime

import torch

from tdm_r1.artifacts.manifest import Provenance
from tdm_r1.artifacts.records import Rollout
from tdm_r1.artifacts.repository import commit, load_paths
from tdm_r1.artifacts.store import open_store
from tdm_r1.config import RunConfig
from tdm_r1.models.shapes import shapes_of
from tdm_r1.plan.memory import GPUS, USED, memory_plan
from tdm_r1.presets import resolve

STAGES = ("surrogate_update", "generator_update")


def shard_of(config: RunConfig) -> Rollout:
    """Random numbers: they do not compress, as paths do not."""
    shapes = shapes_of(config.model)
    count = config.rollout.groups * config.rollout.group_size // config.rollout.shards
    ids, groups = range(count), [number // config.rollout.group_size for number in range(count)]
    return Rollout(
        index=Rollout.table(
            "index", sample_id=[f"s{n}" for n in ids], prompt_id=[f"p{group}" for group in groups], group=groups
        ),
        images=torch.randint(0, 256, (count, *shapes.image), dtype=torch.uint8),
        states=torch.randn(count, config.sampler.steps + 1, *shapes.latent),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root")
    parser.add_argument("--preset", default="sd35_medium_geneval")
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    config, store, now = resolve(given.preset, {}), open_store(given.root), datetime.now(UTC)
    provenance = Provenance(
        code_version="benchmark", libraries={}, device="cpu", threads=1, started=now, finished=now, seconds=0.0,
        seed_root=0,
    )  # fmt: skip
    where = f"benchmark-{uuid.uuid4().hex[:8]}/rollout"
    manifest = commit(store, where, shard_of(config), parents={}, config_digest="0" * 64, provenance=provenance)
    size = sum(entry.size for entry in manifest.files.values()) * config.rollout.shards
    readings = []
    for _ in range(given.repeats):
        clock, processor = time.perf_counter(), time.process_time()
        load_paths(store, where)
        readings.append((time.perf_counter() - clock, time.process_time() - processor))
    wall, spent = (config.rollout.shards * sorted(column)[given.repeats // 2] for column in zip(*readings, strict=True))
    shards = config.rollout.shards
    print(f"{given.preset}: {size / 1e9:.2f} GB in {shards} shards: {wall:.1f} s, {spent:.1f} of the processor")
    for stage in (one for one in memory_plan(config).stages if one.stage in STAGES):
        for name, gpu in GPUS.items():
            step = stage.flops / (gpu.tflops * 1e12 * USED)
            shares = f"{wall / step:.1%}, {spent / step:.1%} by processor"
            print(f"{stage.stage} on {name}, {step:.0f} s computed: {shares}")


if __name__ == "__main__":
    main()
