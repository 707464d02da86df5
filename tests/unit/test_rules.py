"""Claims about the rules that stop a run, and about what they read."""

from __future__ import annotations

from pathlib import Path

import pytest

from tdm_r1.artifacts.records import Evaluation, GeneratorState, Rewards, SurrogateState
from tdm_r1.artifacts.repository import load, require_manifest
from tdm_r1.artifacts.store import open_store
from tdm_r1.drive.progress import read_progress
from tdm_r1.drive.rules import Rules, Signals, fired, read_signals
from tdm_r1.rewards.aggregate import aggregate
from tdm_r1.runtime.layout import iteration_tasks, once_tasks
from tdm_r1.runtime.run_file import read_config


def signals(iteration: int, **values: float | None) -> Signals:
    usual: dict[str, float | None] = {"reward": 0.5, "score": None, "drift": 0.1, "kl": 0.2}
    cost = values.pop("cost", 1.0)
    return Signals(iteration=iteration, cost=cost or 0.0, **{**usual, **values})


@pytest.mark.parametrize(
    ("rules", "now", "reason"),
    [
        (Rules(target=0.6), {"score": 0.6}, "target reached: the score is 0.6000 at iteration 2"),
        (Rules(target=0.6), {"score": 0.59}, None),
        (Rules(target=0.6), {"score": None}, None),
        (Rules(collapse=0.5), {"reward": 0.24}, "reward collapse: the mean reward is 0.2400"),
        (Rules(collapse=0.5), {"reward": 0.25}, None),
        (Rules(collapse=0.5), {"reward": None}, None),
        (Rules(drift=0.1), {"drift": 0.11}, "drift budget: surrogate/drift is 0.11"),
        (Rules(drift=0.1), {"drift": 0.1}, None),
        (Rules(kl=0.2), {"kl": 0.21}, "KL budget: generator/kl is 0.21"),
        (Rules(kl=0.2), {"kl": None}, None),
        (Rules(budget=3.0), {"cost": 2.0}, "cost budget: 3.00 is spent at iteration 2"),
        (Rules(budget=3.1), {"cost": 2.0}, None),
        (Rules(), {"reward": 0.0, "score": 1.0, "drift": 9.0, "kl": 9.0, "cost": 9.0}, None),
    ],
)
def test_a_rule_fires_at_its_limit_and_not_before(
    rules: Rules, now: dict[str, float | None], reason: str | None
) -> None:
    found = fired([signals(1), signals(2, **now)], rules)
    assert found is None if reason is None else found is not None and found.startswith(reason)


def test_a_first_iteration_cannot_collapse() -> None:
    assert fired([signals(1, reward=0.0)], Rules(collapse=1.0)) is None


def test_signals_are_what_the_records_hold(finished: Path) -> None:
    store = open_store(str(finished))
    config = read_config(store)
    prices = {"reward_scoring": 36.0, "rollout": 3600.0}
    found = read_signals(store, config, 1, prices)
    rewards = [
        value
        for shard in range(config.rollout.shards)
        for value in aggregate(load(store, f"iter-00001/reward_scoring/shard-{shard:04d}", Rewards)[0], config.reward)[
            "reward"
        ].to_pylist()
    ]
    assert found.reward == pytest.approx(sum(rewards) / len(rewards))
    evaluation = load(store, "iter-00001/evaluation", Evaluation)[0].metrics.to_pylist()
    assert found.score == [row["value"] for row in evaluation if row["tag"] == "overall"][-1]
    for kind, name, value in (
        (SurrogateState, "surrogate/drift", found.drift),
        (GeneratorState, "generator/kl", found.kl),
    ):
        rows = load(store, f"iter-00001/{kind.kind}", kind)[0].metrics.to_pylist()
        logged = [row["value"] for row in rows if row["name"] == name]
        assert logged
        assert value == pytest.approx(sum(logged) / len(logged))
    seconds = {task: require_manifest(store, task.location).provenance.seconds for task in iteration_tasks(1, config)}
    scoring, rollout = (
        sum(value for task, value in seconds.items() if task.stage == stage) for stage in ("reward_scoring", "rollout")
    )
    assert found.cost == pytest.approx(scoring / 100 + rollout)


def test_the_first_iteration_carries_the_cost_of_what_the_run_needs_once(finished: Path) -> None:
    store = open_store(str(finished))
    config = read_config(store)
    once = sum(require_manifest(store, task.location).provenance.seconds for task in once_tasks())
    prices = {"encode_prompts": 3600.0, "distill_base": 3600.0}
    assert read_signals(store, config, 1, prices).cost == pytest.approx(once)
    assert read_signals(store, config, 2, prices).cost == 0


def test_an_iteration_counts_when_all_its_records_do(finished: Path, tmp_path: Path) -> None:
    import shutil

    root = Path(shutil.copytree(finished, tmp_path / "run"))
    store = open_store(str(root))
    config = read_config(store)
    assert read_progress(store, config).complete == 2
    (root / "iter-00001/reward_scoring/shard-0001/manifest.json").unlink()
    assert read_progress(store, config).complete == 0
    assert read_progress(store, config).next == 1
