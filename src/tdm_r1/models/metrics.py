"""Scalars of a stage, averaged per optimizer step."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import pyarrow as pa
from torch import Tensor

from tdm_r1.models.backbone import Condition
from tdm_r1.models.world import ALONE, World

SIGMA_BINS: Final = ("0-0.25", "0.25-0.5", "0.5-0.75", "0.75-1")
"""Noise levels; a bin holds its lower edge, and the last one 1 too."""


Values = Mapping[str, float | list[float]]
"""By name: one value, or one of each sample, so that their mean does not depend on how samples were dealt to calls."""


def by_sigma(term: str, values: Tensor, sigma: Tensor) -> dict[str, list[float]]:
    """A term's values in each bin that has any, as `term/0.25-0.5`.

    Args:
        values: [N].
        sigma: [N] in 0..1.
    """
    number = (sigma * len(SIGMA_BINS)).long().clamp(0, len(SIGMA_BINS) - 1).tolist()
    found: dict[str, list[float]] = {}
    for place, value in zip(number, values.tolist(), strict=True):
        found.setdefault(f"{term}/{SIGMA_BINS[place]}", []).append(value)
    return found


def work(rows: int, latent: Tensor, condition: Condition) -> dict[str, float]:
    """Images and tokens that one optimizer step passes through the trained network; a token is a patch or a word.

    Args:
        latent: [N, C, H, W]; every network here sees patches of 2×2, a plane's point counts as one.
    """
    patches = max(1, latent.shape[-1] // 2) * max(1, latent.shape[-2] // 2)
    return {"images": float(rows), "tokens": float(rows * (patches + condition.sequence.shape[1]))}


@dataclass
class MetricLog:
    """Collects values by (step, name); several values of one step, whichever rank had them, become their mean."""

    world: World = ALONE
    _values: dict[tuple[int, str], list[float]] = field(default_factory=dict)

    def add(self, step: int, prefix: str, values: Values) -> None:
        """Values of this rank's own microbatches."""
        for name, value in values.items():
            more = value if isinstance(value, list) else [float(value)]
            self._values.setdefault((step, f"{prefix}/{name}"), []).extend(more)

    def add_once(self, step: int, prefix: str, values: Values) -> None:
        """Values that every rank has alike."""
        if self.world.rank == 0:
            self.add(step, prefix, values)

    def restore(self, table: pa.Table) -> None:
        """Begin with the rows of earlier steps, as `table` returned them."""
        if self.world.rank == 0:
            self._values = {(row["step"], row["name"]): [row["value"]] for row in table.to_pylist()}

    def table(self) -> pa.Table:
        """Columns step int64, name string, value float64, sorted by step and name; a collective."""
        values = dict(sorted(self._merged().items()))
        return pa.table(
            {
                "step": pa.array([step for step, _ in values], pa.int64()),
                "name": pa.array([name for _, name in values], pa.string()),
                "value": pa.array([math.fsum(v) / len(v) for v in values.values()], pa.float64()),
            }
        )

    def _merged(self) -> dict[tuple[int, str], list[float]]:
        """The values of all ranks; their mean does not depend on who had which."""
        if self.world.size == 1:
            return self._values
        merged: dict[tuple[int, str], list[float]] = {}
        for text in self.world.gather(json.dumps([(*key, found) for key, found in self._values.items()])):
            for step, name, found in json.loads(text):
                merged.setdefault((step, name), []).extend(found)
        return merged
