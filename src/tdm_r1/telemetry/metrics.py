"""Every metric: name, help, unit, labels. `docs/operations/metrics.md` is made from this file.

Names follow Prometheus: base units, and `_total` for counters only. A label has few values, which do not grow with
iterations, attempts or pods, and is never a path, a prompt or a secret.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

PREFIX: Final = "tdm_r1_"

LABELS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "run": "last part of the root, and 8 digits of the SHA-256 of the whole root: `demo-1f8a20c4`",
        "stage": "name of the stage; `variant_scoring` and `variant_evaluation` judge again by another reward",
        "shard": "number of the shard, `0003`; absent where a stage has none",
        "scorer": "name of a scorer in `reward.scorers` of the run",
        "reason": "of a stage: class of the error, `Crash` for one that is not ours; of a score: "
        "`bad_image`, `late`, `worker_died`, `exception`, `other`",
        "term": "of a loss, as in the table `metrics`; of a guard, which value was not finite: `surrogate/loss`",
        "role": "network that is trained: `generator`, `fake`, `surrogate`",
        "gate": "`ratio` (PPO's clip) or `drift`",
        "split": "`window`: trained on just now; `new`: not yet",
        "model": "row of the evaluation: `teacher`, `teacher-4`, `tdm`, `surrogate`, `tdm-r1`",
        "of": "`process`, `children` (scoring processes) or `cuda`",
        "event": "what the driver tells its webhook: `submitted`, `progress`, `rule`, `succeeded`, `failed`",
    }
)
"""What each label means."""

Source = Literal["stage", "run", "driver"]


@dataclass(frozen=True)
class Metric:
    """One name that is published."""

    name: str
    help: str
    unit: str
    labels: tuple[str, ...]
    kind: Literal["gauge", "counter"] = "gauge"


def _stage(name: str, help_: str, unit: str, *labels: str) -> Metric:
    return Metric(f"{PREFIX}stage_{name}", help_, unit, ("run", "stage", "shard", *labels))


STAGE: Final = (
    _stage("running", "1 while the stage runs; only on /metrics.", "1"),
    _stage("steps", "Steps of the part at hand: optimizer steps, or images to score; only on /metrics.", "steps"),
    _stage("steps_done", "Steps of them that are done; only on /metrics.", "steps"),
    _stage("started_timestamp_seconds", "When the stage that runs began; only on /metrics.", "seconds since 1970"),
    _stage("committed_timestamp_seconds", "When the newest record was finished.", "seconds since 1970"),
    _stage("iteration", "Iteration of the newest record.", "iterations"),
    _stage("seconds", "What the newest record took, loading and committing included.", "seconds"),
    _stage("queue_seconds", "From the newest parent's end to this stage's start, by their two clocks.", "seconds"),
    _stage("committed_bytes", "Size of the newest record.", "bytes"),
    _stage("images", "Images of the newest record, sampled or scored.", "images"),
    _stage("images_per_second", "Images by seconds.", "images per second"),
    _stage("memory_peak_bytes", "Largest resident memory since the process began.", "bytes", "of"),
    _stage("failed", "1 from a failed attempt until one succeeds.", "1", "reason"),
    _stage("not_finite", "1 from an attempt that met NaN or infinity until one succeeds.", "1", "term"),
)

SCORING: Final = (
    Metric(f"{PREFIX}scores", "Images that a scorer was asked about.", "images", ("run", "stage", "shard", "scorer")),
    Metric(
        f"{PREFIX}scores_failed",
        "Images that it could not score.",
        "images",
        ("run", "stage", "shard", "scorer", "reason"),
    ),
    Metric(f"{PREFIX}scores_cached", "Answers from the result cache.", "images", ("run", "stage", "shard", "scorer")),
    Metric(f"{PREFIX}scoring_seconds", "Time that it took.", "seconds", ("run", "stage", "shard", "scorer")),
    Metric(f"{PREFIX}scoring_processes_died", "Scoring processes that died.", "1", ("run", "stage", "shard", "scorer")),
    Metric(f"{PREFIX}reward_mean", "Mean reward of the shard.", "reward", ("run", "stage", "shard")),
    Metric(f"{PREFIX}reward_std", "Population standard deviation of them.", "reward", ("run", "stage", "shard")),
    Metric(
        f"{PREFIX}reward_correct_ratio",
        "Share of judged images with the verdict `correct`.",
        "ratio",
        ("run", "stage", "shard"),
    ),
)

TRAINING: Final = (
    Metric(
        f"{PREFIX}gradient_norm", "Gradient norm before the clip, mean over the steps.", "1", ("run", "stage", "role")
    ),
    Metric(f"{PREFIX}gradient_norm_max", "Largest of them.", "1", ("run", "stage", "role")),
    Metric(f"{PREFIX}loss", "A term of a loss, mean over the steps.", "1", ("run", "stage", "role", "term")),
    Metric(f"{PREFIX}gate_closed_ratio", "Share of samples whose gradient a gate set to 0.", "ratio", ("run", "gate")),
    Metric(f"{PREFIX}surrogate_drift", "D: mean squared velocity distance from the base.", "1", ("run",)),
    Metric(
        f"{PREFIX}surrogate_pair_accuracy",
        "Share of pairs of a group that the surrogate orders rightly.",
        "ratio",
        ("run", "split"),
    ),
    Metric(f"{PREFIX}generator_kl", "Reverse-KL term towards the base.", "1", ("run", "stage")),
    Metric(f"{PREFIX}advantage_std", "Population standard deviation of the rewards.", "reward", ("run",)),
    Metric(f"{PREFIX}advantage_clipped_ratio", "Share of advantages that the clip changed.", "ratio", ("run",)),
    Metric(f"{PREFIX}zero_variance_groups_ratio", "Share of groups whose rewards are all equal.", "ratio", ("run",)),
    Metric(f"{PREFIX}evaluation_score", "Overall score on held-out prompts.", "score", ("run", "stage", "model")),
)

RUN: Final = (
    Metric(f"{PREFIX}run_iterations", "Iterations that the run is to have.", "iterations", ("run",)),
    Metric(f"{PREFIX}run_iterations_complete", "Iterations 1 to this one are committed.", "iterations", ("run",)),
    Metric(f"{PREFIX}run_stopped", "1 while STOP lies in the root.", "1", ("run",)),
    Metric(f"{PREFIX}run_records", "Committed records.", "records", ("run", "stage")),
    Metric(
        f"{PREFIX}run_stored_bytes",
        "Size of all objects of a stage; `other` is what lies beside the records.",
        "bytes",
        ("run", "stage"),
    ),
    Metric(
        f"{PREFIX}run_last_commit_timestamp_seconds",
        "When the newest manifest was written, by the store's clock.",
        "seconds since 1970",
        ("run",),
    ),
    Metric(f"{PREFIX}scoring_backlog_shards", "Committed rollouts that are not scored.", "shards", ("run",)),
    Metric(f"{PREFIX}scoring_backlog_age_seconds", "Age of the oldest of them, 0 without any.", "seconds", ("run",)),
)

DRIVER: Final = (
    Metric(f"{PREFIX}driver_events_total", "What happened since this driver began.", "1", ("run", "event"), "counter"),
    Metric(f"{PREFIX}driver_failed_blocks", "Blocks that failed in a row, none with a new iteration.", "1", ("run",)),
    Metric(
        f"{PREFIX}driver_scheduler_errors_total",
        "Requests that the scheduler did not answer.",
        "1",
        ("run",),
        "counter",
    ),
)

SECTIONS: Final[Mapping[str, tuple[Metric, ...]]] = MappingProxyType(
    {"Stages": STAGE, "Scoring": SCORING, "Training": TRAINING, "Run": RUN, "Driver": DRIVER}
)
METRICS: Final[Mapping[str, Metric]] = MappingProxyType({m.name: m for group in SECTIONS.values() for m in group})
"""Every metric by its name."""
