"""Scalars of a stage, averaged per optimizer step."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import pyarrow as pa

from tdm_r1.models.world import ALONE, World


@dataclass
class MetricLog:
    """Collects values by (step, name); several values of one step, whichever rank had them, become their mean."""

    world: World = ALONE
    _values: dict[tuple[int, str], list[float]] = field(default_factory=dict)

    def add(self, step: int, prefix: str, values: Mapping[str, float]) -> None:
        """Values of this rank's own microbatches."""
        for name, value in values.items():
            self._values.setdefault((step, f"{prefix}/{name}"), []).append(float(value))

    def add_once(self, step: int, prefix: str, values: Mapping[str, float]) -> None:
        """Values that every rank has alike."""
        if self.world.rank == 0:
            self.add(step, prefix, values)

    def restore(self, table: pa.Table) -> None:
        """Begin with the rows of earlier steps, as `table` returned them."""
        if self.world.rank == 0:
            self._values = {(row["step"], row["name"]): [row["value"]] for row in table.to_pylist()}

    def table(self) -> pa.Table:
        """Columns step int64, name string, value float64, in rank 0's order of first appearance; a collective."""
        values = self._merged()
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
