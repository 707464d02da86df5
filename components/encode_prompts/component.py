"""Container of the stage `encode_prompts`."""
# mypy: allow-untyped-decorators, disable-error-code="valid-type"
# ruff: noqa: ARG001 - ports that only order tasks, or that the command finds in `{{$}}`, are not in argv

from kfp import dsl

from components.common import stage_container


@dsl.container_component
def encode_prompts(
    root: str,
    record: dsl.Output[dsl.Dataset],
    done: dsl.OutputPath(str),
) -> dsl.ContainerSpec:
    """Write the prompt table and its cached text embeddings, once per run.

    Args:
        root: run directory, s3://… or a path.
        record: the manifest, with its digest and where it lies.
        done: digest of the committed manifest.
    """
    return stage_container("encode_prompts", root)
