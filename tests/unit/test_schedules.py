"""Claims about iterations of several optimizer steps: which of them follow the surrogate, and how copies decay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tdm_r1.artifacts.records import (
    GeneratorState,
    PromptSet,
    Rewards,
    Rollout,
    SurrogateState,
    TrainingState,
    role_tensors,
)
from tdm_r1.config import RunConfig
from tdm_r1.ema import average_decay, blend, lag_decay, mean_decay, over, reference_decay
from tdm_r1.presets import revise
from tdm_r1.rng import Keys
from tdm_r1.runtime.layout import Task, shard_tasks
from tdm_r1.runtime.run import Run, open_run
from tdm_r1.stages.generator_update import generator_update
from tdm_r1.stages.surrogate_update import surrogate_update


@pytest.fixture(scope="module")
def run(finished: Path) -> Run:
    return open_run(str(finished))


def rollouts(run: Run) -> list[Rollout]:
    return [rollout for rollout, _ in run.load_all(shard_tasks("rollout", 2, run.config), Rollout)]


def previous(run: Run) -> TrainingState:
    return run.load(Task("generator_update", 1), GeneratorState)[0]


def generated(run: Run, **knobs: Any) -> GeneratorState:
    """Iteration 2 of the run again, by other knobs of the generator."""
    return generator_update(
        run.load(Task("encode_prompts"), PromptSet)[0],
        rollouts(run),
        run.load(Task("surrogate_update", 2), SurrogateState)[0],
        previous(run),
        first=False,
        backbone=run.backbone,
        config=changed(run, "generator", knobs),
        keys=Keys(run.config.seed, 2),
    )


def changed(run: Run, section: str, knobs: dict[str, Any]) -> RunConfig:
    return revise(run.config, {f"{section}.{name}": value for name, value in knobs.items()})


def logged(state: GeneratorState, name: str) -> list[float]:
    """A metric of the generator by optimizer step, the mean of its microbatches."""
    found: dict[int, list[float]] = {}
    for row in state.metrics.to_pylist():
        if row["name"] == f"generator/{name}":
            found.setdefault(row["step"], []).append(row["value"])
    return [sum(found[step]) / len(found[step]) for step in sorted(found)]


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_free_updates_come_after_the_others_and_ask_no_surrogate(run: Run) -> None:
    both = generated(run, updates=2, free_updates=3)
    rewards = logged(both, "reward")
    assert [value > 0 for value in rewards] == [True, True, False, False, False]
    assert all(value > 0 for value in logged(both, "kl"))
    alone = generated(run, updates=2)
    assert logged(alone, "loss") == logged(both, "loss")[:2]
    assert not same(role_tensors(alone.state, "generator"), role_tensors(both.state, "generator"))


@pytest.mark.parametrize("scaled", [False, True])
def test_the_average_of_the_generator_decays_by_the_iteration_or_by_all_its_updates(run: Run, scaled: bool) -> None:
    found = generated(run, updates=2, free_updates=1, scale_decays=scaled)
    decay = average_decay(2) ** (3 if scaled else 1)
    expected = blend(role_tensors(previous(run).state, "generator_ema"), role_tensors(found.state, "generator"), decay)
    assert same(role_tensors(found.state, "generator_ema"), expected)


@pytest.mark.parametrize("scaled", [False, True])
def test_the_copies_of_the_surrogate_decay_by_the_iteration_or_by_its_updates(run: Run, scaled: bool) -> None:
    knobs = {"updates": 4, "average": 0.9, "reference": "ema", "ppo_clip": 0.01, "scale_decays": scaled}
    rewards = [reward for reward, _ in run.load_all(shard_tasks("reward_scoring", 2, run.config), Rewards)]
    config, prompts = changed(run, "surrogate", knobs), run.load(Task("encode_prompts"), PromptSet)[0]

    def learn(iteration: int, before: SurrogateState | None) -> SurrogateState:
        window = [(iteration, list(zip(rollouts(run), rewards, strict=True)))]
        keys = Keys(config.seed, iteration)
        return surrogate_update(prompts, window, before, backbone=run.backbone, config=config, keys=keys)

    before = learn(1, None)
    after = learn(2, before)
    live, steps = role_tensors(after.state, "surrogate"), 4 if scaled else 1
    decays = {"average": mean_decay(1, 0.9), "lag": lag_decay(2), "reference": reference_decay(2)}
    for name, decay in decays.items():
        role = f"surrogate_{name}"
        assert same(role_tensors(after.state, role), blend(role_tensors(before.state, role), live, decay**steps))


def test_one_update_decays_alike_either_way() -> None:
    assert over(0.9, 1, scaled=True) == over(0.9, 1, scaled=False) == 0.9
