"""One pipeline run: what the run needs once, then a block of iterations that each may be skipped."""
# mypy: allow-untyped-decorators

import os
from typing import Final

from kfp import dsl

from components.distill_base.component import distill_base
from components.encode_prompts.component import encode_prompts
from components.evaluation.component import evaluation
from components.skipped.component import skipped
from pipelines.iteration import Progress, iteration
from pipelines.pools import placed

ITERATIONS: Final = int(os.environ.get("TDM_R1_BLOCK_ITERATIONS", "5"))
"""Iterations per block, unrolled when it is compiled. KFP's retry bears 5 with 4 shards and 3 with 8 (`sizes.py`)."""


@dsl.pipeline(name="tdm-r1-guarded-iteration")
def guarded_iteration(root: str, start: int, shards: list[int], offset: int, dep: str, stop: bool) -> Progress:
    """Run iteration start + offset unless the loop was stopped before it.

    A pipeline of its own, because a OneOf that is read inside another If compiles to a pipeline that cannot run.
    """
    with dsl.If(stop == False, name="continue"):  # noqa: E712 - KFP turns the comparison into a condition
        ran = iteration(root=root, start=start, shards=shards, offset=offset, dep=dep)
    with dsl.Else(name="stopped"):
        passed = placed(skipped(dep=dep))
    return Progress(
        dsl.OneOf(ran.outputs["done"], passed.outputs["done"]),
        dsl.OneOf(ran.outputs["stop"], passed.outputs["stop"]),
    )


@dsl.pipeline(name="tdm-r1-block")
def block(root: str, start: int, shards: list[int]) -> None:
    """Run iterations start, start + 1, …, after the prompts and the base model are in place and measured.

    Stages that were committed by an earlier block exit at once, so every block of a run is this same pipeline.

    Args:
        root: run directory, s3://… or a path.
        start: first iteration of the block.
        shards: shard numbers, all those of `run.json`.
    """
    encoded = placed(encode_prompts(root=root))
    distilled = placed(distill_base(root=root, dep=encoded.outputs["done"]))
    dep, stop = distilled.outputs["done"], False
    placed(evaluation(root=root, start=0, offset=0, dep=dep))
    for offset in range(ITERATIONS):
        step = guarded_iteration(root=root, start=start, shards=shards, offset=offset, dep=dep, stop=stop)
        dep, stop = step.outputs["done"], step.outputs["stop"]
