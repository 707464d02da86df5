"""Container of the stage `reward_scoring`."""
# mypy: allow-untyped-decorators, disable-error-code="valid-type"
# ruff: noqa: ARG001 - ports that only order tasks, or that the command finds in `{{$}}`, are not in argv

from kfp import dsl

from components.common import SCORER_IMAGE, stage_container


@dsl.container_component
def reward_scoring(
    root: str,
    start: int,
    offset: int,
    shard: int,
    dep: str,
    record: dsl.Output[dsl.Dataset],
    done: dsl.OutputPath(str),
) -> dsl.ContainerSpec:
    """Score the final images of one shard.

    Args:
        root: run directory, s3://… or a path.
        start: first iteration of the block.
        offset: distance from `start`; this is iteration start + offset.
        shard: shard number, from 0.
        dep: `done` of the rollout of the same shard.
        record: the manifest, with its digest and where it lies.
        done: digest of the committed manifest.
    """
    return stage_container("reward_scoring", root, image=SCORER_IMAGE, iteration=start, offset=offset, shard=shard)
