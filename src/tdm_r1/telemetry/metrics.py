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
ENVIRONMENT: Final = ("TDM_R1_METRICS_PORT", "TDM_R1_PUSHGATEWAY")
"""Variables that ask for metrics, as the options do."""

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
        "sigma": "range of noise levels: `0-0.25`, `0.25-0.5`, `0.5-0.75`, `0.75-1`; of the generator's loss, "
        "where its step begins",
        "of": "of memory: `process`, `children` (scoring processes) or `cuda`; of work: `images` or `tokens`",
        "event": "what the driver tells its webhook: `submitted`, `progress`, `rule`, `succeeded`, `failed`; "
        "and `unanswered`, a request that the scheduler did not answer",
    }
)
"""What each label means."""


@dataclass(frozen=True)
class Metric:
    """One name that is published."""

    name: str
    help: str
    unit: str
    labels: tuple[str, ...]
    kind: Literal["gauge", "counter"] = "gauge"


def _shard(name: str, help_: str, unit: str, *labels: str) -> Metric:
    return Metric(f"{PREFIX}{name}", help_, unit, ("run", "stage", "shard", *labels))


def _stage(name: str, help_: str, unit: str, *labels: str) -> Metric:
    return _shard(f"stage_{name}", help_, unit, *labels)


def _trained(name: str, help_: str, unit: str, *labels: str) -> Metric:
    return Metric(f"{PREFIX}{name}", help_, unit, ("run", "stage", *labels))


STAGE: Final = (
    _stage("running", "1 while the stage runs; only on /metrics.", "1"),
    _stage("steps", "Steps of the part at hand: optimizer steps, or images to score; only on /metrics.", "steps"),
    _stage("steps_done", "Steps of them that are done; only on /metrics.", "steps"),
    _stage("started_timestamp_seconds", "When the stage that runs began; only on /metrics.", "seconds since 1970"),
    _stage("committed_timestamp_seconds", "When the newest record was finished.", "seconds since 1970"),
    _stage("iteration", "Iteration of the newest record.", "iterations"),
    _stage("iterations_left", "Iterations of the run after that one.", "iterations"),
    _stage("seconds", "What the newest record took, loading and committing included.", "seconds"),
    _stage("queue_seconds", "From the newest parent's end to this stage's start, by their two clocks.", "seconds"),
    _stage("committed_bytes", "Size of the newest record.", "bytes"),
    _stage("images", "Images of the newest record: sampled, scored or passed through what is trained.", "images"),
    _stage("images_per_second", "Images by seconds.", "images per second"),
    _stage(
        "tokens_per_second", "Patches and words that passed through what is trained, by seconds.", "tokens per second"
    ),
    _stage("memory_peak_bytes", "Largest resident memory since the process began.", "bytes", "of"),
    _stage("failed", "1 from a failed attempt until one succeeds.", "1", "reason"),
    _stage("not_finite", "1 from an attempt that met NaN or infinity until one succeeds.", "1", "term"),
)

SCORING: Final = (
    _shard("scores", "Images that a scorer was asked about.", "images", "scorer"),
    _shard("scores_failed", "Images that it could not score.", "images", "scorer", "reason"),
    _shard("scores_cached", "Answers from the result cache.", "images", "scorer"),
    _shard("scoring_seconds", "Time that it took.", "seconds", "scorer"),
    _shard("scoring_processes_died", "Scoring processes that died.", "1", "scorer"),
    _shard("reward_mean", "Mean reward of the shard.", "reward"),
    _shard("reward_std", "Population standard deviation of them.", "reward"),
    _shard("reward_correct_ratio", "Share of judged images with the verdict `correct`.", "ratio"),
)

TRAINING: Final = (
    _trained("gradient_norm", "Gradient norm before the clip, mean over the steps.", "1", "role"),
    _trained("gradient_norm_max", "Largest of them.", "1", "role"),
    _trained("loss", "A term of a loss, mean over the steps.", "1", "role", "term"),
    _trained("loss_by_sigma", "The same over samples of a range of noise levels.", "1", "role", "term", "sigma"),
    _trained("trained", "Images, and patches and words of them, that were trained on.", "1", "role", "of"),
    _trained("gate_closed_ratio", "Share of samples whose gradient a gate set to 0.", "ratio", "gate"),
    _trained("surrogate_drift", "D: mean squared velocity distance from the base.", "1"),
    _trained("surrogate_pair_accuracy_ratio", "Share of pairs of a group that it orders rightly.", "ratio", "split"),
    _trained("generator_kl", "Estimate of the reverse KL towards the base: the loss term.", "1"),
    _trained("advantage_std", "Population standard deviation of the rewards.", "reward"),
    _trained("advantage_clipped_ratio", "Share of advantages that the clip changed.", "ratio"),
    _trained("zero_variance_groups_ratio", "Share of groups whose rewards are all equal.", "ratio"),
    _trained("evaluation_score", "Overall score on held-out prompts.", "score", "model"),
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
    Metric(f"{PREFIX}driver_failed_blocks", "Blocks that failed in a row without a new iteration.", "1", ("run",)),
)

SECTIONS: Final[Mapping[str, tuple[Metric, ...]]] = MappingProxyType(
    {"Stages": STAGE, "Scoring": SCORING, "Training": TRAINING, "Run": RUN, "Driver": DRIVER}
)
METRICS: Final[Mapping[str, Metric]] = MappingProxyType({m.name: m for group in SECTIONS.values() for m in group})
"""Every metric by its name."""
