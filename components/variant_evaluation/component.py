"""Container of the stage `evaluation` for a variant."""
# mypy: allow-untyped-decorators, disable-error-code="valid-type"
# ruff: noqa: ARG001 - ports that only order tasks, or that the command finds in `{{$}}`, are not in argv

from kfp import dsl

from components.common import SCORER_IMAGE, stage_container


@dsl.container_component
def variant_evaluation(
    root: str,
    variant: str,
    iteration: int,
    metrics: dsl.Output[dsl.Metrics],
    report: dsl.Output[dsl.HTML],
    record: dsl.Output[dsl.Artifact],
    done: dsl.OutputPath(str),
) -> dsl.ContainerSpec:
    """Judge the images of a committed evaluation again, by the reward of a variant.

    Args:
        root: run directory, s3://… or a path.
        variant: name that `tdm-r1 variant` gave to the reward.
        iteration: iteration whose evaluation is judged.
        metrics: scalars for the table in the KFP page.
        report: the committed report.html.
        record: the manifest, with its digest and where it lies.
        done: digest of the committed manifest.
    """
    return stage_container("evaluation", root, image=SCORER_IMAGE, iteration=iteration, variant=variant)
