"""Container of the stage `evaluation`."""
# mypy: allow-untyped-decorators, disable-error-code="valid-type"
# ruff: noqa: ARG001 - ports that only order tasks, or that the command finds in `{{$}}`, are not in argv

from kfp import dsl

from components.common import stage_container


@dsl.container_component
def evaluation(
    root: str,
    start: int,
    offset: int,
    dep: str,
    metrics: dsl.Output[dsl.Metrics],
    report: dsl.Output[dsl.HTML],
    record: dsl.Output[dsl.Artifact],
    done: dsl.OutputPath(str),
    stop: dsl.OutputPath(bool),
) -> dsl.ContainerSpec:
    """Measure the generator, write the report, and say whether the loop shall stop.

    Args:
        root: run directory, s3://… or a path.
        start: first iteration of the block.
        offset: distance from `start`; this is iteration start + offset.
        dep: `done` of generator_update.
        metrics: scalars for the run's table in the KFP page.
        report: the committed report.html.
        record: the manifest, with its digest and where it lies.
        done: digest of the committed manifest.
        stop: true if a rule or the file STOP ends the loop here.
    """
    return stage_container("evaluation", root, iteration=start, offset=offset)
