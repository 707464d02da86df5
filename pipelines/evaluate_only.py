"""Judge committed evaluations again, by another reward: the CPU pool alone."""
# mypy: allow-untyped-decorators

from kfp import dsl

from components.variant_evaluation.component import variant_evaluation
from pipelines.pools import PROFILE, placed


@dsl.pipeline(name="tdm-r1-evaluate-only")
def evaluate_only(root: str, variant: str, iterations: list[int]) -> None:
    """Judge the images of some evaluations again. Nothing is sampled, and nothing that is committed changes.

    Args:
        root: run directory, s3://… or a path.
        variant: name that `tdm-r1 variant` gave to the reward.
        iterations: iterations whose evaluations are judged; 0 is the base model's.
    """
    with dsl.ParallelFor(items=iterations, parallelism=PROFILE.shards_at_once, name="iterations") as iteration:
        placed(variant_evaluation(root=root, variant=variant, iteration=iteration), pool="scoring")
