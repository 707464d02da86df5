"""Raw values of several scorers to one reward per sample: a function of what is stored, so that it can be repeated.

r = Σ_s ± w_s · clip(a_s · v_s + b_s, low_s, high_s), with a minus where less is better, over the scorers that
were asked about the sample; v_s is the value, or Σ_p w_p · part_p. Nothing is scored again when one of these changes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from tdm_r1.config import RewardConfig, ScorerConfig
from tdm_r1.errors import SchemaError
from tdm_r1.rewards.protocol import NOT_ASKED

if TYPE_CHECKING:
    from tdm_r1.artifacts.records import Rewards

SCHEMA: Final = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("prompt_id", pa.string(), nullable=False),
        pa.field("group", pa.int64(), nullable=False),
        pa.field("reward", pa.float64()),
        pa.field("correct", pa.bool_()),
        pa.field("strict", pa.bool_()),
        pa.field("error", pa.string()),
    ]
)
"""One row per sample: a reward, or the error that prevented it. Verdicts are those of the first scorer that has any and
was asked."""

Row = dict[str, Any]


def aggregate(record: Rewards, config: RewardConfig) -> pa.Table:
    """The reward of every sample of a record, in its order, with the columns of `SCHEMA`.

    Raises:
        SchemaError: when the record was not scored by a scorer that has a weight, or this one gives no such part.
    """
    return aggregate_tables(record.scores, record.scorers, config)


def aggregate_tables(scores: pa.Table, scorers: pa.Table, config: RewardConfig) -> pa.Table:
    """`aggregate` of the two tables of a record."""
    by_scorer: dict[str, list[Row]] = {name: [] for name in scorers["name"].to_pylist()}
    for row in scores.to_pylist():
        by_scorer[row["scorer"]].append(row)
    if missing := [name for name, section in config.scorers.items() if section.weight and name not in by_scorer]:
        raise SchemaError(
            f"no score of `{missing[0]}` is stored, only of {', '.join(by_scorer)}",
            hint="re-weighting needs no scoring, but a new scorer does: set its weight to 0, or start a run with it",
        )
    sign = {row["name"]: 1.0 if row["higher_is_better"] else -1.0 for row in scorers.to_pylist()}
    terms = [
        _terms(by_scorer[name], sign[name], section, name) for name, section in config.scorers.items() if section.weight
    ]
    samples = next(iter(by_scorer.values()))
    verdicts = {name: _verdicts(name, list(by_scorer.values()), len(samples)) for name in ("correct", "strict")}
    rows = []
    for number, sample in enumerate(samples):
        own = [term[number] for term in terms if term[number] is not None]
        errors = [term for term in own if isinstance(term, str)] or ([] if own else ["no scorer was asked"])
        reward = None if errors else math.fsum(term for term in own if isinstance(term, float))
        keys = {key: sample[key] for key in ("sample_id", "prompt_id", "group")}
        verdict = {name: values[number] for name, values in verdicts.items()}
        rows.append({**keys, **verdict, "reward": reward, "error": errors[0] if errors else None})
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def _terms(rows: Sequence[Row], sign: float, section: ScorerConfig, name: str) -> list[float | str | None]:
    """What a scorer adds to each sample's reward, or why it cannot; None where it was not asked."""
    values = [None if value is None else _scaled(value, section) for value in _values(rows, section, name)]
    fill = _group_means(rows, values) if section.on_error == "group_mean" else {}
    found: list[float | str | None] = []
    for row, value in zip(rows, values, strict=True):
        if row["error"] == NOT_ASKED:
            found.append(None)
            continue
        known = fill.get(row["group"]) if value is None else value
        found.append(f"{name}: {row['error']}" if known is None else sign * section.weight * known)
    return found


def _values(rows: Sequence[Row], section: ScorerConfig, name: str) -> list[float | None]:
    """What a scorer said of each sample: its value, or the weighted sum of its parts."""
    if not section.parts:
        return [row["value"] for row in rows]
    values: list[float | None] = []
    for row in rows:
        known = {part["name"]: part["value"] for part in row["parts"]}
        if row["value"] is None:
            values.append(None)
        elif missing := sorted(section.parts.keys() - known.keys()):
            raise SchemaError(
                f"scorer `{name}` gave {row['sample_id']} no part `{missing[0]}`, only {', '.join(known) or 'a value'}",
                hint=f"name in `reward.scorers.{name}.parts` what it gives to every image",
            )
        else:
            values.append(math.fsum(weight * known[part] for part, weight in section.parts.items()))
    return values


def _scaled(value: float, section: ScorerConfig) -> float:
    scaled = section.scale * value + section.shift
    low = -math.inf if section.low is None else section.low
    high = math.inf if section.high is None else section.high
    return min(high, max(low, scaled))


def _group_means(rows: Sequence[Row], values: Sequence[float | None]) -> Mapping[int, float]:
    """Mean of the values of each group that has any."""
    found: dict[int, list[float]] = {}
    for row, value in zip(rows, values, strict=True):
        if value is not None:
            found.setdefault(row["group"], []).append(value)
    return {group: math.fsum(own) / len(own) for group, own in found.items()}


def _verdicts(part: str, columns: Sequence[Sequence[Row]], count: int) -> list[bool | None]:
    """A verdict per sample by the first scorer that was asked, of those that give one to any; none where it failed."""
    verdicts: list[bool | None] = [None] * count
    open_ = set(range(count))
    for rows in columns:
        found = [next((p["value"] for p in row["parts"] if p["name"] == part), None) for row in rows]
        if any(value is not None for value in found):
            asked = {number for number in open_ if rows[number]["error"] != NOT_ASKED}
            for number in asked:
                verdicts[number] = None if found[number] is None else found[number] == 1.0
            open_ -= asked
    return verdicts
