"""When to stop a run that could go on: reached, collapsed, drifted, or too dear."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tdm_r1.artifacts.store import Store
from tdm_r1.config import RunConfig
from tdm_r1.runtime.layout import Task, iteration_tasks, once_tasks

if TYPE_CHECKING:
    import pyarrow

    from tdm_r1.artifacts.manifest import Manifest

OVERALL: Final = "overall"


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Each is off when it is None."""

    target: float | None = None
    """Stop when the generator's overall score on held-out prompts reaches this."""
    collapse: float | None = None
    """Stop when the mean training reward falls below this share of the best mean before."""
    drift: float | None = None
    """Stop when the surrogate's mean squared velocity distance from the base exceeds this (`surrogate/drift`)."""
    kl: float | None = None
    """Stop when the generator's reverse-KL term towards the base exceeds this (`generator/kl`)."""
    budget: float | None = None
    """Stop when the committed stages have cost this much by `prices`."""
    prices: Mapping[str, float] = field(default_factory=dict)
    """Of a pod for an hour, by stage, in the currency of the budget."""

    @property
    def any(self) -> bool:
        """Whether there is anything to look at."""
        return any(r is not None for r in (self.target, self.collapse, self.drift, self.kl, self.budget))


@dataclass(frozen=True, kw_only=True)
class Signals:
    """What the rules see of one committed iteration."""

    iteration: int
    reward: float | None
    """Mean over the samples that could be scored."""
    score: float | None
    """Overall score of the evaluation; None when the iteration was not evaluated."""
    drift: float | None
    kl: float | None
    cost: float
    """Of this iteration's stages; the first iteration also carries what the run needs once."""


def fired(history: Sequence[Signals], rules: Rules) -> str | None:
    """The first rule that the newest iteration of `history` breaks, as a sentence, or None."""
    now, spent = history[-1], math.fsum(signals.cost for signals in history)
    at = f"at iteration {now.iteration}"
    if rules.target is not None and now.score is not None and now.score >= rules.target:
        return f"target reached: the score is {now.score:.4f} {at}, asked for {rules.target:g}"
    best = max((s.reward for s in history[:-1] if s.reward is not None), default=None)
    if rules.collapse is not None and best is not None and now.reward is not None and best > 0:
        floor = rules.collapse * best
        if now.reward < floor:
            return f"reward collapse: the mean reward is {now.reward:.4f} {at}, under {floor:.4f} of a best {best:.4f}"
    if rules.drift is not None and now.drift is not None and now.drift > rules.drift:
        return f"drift budget: surrogate/drift is {now.drift:.4g} {at}, allowed {rules.drift:g}"
    if rules.kl is not None and now.kl is not None and now.kl > rules.kl:
        return f"KL budget: generator/kl is {now.kl:.4g} {at}, allowed {rules.kl:g}"
    if rules.budget is not None and spent >= rules.budget:
        return f"cost budget: {spent:.2f} is spent {at}, allowed {rules.budget:g}"
    return None


def read_signals(store: Store, config: RunConfig, iteration: int, prices: Mapping[str, float]) -> Signals:
    """Read one committed iteration; every file is checked against its manifest."""
    from tdm_r1.artifacts.repository import require_manifest

    tasks = [*(once_tasks() if iteration == 1 else []), *iteration_tasks(iteration, config)]
    manifests = {task: require_manifest(store, task.location) for task in tasks}
    scored = [(task, manifest) for task, manifest in manifests.items() if task.stage == "reward_scoring"]
    rewards = [value for task, manifest in scored for value in rewards_of(store, task, manifest, config)]
    return Signals(
        iteration=iteration,
        reward=math.fsum(rewards) / len(rewards) if rewards else None,
        score=score(store, manifests, Task("evaluation", iteration)),
        drift=mean_metric(store, manifests, Task("surrogate_update", iteration), "surrogate/drift"),
        kl=mean_metric(store, manifests, Task("generator_update", iteration), "generator/kl"),
        cost=math.fsum(prices.get(task.stage, 0.0) * m.provenance.seconds / 3600 for task, m in manifests.items()),
    )


def score(store: Store, manifests: dict[Task, Manifest], task: Task) -> float | None:
    """The overall score of the generator: the last row of its kind, as the pages show it."""
    if task not in manifests:
        return None
    tags, values = (column(store, task, manifests[task], "metrics.parquet", name) for name in ("tag", "value"))
    return [float(v) for tag, v in zip(tags, values, strict=True) if tag == OVERALL][-1]


def mean_metric(store: Store, manifests: dict[Task, Manifest], task: Task, name: str) -> float | None:
    """Mean over the steps of one metric; None when the stage did not log it."""
    names, values = (column(store, task, manifests[task], "metrics.parquet", part) for part in ("name", "value"))
    found = [float(value) for key, value in zip(names, values, strict=True) if key == name]
    return math.fsum(found) / len(found) if found else None


def rewards_of(store: Store, task: Task, manifest: Manifest, config: RunConfig) -> list[float]:
    """The rewards of a shard's samples, without those that failed."""
    from tdm_r1.rewards.aggregate import aggregate_tables

    scores, scorers = (table(store, task, manifest, file) for file in ("part.parquet", "scorers.parquet"))
    rewards = aggregate_tables(scores, scorers, config.reward)["reward"].to_pylist()
    return [value for value in rewards if value is not None]


def column(store: Store, task: Task, manifest: Manifest, file: str, name: str) -> list[Any]:
    """One column of one verified file of a record."""
    values: list[Any] = table(store, task, manifest, file, [name])[name].to_pylist()
    return values


def table(
    store: Store, task: Task, manifest: Manifest, file: str, columns: Sequence[str] | None = None
) -> pyarrow.Table:
    """One verified table of a record, or some of its columns."""
    import pyarrow.parquet as pq

    from tdm_r1.artifacts.repository import fetch_verified

    entry = manifest.files[file]
    with tempfile.TemporaryDirectory() as scratch:
        local = Path(scratch, file)
        fetch_verified(store, f"{task.location}/{entry.stored_as}", local, entry)
        return pq.read_table(local, columns=None if columns is None else list(columns), memory_map=False)
