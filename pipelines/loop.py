"""A recurring run of constant size: whatever iterations are next, one after the other."""
# mypy: allow-untyped-decorators

from kfp import dsl

from components.distill_base.component import distill_base
from components.encode_prompts.component import encode_prompts
from components.evaluation.component import evaluation
from components.gate.component import gate
from components.next_iterations.component import next_iterations
from pipelines.block import ITERATIONS, guarded_iteration
from pipelines.pools import placed


@dsl.pipeline(name="tdm-r1-loop")
def loop(root: str, shards: list[int], count: int = ITERATIONS) -> None:
    """Run the next iterations that are not committed yet; none when the run is complete or stopped.

    Compiles to the same size for any count. For a recurring run with one run at a time and without catching up.

    Args:
        root: run directory, s3://… or a path.
        shards: shard numbers, all those of `run.json`.
        count: at most so many iterations in this run.
    """
    encoded = placed(encode_prompts(root=root))
    distilled = placed(distill_base(root=root, dep=encoded.outputs["done"]))
    placed(evaluation(root=root, start=0, offset=0, dep=distilled.outputs["done"]))
    ahead = placed(next_iterations(root=root, count=count, dep=distilled.outputs["done"]))
    with dsl.ParallelFor(items=ahead.output, parallelism=1, name="iterations") as number:
        opened = placed(gate(root=root, iteration=number))
        guarded_iteration(
            root=root,
            start=number,
            shards=shards,
            offset=0,
            dep=opened.outputs["done"],
            stop=opened.outputs["stop"],
        )
