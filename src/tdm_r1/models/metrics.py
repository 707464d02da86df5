"""Scalars of a stage, averaged per optimizer step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import pyarrow as pa


@dataclass
class MetricLog:
    """Collects values by (step, name); several values of one step become their mean."""

    _values: dict[tuple[int, str], list[float]] = field(default_factory=dict)

    def add(self, step: int, prefix: str, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._values.setdefault((step, f"{prefix}/{name}"), []).append(float(value))

    def table(self) -> pa.Table:
        """Columns step int64, name string, value float64, in order of first appearance."""
        keys = list(self._values)
        return pa.table(
            {
                "step": pa.array([step for step, _ in keys], pa.int64()),
                "name": pa.array([name for _, name in keys], pa.string()),
                "value": pa.array([math.fsum(v) / len(v) for v in self._values.values()], pa.float64()),
            }
        )
