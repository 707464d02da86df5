"""Samples of one committed record, from its tables and its manifest. Pure: nothing is read here."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from tdm_r1.advantages import mean, population_std
from tdm_r1.artifacts.manifest import Manifest
from tdm_r1.telemetry.board import Sample, sample

if TYPE_CHECKING:
    import pyarrow as pa

    from tdm_r1.config import RewardConfig

Where = Mapping[str, str]
"""Labels `run`, `stage` and, of a sharded stage, `shard`."""

ROLES: Final = ("surrogate", "generator", "fake")
WORK: Final = ("images", "tokens")
SPLITS: Final = {"surrogate/pair_accuracy": "window", "surrogate/held_out_accuracy": "new"}
GATES: Final = {"surrogate/clipped_fraction": "ratio", "surrogate/drifted_fraction": "drift"}
OWN_NAMES: Final = {
    "surrogate/drift": "surrogate_drift",
    "generator/kl": "generator_kl",
    "advantage/std": "advantage_std",
    "advantage/clipped_fraction": "advantage_clipped_ratio",
    "advantage/zero_variance_groups": "zero_variance_groups_ratio",
}
"""Of the table `metrics`, and here."""
BAD_IMAGE, DIED = re.compile(r"bad image:"), re.compile(r"worker_died:")
LATE, RAISED = re.compile(r"worker_died: no answer within"), re.compile(r"[A-Za-z_.]+(Error|Exception|Interrupt): ")
OVERALL: Final = "overall"


def of_manifest(
    where: Where, iteration: int, iterations: int, manifest: Manifest, parents: Sequence[Manifest]
) -> list[Sample]:
    """Size, time and, where they are known, images and the wait for the newest parent."""
    provenance = manifest.provenance
    found = [
        sample("stage_iteration", iteration, **where),
        sample("stage_iterations_left", iterations - iteration, **where),
        sample("stage_seconds", provenance.seconds, **where),
        sample("stage_committed_timestamp_seconds", provenance.finished.timestamp(), **where),
        sample("stage_committed_bytes", sum(entry.size for entry in manifest.files.values()), **where),
    ]
    if parents:
        newest = max(parent.provenance.finished for parent in parents)
        waited = (provenance.started - newest).total_seconds()
        found.append(sample("stage_queue_seconds", max(0.0, waited), **where))
    if images := images_of(manifest):
        found.append(sample("stage_images", images, **where))
        found.append(sample("stage_images_per_second", images / max(provenance.seconds, 1e-9), **where))
    return found


def images_of(manifest: Manifest) -> int:
    """Images that a rollout sampled or a scoring judged; 0 for other records."""
    if manifest.kind not in ("rollout", "reward_scoring"):
        return 0
    scorers = manifest.files["scorers.parquet"].rows if "scorers.parquet" in manifest.files else 1
    return (manifest.files["part.parquet"].rows or 0) // max(scorers or 1, 1)


def of_training(where: Where, rows: Iterable[Mapping[str, Any]]) -> list[Sample]:
    """Every name of the table `metrics` of an update, mean over the steps."""
    values: dict[str, list[float]] = {}
    for row in rows:
        values.setdefault(row["name"], []).append(row["value"])
    return [found for name, steps in values.items() for found in _trained(where, name, steps)]


def of_work(where: Where, rows: Iterable[Mapping[str, Any]], seconds: float) -> list[Sample]:
    """Images and tokens that a training stage passed through the networks it trains, by its whole duration."""
    totals = dict.fromkeys(WORK, 0.0)
    for row in rows:
        if (unit := row["name"].rpartition("/")[2]) in totals:
            totals[unit] += row["value"]
    return [
        sample("stage_images", totals["images"], **where),
        sample("stage_images_per_second", totals["images"] / max(seconds, 1e-9), **where),
        sample("stage_tokens_per_second", totals["tokens"] / max(seconds, 1e-9), **where),
    ]


def _trained(where: Where, name: str, steps: Sequence[float]) -> list[Sample]:
    value, (role, _, term) = mean(steps), name.partition("/")
    if name in OWN_NAMES:
        return [sample(OWN_NAMES[name], value, **where)]
    if name in GATES:
        return [sample("gate_closed_ratio", value, **where, gate=GATES[name])]
    if name in SPLITS:
        return [sample("surrogate_pair_accuracy_ratio", value, **where, split=SPLITS[name])]
    if term == "gradient_norm":
        largest = sample("gradient_norm_max", max(steps), **where, role=role)
        return [sample("gradient_norm", value, **where, role=role), largest]
    return _of_role(where, role, term, steps) if role in ROLES else []


def _of_role(where: Where, role: str, term: str, steps: Sequence[float]) -> list[Sample]:
    kind, _, sigma = term.partition("/")
    if term in WORK:
        return [sample("trained", math.fsum(steps), **where, role=role, of=term)]
    if sigma:
        return [sample("loss_by_sigma", mean(steps), **where, role=role, term=kind, sigma=sigma)]
    return [sample("loss", mean(steps), **where, role=role, term=term)]


def of_scores(where: Where, scores: pa.Table, scorers: pa.Table, config: RewardConfig) -> list[Sample]:
    """Counts by scorer and reason, and the spread of the rewards."""
    from tdm_r1.rewards.aggregate import aggregate_tables
    from tdm_r1.rewards.protocol import NOT_ASKED, is_failure

    found = []
    for name in scorers["name"].to_pylist():
        rows = scores.select(["scorer", "error"]).to_pylist()
        own = [row["error"] for row in rows if row["scorer"] == name and row["error"] != NOT_ASKED]
        found.append(sample("scores", len(own), **where, scorer=name))
        for reason, count in Counter(reason_of(error) for error in own if is_failure(error)).items():
            found.append(sample("scores_failed", count, **where, scorer=name, reason=reason))
    rows = [row for row in aggregate_tables(scores, scorers, config).to_pylist() if row["reward"] is not None]
    if rewards := [float(row["reward"]) for row in rows]:
        found.append(sample("reward_mean", mean(rewards), **where))
        found.append(sample("reward_std", population_std(rewards), **where))
    if verdicts := [bool(row["correct"]) for row in rows if row["correct"] is not None]:
        found.append(sample("reward_correct_ratio", sum(verdicts) / len(verdicts), **where))
    return found


def reason_of(error: str) -> str:
    """One of five words for the error of a score, whose text may be anything."""
    known = {"late": LATE, "worker_died": DIED, "bad_image": BAD_IMAGE, "exception": RAISED}
    return next((word for word, pattern in known.items() if pattern.match(error)), "other")


def of_evaluation(where: Where, rows: Iterable[Mapping[str, Any]]) -> list[Sample]:
    """The overall score of every row of the table."""
    return [
        sample("evaluation_score", row["value"], **where, model=row["name"])
        for row in rows
        if row["tag"] == OVERALL and math.isfinite(row["value"])
    ]
