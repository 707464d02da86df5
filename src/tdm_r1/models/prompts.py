"""Prompts with their cached embeddings, looked up by id."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch

from tdm_r1.artifacts.records import PromptSet
from tdm_r1.errors import ConfigError
from tdm_r1.models.backbone import Condition
from tdm_r1.rng import Counter, Keys


@dataclass(frozen=True)
class PromptTable:
    """A `PromptSet` in the form that stages ask of it."""

    prompts: PromptSet

    @cached_property
    def rows(self) -> dict[str, dict[str, Any]]:
        """Row by prompt id, `metadata` parsed."""
        table = self.prompts.prompts.to_pylist()
        return {row["prompt_id"]: {**row, "metadata": json.loads(row["metadata"])} for row in table}

    @cached_property
    def embeddings(self) -> Condition:
        """Every distinct embedding; row 0 is the empty prompt."""
        return Condition(self.prompts.embeddings["sequence"], self.prompts.embeddings["pooled"])

    @property
    def empty(self) -> Condition:
        return self.embeddings.take(slice(0, 1))

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

    @staticmethod
    def _upper_bounds(tags: Sequence[str], shares: Mapping[str, float]) -> list[float]:
        """Running sums of the tags' shares."""
        if unknown := sorted(set(shares) - set(tags)):
            raise ConfigError(f"there are no prompts of the tag `{unknown[0]}`", hint=f"the tags are {', '.join(tags)}")
        upper = list(accumulate(shares.get(tag, 1.0) for tag in tags))
        if not upper[-1] > 0:
            raise ConfigError("every tag has the share 0, so there is nothing to draw", hint="set rollout.tag_shares")
        return upper

    def condition(self, prompt_ids: Sequence[str]) -> Condition:
        """Embeddings of a batch, [N, T, D] and [N, P]."""
        return self.embeddings.take(torch.tensor([self.rows[p]["embedding"] for p in prompt_ids], dtype=torch.int64))
