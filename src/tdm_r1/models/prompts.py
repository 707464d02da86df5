"""Prompts with their cached embeddings, looked up by id."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import accumulate
from typing import Any

import pyarrow as pa
import torch

from tdm_r1.artifacts.records import PromptSet
from tdm_r1.errors import ConfigError
from tdm_r1.models.backbone import Condition
from tdm_r1.rng import Counter, Keys
from tdm_r1.worlds.mix import WORLD


class PromptTexts:
    """The table of a `PromptSet` in the form that stages ask of it: all that is known without the embeddings."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    @cached_property
    def rows(self) -> dict[str, dict[str, Any]]:
        """Row by prompt id, `metadata` parsed."""
        table = self.table.to_pylist()
        return {row["prompt_id"]: {**row, "metadata": json.loads(row["metadata"])} for row in table}

    def asked(self, prompt_id: str) -> tuple[str, Mapping[str, Any]]:
        """Text and metadata: what a scorer may know of a prompt."""
        row = self.rows[prompt_id]
        return row["text"], row["metadata"]

    def by_tag(self, split: str) -> dict[str, list[str]]:
        """Prompt ids of a split by tag, in the order of the table."""
        found: dict[str, list[str]] = {}
        for prompt_id, row in self.rows.items():
            if row["split"] == split:
                found.setdefault(row["tag"], []).append(prompt_id)
        return found

    def draw(self, names: Sequence[Counter], keys: Keys, shares: Mapping[str, float] | None = None) -> list[str]:
        """A training prompt for each name: first a tag, all alike or by `shares`, then a prompt of that tag.

        A draw depends on the iteration and its name alone, so never on shards or batches.

        Args:
            shares: relative frequency by tag; a tag that is absent has 1.

        Raises:
            ConfigError: for the share of a tag that no training prompt has, or when all shares are 0.
        """
        tags = self.by_tag("train")
        ordered = sorted(tags)
        upper = self._upper_bounds(ordered, shares or {})
        chosen = []
        draws = zip(
            keys.uniforms("prompt/tag", names).tolist(), keys.uniforms("prompt/row", names).tolist(), strict=True
        )
        for tag, row in draws:
            rows = tags[ordered[bisect_right(upper, tag * upper[-1])]]
            chosen.append(rows[int(row * len(rows))])
        return chosen

    def shares(self, tags: Mapping[str, float], worlds: Mapping[str, float]) -> dict[str, float]:
        """Relative frequency by tag, such that worlds of a mix are drawn by their own shares.

        Args:
            tags: by tag, inside its world; one that is absent has 1.
            worlds: by world; one that is absent has 1. Empty: worlds do not count.
        """
        if not worlds:
            return dict(tags)
        rows = self.by_tag("train").items()
        world_of = {tag: self.rows[prompt_ids[0]]["metadata"].get(WORLD, "") for tag, prompt_ids in rows}
        total: dict[str, float] = {}
        for tag, world in world_of.items():
            total[world] = total.get(world, 0.0) + tags.get(tag, 1.0)
        own = {tag: tags.get(tag, 1.0) / (total[world] or 1.0) for tag, world in world_of.items()}
        return {**tags, **{tag: worlds.get(world_of[tag], 1.0) * share for tag, share in own.items()}}

    @staticmethod
    def _upper_bounds(tags: Sequence[str], shares: Mapping[str, float]) -> list[float]:
        """Running sums of the tags' shares."""
        if unknown := sorted(set(shares) - set(tags)):
            raise ConfigError(f"there are no prompts of the tag `{unknown[0]}`", hint=f"the tags are {', '.join(tags)}")
        upper = list(accumulate(shares.get(tag, 1.0) for tag in tags))
        if not upper[-1] > 0:
            raise ConfigError("every tag has the share 0, so there is nothing to draw", hint="set rollout.tag_shares")
        return upper


class PromptTable(PromptTexts):
    """A whole `PromptSet`: texts with their embeddings."""

    def __init__(self, prompts: PromptSet) -> None:
        super().__init__(prompts.prompts)
        self.embeddings = Condition(prompts.embeddings["sequence"], prompts.embeddings["pooled"])
        """Every distinct embedding; row 0 is the empty prompt."""

    @property
    def empty(self) -> Condition:
        return self.embeddings.take(slice(0, 1))

    def condition(self, prompt_ids: Sequence[str]) -> Condition:
        """Embeddings of a batch, [N, T, D] and [N, P]."""
        return self.embeddings.take(torch.tensor([self.rows[p]["embedding"] for p in prompt_ids], dtype=torch.int64))
