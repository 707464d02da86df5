"""Container of the stage `distill_base`."""
# mypy: allow-untyped-decorators, disable-error-code="valid-type"
# ruff: noqa: ARG001 - ports that only order tasks, or that the command finds in `{{$}}`, are not in argv

from kfp import dsl

from components.common import stage_container


@dsl.container_component
def distill_base(
    root: str,
    dep: str,
    record: dsl.Output[dsl.Model],
    done: dsl.OutputPath(str),
) -> dsl.ContainerSpec:
    """Distill the few-step generator that the run starts from, once per run.

    Args:
        root: run directory, s3://… or a path.
        dep: `done` of encode_prompts.
        record: the manifest, with its digest and where it lies.
        done: digest of the committed manifest.
    """
    return stage_container("distill_base", root)
