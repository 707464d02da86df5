"""What the project adds to the bare work, as ratios measured side by side in one run.

    python benchmarks/overhead.py [--samples 1152] [--repeats 3]

rollout: stage `rollout` against the transformer forwards and the decoder calls it needs.
training: one generator microbatch of stage `generator_update` against its bare forwards and backward.
commit: writing one iteration's records against computing them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch

from tdm_r1.artifacts.records import Base, GeneratorState, PromptSet, Rewards, Rollout, SurrogateState, role_tensors
from tdm_r1.artifacts.repository import commit
from tdm_r1.artifacts.store import open_store
from tdm_r1.models.adapters import Adapter
from tdm_r1.models.prompts import PromptTable, PromptTexts
from tdm_r1.models.sampler import velocity_at
from tdm_r1.presets import resolve
from tdm_r1.rng import Keys
from tdm_r1.runtime.execute import execute
from tdm_r1.runtime.layout import Task
from tdm_r1.runtime.run import Run, create_run
from tdm_r1.stages.generator_update import generator_update
from tdm_r1.stages.rollout import drawn_prompts, rollout


def seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def ratio(ours: Callable[[], Any], bare: Callable[[], Any], repeats: int) -> dict[str, float]:
    """Median of interleaved repeats, after one warm-up of each."""
    ours(), bare()
    pairs = [(seconds(ours), seconds(bare)) for _ in range(repeats)]
    mine, floor = (statistics.median(column) for column in zip(*pairs, strict=True))
    return {"seconds": round(mine, 3), "bare_seconds": round(floor, 3), "ratio": round(mine / floor, 3)}


def bench_rollout(run: Run, samples: int, repeats: int) -> dict[str, float]:
    prompts, _ = run.load(Task("encode_prompts"), PromptSet)
    base, _ = run.load(Task("distill_base"), Base)
    role, backbone, config = role_tensors(base.state, "generator"), run.backbone, run.config
    weights = Adapter(backbone.base(), config.model.adapter).apply(role)
    table = PromptTable(prompts)
    condition = table.condition(table.draw(range(samples), Keys(0, 1)))
    x = torch.randn(samples, *backbone.latent_shape)

    @torch.no_grad()
    def bare() -> None:
        for start in range(0, samples, config.rollout.microbatch):
            rows = slice(start, start + config.rollout.microbatch)
            for _ in range(config.sampler.steps):
                velocity_at(backbone, x[rows], 0.5, condition.take(rows), weights)
        backbone.decode(x)

    def ours() -> None:
        keys = Keys(0, 1)
        drawn = drawn_prompts(PromptTexts(prompts.prompts), shard=0, config=config, keys=keys)
        rollout(prompts, drawn, role, shard=0, backbone=backbone, config=config, keys=keys)

    return ratio(ours, bare, repeats)


def bench_training(run: Run, repeats: int) -> dict[str, float]:
    prompts, _ = run.load(Task("encode_prompts"), PromptSet)
    base, _ = run.load(Task("distill_base"), Base)
    shard, _ = run.load(Task("rollout", 1), Rollout)
    surrogate, _ = run.load(Task("surrogate_update", 1), SurrogateState)
    backbone, config = run.backbone, run.config
    adapter, section = Adapter(backbone.base(), config.model.adapter), config.generator
    size = min(section.minibatch, shard.count)
    table = PromptTable(prompts)
    condition = table.condition(shard.index["prompt_id"].to_pylist()[:size])
    x = shard.states[:size, 1]
    params = {k: v.clone().requires_grad_(True) for k, v in role_tensors(base.state, "generator").items()}
    fixed = {k: v.detach() for k, v in adapter.apply(params).items()}

    def forward(weights: dict[str, torch.Tensor]) -> torch.Tensor:
        parts = zip(x.split(section.microbatch), range(0, size, section.microbatch), strict=True)
        rows = [
            velocity_at(backbone, part, 0.5, condition.take(slice(start, start + len(part))), weights)
            for part, start in parts
        ]
        return torch.cat(rows)

    def bare() -> None:
        for _ in range(section.steps_per_trajectory):
            forward(adapter.apply(params)).square().mean().backward()  # fake score
            forward(adapter.apply(params)).square().mean().backward()  # generator
            with torch.no_grad():
                for _ in range(7):  # teacher for the fake; teacher c and ∅, fake, surrogate c and ∅, base
                    forward(fixed)

    def ours() -> None:
        generator_update(
            prompts, [shard], surrogate, base, first=True, backbone=backbone, config=config, keys=Keys(0, 1)
        )

    return ratio(ours, bare, repeats)


def bench_commit(run: Run) -> dict[str, float]:
    """Seconds of committing one iteration's records, beside the seconds that their manifests say they took."""
    kinds: list[tuple[Task, Any]] = [
        (Task("rollout", 1), Rollout),
        (Task("reward_scoring", 1), Rewards),
        (Task("surrogate_update", 1), SurrogateState),
        (Task("generator_update", 1), GeneratorState),
    ]
    computed = written = 0.0
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(folder)
        for task, kind in kinds:
            record, manifest = run.load(task, kind)
            computed += manifest.provenance.seconds
            written += seconds(
                lambda record=record, manifest=manifest, task=task: commit(
                    store,
                    task.location,
                    record,
                    parents=manifest.parents,
                    config_digest=manifest.config_digest,
                    provenance=manifest.provenance,
                )
            )
    return {
        "commit_seconds": round(written, 3),
        "stage_seconds": round(computed, 3),
        "share": round(written / computed, 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1152)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    groups = arguments.samples // 16
    with tempfile.TemporaryDirectory() as root:
        overrides = {
            "rollout.groups": groups,
            "rollout.group_size": 16,
            "rollout.shards": 1,
            "distill.steps": 1,
            "iterations": 1,
            "generator.start": 1,
            "generator.updates": 1,
            "generator.fake_updates": 1,
        }
        run = create_run(root, resolve("shapes_cpu", overrides))
        for task in (Task("encode_prompts"), Task("distill_base")):
            execute(run, task)
        report = {"rollout": bench_rollout(run, arguments.samples, arguments.repeats)}
        for stage in ("rollout", "reward_scoring", "surrogate_update", "generator_update"):
            execute(run, Task(stage, 1))
        report["training"] = bench_training(run, arguments.repeats)
        report["commit"] = bench_commit(run)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
