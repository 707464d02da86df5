"""Claims about records: an invalid one cannot be built."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest
import torch

from tdm_r1.artifacts.records import (
    RECORDS,
    PromptSet,
    Rollout,
    SurrogateState,
    join_roles,
    role_tensors,
)
from tdm_r1.errors import (
    SchemaError,
)
from tests.unit.artifact_examples import (
    EXAMPLES,
    prompt_set,
    rewards,
    rollout,
)


def test_every_record_has_an_example_here() -> None:
    assert set(EXAMPLES) == set(RECORDS)


def test_a_record_whose_rows_disagree_cannot_be_built() -> None:
    good = rollout(2)
    with pytest.raises(SchemaError, match=r"^Rollout\.images has N=2 but Rollout\.index has N=1$"):
        Rollout(index=good.index.slice(0, 1), images=good.images, states=good.states)
    with pytest.raises(SchemaError, match=r"PromptSet\.embeddings\['sequence'\] has U=3 but .*'pooled'\] has U=2"):
        PromptSet(
            prompts=prompt_set().prompts, embeddings={"sequence": torch.zeros(3, 5, 4), "pooled": torch.zeros(2, 6)}
        )


@pytest.mark.parametrize(
    ("field", "change", "claim"),
    [
        ("images", lambda t: t.float(), "is float32 but uint8 is declared"),
        ("images", lambda t: t[..., :1].contiguous(), "has size 1 where 3 is declared"),
        ("images", lambda t: t.transpose(1, 2), "is not contiguous"),
        ("images", lambda t: t[0], r"has shape \[4, 6, 3\] but \[N height width 3\] is declared"),
        ("states", lambda t: t / 0, "NaN or infinite"),
        ("states", lambda t: t.tolist(), "is a list but a tensor is declared"),
        ("index", lambda t: t.drop_columns(["group"]), "has columns"),
        ("index", lambda t: t.append_column("more", t["group"]), "has columns"),
        ("index", lambda t: t.set_column(2, "group", t["group"].cast(pa.int32())), "is int32 but int64 is declared"),
        ("index", lambda t: t.set_column(1, "prompt_id", pa.array([None] * 2, pa.string())), "has 2 nulls"),
        ("index", lambda t: t.set_column(0, "sample_id", pa.array(["s", "s"])), "has `s` 2 times"),
    ],
)
def test_an_invalid_rollout_cannot_be_built(field: str, change: Callable[[Any], Any], claim: str) -> None:
    good = rollout(2)
    values = {name: getattr(good, name) for name in ("index", "images", "states")}
    with pytest.raises(SchemaError, match=rf"Rollout\.{field}.*{claim}"):
        Rollout(**values | {field: change(values[field])})


@pytest.mark.parametrize(
    "change",
    [
        {"value": [1.0, float("nan"), 0.0]},
        {"value": [1.0, None, float("inf")]},
        {"value": [1.0, None, None]},
        {"error": [None, None, None]},
        {"error": ["failed", "failed", None]},
        {"sample_id": ["s0", "s0", "s1"]},
        {"group": [0, None, 0]},
        {"group": ["a", "b", "c"]},
        {"scorer": ["shapes", "other", "shapes"]},
        {"scorer": ["other"] * 3},
    ],
)
def test_rewards_that_contradict_themselves_cannot_be_built(change: dict[str, Any]) -> None:
    with pytest.raises(SchemaError):
        rewards(**change)


@pytest.mark.parametrize("change", [{"split": ["train", "x"]}, {"metadata": ["{}", "{"]}, {"embedding": [0, 3]}])
def test_prompts_that_point_nowhere_cannot_be_built(change: dict[str, Any]) -> None:
    good = prompt_set()
    columns = good.prompts.to_pydict() | change
    with pytest.raises(SchemaError):
        PromptSet(prompts=PromptSet.table("prompts", **columns), embeddings=good.embeddings)


@pytest.mark.parametrize("bad", [{"other/w": torch.ones(1)}, {"surrogate/w": torch.tensor([float("nan")])}])
def test_a_surrogate_of_unknown_role_or_with_nan_cannot_be_built(bad: dict[str, torch.Tensor]) -> None:
    metrics = SurrogateState.table("metrics", step=[], name=[], value=[])
    with pytest.raises(SchemaError):
        SurrogateState(state=bad, optimizer={}, metrics=metrics)


def test_the_tensors_of_a_role_are_those_that_were_joined() -> None:
    roles = {"surrogate": {"a.b": torch.ones(1)}, "surrogate_lag": {"a.b": torch.zeros(1)}}
    joined = join_roles(roles)
    assert set(joined) == {"surrogate/a.b", "surrogate_lag/a.b"}
    assert {role: role_tensors(joined, role) for role in roles} == roles
    with pytest.raises(SchemaError, match="no tensor has role `generator`"):
        role_tensors(joined, "generator")
    with pytest.raises(SchemaError):
        join_roles({"a/b": {}})


def test_a_surrogate_is_followed_by_its_average_where_it_keeps_one() -> None:
    def state(roles: dict[str, dict[str, torch.Tensor]]) -> SurrogateState:
        metrics = SurrogateState.table("metrics", step=[0], name=["loss"], value=[0.5])
        return SurrogateState(state=join_roles(roles), optimizer={}, metrics=metrics)

    live, average = {"w": torch.ones(1)}, {"w": torch.zeros(1)}
    assert state({"surrogate": live}).followed == live
    assert state({"surrogate": live, "surrogate_average": average}).followed == average
