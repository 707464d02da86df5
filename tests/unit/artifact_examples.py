"""One valid record of every kind, and how the tests commit and compare them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from tdm_r1.artifacts.codec import Record
from tdm_r1.artifacts.manifest import Manifest, Provenance
from tdm_r1.artifacts.records import (
    RECORDS,
    Base,
    Evaluation,
    Feedback,
    GeneratorState,
    PromptSet,
    Rewards,
    Rollout,
    SurrogateState,
    join_roles,
)
from tdm_r1.artifacts.repository import commit
from tdm_r1.artifacts.store import Store

WHERE = "iter-00042/stage"
PROVENANCE = Provenance(
    code_version="0.1.0",
    libraries={"torch": "2.9.0"},
    device="cpu",
    threads=1,
    started=datetime(2025, 1, 1, tzinfo=UTC),
    finished=datetime(2025, 1, 2, tzinfo=UTC),
    seconds=86400.0,
    seed_root=1,
)


def prompt_set() -> PromptSet:
    return PromptSet(
        prompts=PromptSet.table(
            "prompts",
            prompt_id=["p0", "p1"],
            text=["a red circle", "zwei Kreise — ü"],
            tag=["colors", "counting"],
            split=["train", "test"],
            metadata=["{}", '{"count": 2}'],
            embedding=[1, 2],
        ),
        embeddings={"sequence": torch.randn(3, 5, 4), "pooled": torch.randn(3, 6)},
    )


def rollout(count: int = 300, seed: int = 0) -> Rollout:
    noise = torch.Generator().manual_seed(seed)
    return Rollout(
        index=Rollout.table(
            "index",
            sample_id=[f"s{n}" for n in range(count)],
            prompt_id=[f"p{n // 4}" for n in range(count)],
            group=[n // 4 for n in range(count)],
        ),
        images=torch.randint(0, 256, (count, 4, 6, 3), dtype=torch.uint8, generator=noise),
        states=torch.randn(count, 5, 2, 3, 4, generator=noise),
    )


def rewards(**change: Any) -> Rewards:
    columns: dict[str, Any] = {
        "sample_id": ["s0", "s1", "s2"],
        "prompt_id": ["p0", "p0", "p0"],
        "group": [0, 0, 0],
        "value": [1.0, None, -0.5],
        "parts": [[{"name": "count", "value": 0.5}, {"name": "color", "value": 0.5}], [], []],
        "error": [None, "the scorer ran out of memory", None],
    }
    return raw_scores({"shapes": []}, **(columns | change))


def raw_scores(
    values: Mapping[str, Sequence[float | None]], *, errors: list[str | None] | None = None, **columns: Any
) -> Rewards:
    """Rewards of some scorers; a column that is given stands once for each of them, errors for all together."""
    count = max(len(columns["sample_id"]), *map(len, values.values()))
    given: dict[str, Any] = {
        "scorer": [name for name in values for _ in range(count)],
        "value": [value for own in values.values() for value in own],
    }
    given |= {name: list(column) * len(values) for name, column in columns.items()}
    given |= {} if errors is None else {"error": errors}
    for name, default in (("parts", []), ("detail", None), ("error", None)):
        given.setdefault(name, [default] * len(given["scorer"]))
    same: dict[str, Any] = {"version": "1", "revision": "0" * 64, "options": "{}", "device": "cpu", "licence": "MIT"}
    same |= {"higher_is_better": True, "deterministic": True, "low": 0.0, "high": 1.0}
    who = {name: [value] * len(values) for name, value in same.items()}
    return Rewards(
        scores=Rewards.table("scores", **given),
        scorers=Rewards.table("scorers", name=list(values), use=list(values), **who),
    )


def training(kind: type[SurrogateState] | type[GeneratorState] | type[Base]) -> Record:
    weight = torch.randn(3, 4)
    role = {"w.a": weight, "w.half": torch.randn(7).to(torch.bfloat16), "scalar": torch.tensor(3)}
    return kind(
        state=join_roles({"surrogate": role, "surrogate_lag": {"w.a": weight}}),  # both names share one storage
        optimizer={"surrogate/w.a.exp_avg": torch.zeros(3, 4), "empty": torch.zeros(0)},
        metrics=kind.table("metrics", step=[0, 1], name=["loss", "loss"], value=[0.5, 0.25]),
    )


def evaluation(samples: int = 2) -> Evaluation:
    word = ["x"] * samples
    return Evaluation(
        metrics=Evaluation.table(
            "metrics",
            name=["teacher", "tdm-r1"],
            nfe=[40, 4],
            tag=["overall", "overall"],
            value=[0.6, 0.9],
            low=[0.5, 0.8],
            high=[0.7, 1.0],
            count=[100, 100],
        ),
        samples=Evaluation.table(
            "samples",
            **dict.fromkeys(("name", "prompt_id", "text", "tag"), word),
            correct=[True] * samples,
            strict=[False] * samples,
            score=[0.5] * samples,
        ),
        image=torch.full((samples, 4, 6, 3), 7, dtype=torch.uint8),
        report="<html>π\r\n</html>\n",
    )


def feedback() -> Feedback:
    columns = ("kind", "sample_id", "other_id", "verdict", "rater", "time", "impression", "picture", "source", "fate")
    rows = [
        ("pair", "s0", "s1", True, "ann", datetime(2026, 11, 22, tzinfo=UTC), None, "0" * 64, "page 1", "counted"),
        ("click", "s1", None, False, None, None, "home", None, "file 2", "counted"),
    ]
    return Feedback(
        votes=Feedback.table("votes", **{name: [row[n] for row in rows] for n, name in enumerate(columns)}),
        samples=Feedback.table(
            "samples", sample_id=["s0", "s1"], prompt_id=["p0", "p0"], group=[0, 0], picture=["0" * 64, "1" * 64]
        ),
    )


EXAMPLES: dict[str, Callable[[], Record]] = {
    "encode_prompts": prompt_set,
    "rollout": rollout,
    "feedback": feedback,
    "reward_scoring": rewards,
    "surrogate_update": lambda: training(SurrogateState),
    "generator_update": lambda: training(GeneratorState),
    "distill_base": lambda: training(Base),
    "evaluation": evaluation,
}
FILES = [(kind, file) for kind, record in RECORDS.items() for file in record.files()]


def put(store: Store, record: Record, where: str = WHERE, *, provenance: Provenance = PROVENANCE) -> Manifest:
    return commit(store, where, record, parents={"prompts": "a" * 64}, config_digest="b" * 64, provenance=provenance)


def path_of(store: Store, key: str) -> Path:
    return Path(store.root) / key


def assert_same(left: Record, right: Record) -> None:
    assert type(left) is type(right)
    for field in fields(left):
        a, b = getattr(left, field.name), getattr(right, field.name)
        if isinstance(a, pa.Table):
            assert a.equals(b, check_metadata=True)
        elif isinstance(a, dict):
            assert list(a) == list(b)
            assert all(a[n].dtype == b[n].dtype and torch.equal(a[n], b[n]) for n in a)
        elif isinstance(a, torch.Tensor):
            assert a.dtype == b.dtype
            assert torch.equal(a, b)
        else:
            assert a == b
