"""Container of the stage `generator_update`."""
# mypy: allow-untyped-decorators, disable-error-code="valid-type"
# ruff: noqa: ARG001 - ports that only order tasks, or that the command finds in `{{$}}`, are not in argv

from kfp import dsl

from components.common import stage_container


@dsl.container_component
def generator_update(
    root: str,
    start: int,
    offset: int,
    dep: str,
    metrics: dsl.Output[dsl.Metrics],
    record: dsl.Output[dsl.Model],
    done: dsl.OutputPath(str),
) -> dsl.ContainerSpec:
    """Move the generator along the surrogate reward.

    Args:
        root: run directory, s3://… or a path.
        start: first iteration of the block.
        offset: distance from `start`; this is iteration start + offset.
        dep: `done` of surrogate_update.
        metrics: each metric's mean over the steps, for the table in the KFP page.
        record: the manifest, with its digest and where it lies.
        done: digest of the committed manifest.
    """
    return stage_container("generator_update", root, iteration=start, offset=offset)
