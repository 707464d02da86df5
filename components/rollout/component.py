"""Container of the stage `rollout`."""
# mypy: allow-untyped-decorators, disable-error-code="valid-type"
# ruff: noqa: ARG001 - ports that only order tasks, or that the command finds in `{{$}}`, are not in argv

from kfp import dsl

from components.common import stage_container


@dsl.container_component
def rollout(
    root: str,
    start: int,
    offset: int,
    shard: int,
    dep: str,
    record: dsl.Output[dsl.Dataset],
    done: dsl.OutputPath(str),
) -> dsl.ContainerSpec:
    """Sample the trajectories of one shard of prompts.

    Args:
        root: run directory, s3://… or a path.
        start: first iteration of the block.
        offset: distance from `start`; this is iteration start + offset.
        shard: shard number, from 0.
        dep: `done` of the evaluation before, or of distill_base.
        record: the manifest, with its digest and where it lies.
        done: digest of the committed manifest.
    """
    return stage_container("rollout", root, iteration=start, offset=offset, shard=shard)
