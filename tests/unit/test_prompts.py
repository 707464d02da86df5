"""Which prompts an iteration draws."""

from __future__ import annotations

from collections import Counter

import pyarrow as pa
import pytest
import torch

from tdm_r1.artifacts.records import PromptSet
from tdm_r1.errors import ConfigError
from tdm_r1.models.prompts import PromptTable
from tdm_r1.rng import Keys

TAGS = ("colors", "counting", "position")


def table() -> PromptTable:
    rows = [(f"{tag}-{number}", tag, split) for tag in TAGS for number in range(5) for split in ("train", "test")]
    prompts = pa.table(
        {
            "prompt_id": [f"{split}:{name}" for name, _, split in rows],
            "text": [name for name, _, _ in rows],
            "tag": [tag for _, tag, _ in rows],
            "split": [split for _, _, split in rows],
            "metadata": ["{}"] * len(rows),
            "embedding": pa.array(range(1, len(rows) + 1), pa.int64()),
        }
    )
    count = len(rows) + 1
    return PromptTable(
        PromptSet(prompts=prompts, embeddings={"sequence": torch.zeros(count, 2, 3), "pooled": torch.zeros(count, 3)})
    )


def drawn(shares: dict[str, float], count: int = 3000) -> Counter[str]:
    prompts = table()
    return Counter(prompts.rows[chosen]["tag"] for chosen in prompts.draw(range(count), Keys(0, 1), shares))


def test_tags_are_drawn_alike_without_shares() -> None:
    assert all(900 < count < 1100 for count in drawn({}).values())
    assert len(drawn({})) == 3


def test_a_tag_is_drawn_in_proportion_to_its_share() -> None:
    found = drawn({"position": 4.0, "colors": 0.0})
    assert found["colors"] == 0
    assert 2300 < found["position"] < 2500


def test_only_training_prompts_are_drawn() -> None:
    assert all(chosen.startswith("train:") for chosen in table().draw(range(500), Keys(0, 1)))


def test_a_draw_depends_on_its_name_alone() -> None:
    prompts = table()
    assert prompts.draw(range(10), Keys(0, 1))[3:] == prompts.draw(range(3, 10), Keys(0, 1))


@pytest.mark.parametrize("shares", [{"colour": 1.0}, dict.fromkeys(TAGS, 0.0)])
def test_shares_that_leave_nothing_or_name_no_tag_are_refused(shares: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=r"no prompts of the tag `colour`|every tag has the share 0"):
        table().draw(range(3), Keys(0, 1), shares)
