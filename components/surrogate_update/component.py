"""Container of the stage `surrogate_update`."""
# mypy: allow-untyped-decorators, disable-error-code="valid-type"
# ruff: noqa: ARG001 - ports that only order tasks, or that the command finds in `{{$}}`, are not in argv

from kfp import dsl

from components.common import stage_container


@dsl.container_component
def surrogate_update(
    root: str,
    start: int,
    offset: int,
    deps: list[str],
    metrics: dsl.Output[dsl.Metrics],
    record: dsl.Output[dsl.Model],
    done: dsl.OutputPath(str),
) -> dsl.ContainerSpec:
    """Fit the surrogate reward to the scores of all shards.

    Args:
        root: run directory, s3://… or a path.
        start: first iteration of the block.
        offset: distance from `start`; this is iteration start + offset.
        deps: `done` of every reward_scoring of this iteration.
        metrics: each metric's mean over the steps, for the table in the KFP page.
        record: the manifest, with its digest and where it lies.
        done: digest of the committed manifest.
    """
    return stage_container("surrogate_update", root, iteration=start, offset=offset)
