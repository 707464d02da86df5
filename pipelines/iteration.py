"""One iteration of the loop: shards of rollout and scoring, then the two updates, then the evaluation."""
# mypy: allow-untyped-decorators

from typing import NamedTuple

from kfp import dsl

from components.evaluation.component import evaluation
from components.generator_update.component import generator_update
from components.reward_scoring.component import reward_scoring
from components.rollout.component import rollout
from components.surrogate_update.component import surrogate_update
from pipelines.pools import PROFILE, placed


class Progress(NamedTuple):
    """What an iteration tells the next one."""

    done: str
    """Digest of the last committed manifest."""
    stop: bool
    """True when the loop is over."""


@dsl.pipeline(name="tdm-r1-iteration")
def iteration(root: str, start: int, shards: list[int], offset: int = 0, dep: str = "") -> Progress:
    """Run iteration start + offset.

    Tasks are ordered by the digests that they hand on, so the order is also the lineage that the page shows.

    Args:
        root: run directory, s3://… or a path.
        start: first iteration of the block.
        shards: shard numbers, all those of `run.json`.
        offset: distance from `start`.
        dep: digest that the rollouts wait for; empty when nothing has to be waited for.
    """
    at = {"root": root, "start": start, "offset": offset}
    with dsl.ParallelFor(items=shards, parallelism=PROFILE.shards_at_once, name="shards") as shard:
        sampled = placed(rollout(**at, shard=shard, dep=dep))
        scored = placed(reward_scoring(**at, shard=shard, dep=sampled.outputs["done"]))
    fitted = placed(surrogate_update(**at, deps=dsl.Collected(scored.outputs["done"])))
    moved = placed(generator_update(**at, dep=fitted.outputs["done"]))
    measured = placed(evaluation(**at, dep=moved.outputs["done"]))
    return Progress(measured.outputs["done"], measured.outputs["stop"])
