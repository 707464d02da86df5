"""What is published now: samples on shelves, each replaced as a whole, and counters that only grow."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from tdm_r1.telemetry.metrics import METRICS

Family = GaugeMetricFamily | CounterMetricFamily


@dataclass(frozen=True)
class Sample:
    """A value of a declared metric."""

    name: str
    value: float
    labels: tuple[str, ...]
    """Values, in the order that the metric declares; empty for a label that does not apply."""


def sample(name: str, value: float, **labels: str) -> Sample:
    """A sample, after checking its labels; `shard` may be left out.

    Raises:
        KeyError: for a metric or a label that is not declared.
    """
    metric = METRICS[f"tdm_r1_{name}"]
    if unknown := labels.keys() - set(metric.labels):
        raise KeyError(f"{metric.name} has no label {sorted(unknown)}")
    return Sample(
        metric.name, float(value), tuple(labels.get("shard", "") if k == "shard" else labels[k] for k in metric.labels)
    )


def families(samples: Iterable[Sample]) -> Iterator[Family]:
    """Samples by metric, as Prometheus' client wants them; of two with equal labels the later one counts."""
    by_name: dict[str, dict[tuple[str, ...], float]] = {}
    for found in samples:
        by_name.setdefault(found.name, {})[found.labels] = found.value
    for name, values in by_name.items():
        metric = METRICS[name]
        kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
        family = kind(name, metric.help, labels=metric.labels)
        for labels, value in values.items():
            family.add_metric(labels, value)
        yield family


class Board(Collector):
    """Thread-safe: a scrape may come at any time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._shelves: dict[str, tuple[Sample, ...]] = {}
        self._counts: dict[tuple[str, tuple[str, ...]], float] = {}

    def post(self, shelf: str, samples: Sequence[Sample]) -> None:
        """Put these samples on a shelf, instead of what lay there."""
        with self._lock:
            self._shelves[shelf] = tuple(samples)

    def count(self, one: Sample) -> None:
        """Add a sample's value to its counter."""
        with self._lock:
            key = (one.name, one.labels)
            self._counts[key] = self._counts.get(key, 0.0) + one.value

    def samples(self, *shelves: str) -> list[Sample]:
        """What lies on these shelves, or on all, and every counter."""
        with self._lock:
            posted = [
                found for name, shelf in self._shelves.items() if not shelves or name in shelves for found in shelf
            ]
            return [*posted, *(Sample(name, value, labels) for (name, labels), value in self._counts.items())]

    def collect(self) -> Iterator[Family]:
        yield from families(self.samples())


class Fixed(Collector):
    """These samples and no others: the body of a push."""

    def __init__(self, samples: Iterable[Sample]) -> None:
        self._samples = tuple(samples)

    def collect(self) -> Iterator[Family]:
        yield from families(self._samples)
