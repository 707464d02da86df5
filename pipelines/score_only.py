"""Score committed rollouts again, by another reward: the CPU pool alone."""
# mypy: allow-untyped-decorators

from kfp import dsl

from components.variant_scoring.component import variant_scoring
from pipelines.pools import PROFILE, placed


@dsl.pipeline(name="tdm-r1-score-only")
def score_only(root: str, variant: str, iterations: list[int], shards: list[int]) -> None:
    """Score the rollouts of some iterations again, one iteration after the other.

    Nothing that is committed changes: the verdicts lie under `variants/` of the same root.

    Args:
        root: run directory, s3://… or a path.
        variant: name that `tdm-r1 variant` gave to the reward.
        iterations: iterations whose rollouts are scored.
        shards: shard numbers, all those of `run.json` or some.
    """
    with (
        dsl.ParallelFor(items=iterations, parallelism=1, name="iterations") as iteration,
        dsl.ParallelFor(items=shards, parallelism=PROFILE.shards_at_once, name="shards") as shard,
    ):
        placed(variant_scoring(root=root, variant=variant, iteration=iteration, shard=shard), pool="scoring")
