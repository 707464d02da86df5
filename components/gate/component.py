"""Container that lets an iteration begin."""
# mypy: allow-untyped-decorators, disable-error-code="valid-type"
# ruff: noqa: ARG001 - ports that only order tasks, or that the command finds in `{{$}}`, are not in argv

from kfp import dsl

from components.common import program


@dsl.container_component
def gate(
    root: str,
    iteration: int,
    done: dsl.OutputPath(str),
    stop: dsl.OutputPath(bool),
) -> dsl.ContainerSpec:
    """Let an iteration begin when the one before it is whole, and say whether the loop was stopped.

    Args:
        root: run directory, s3://… or a path.
        iteration: iteration that wants to begin.
        done: digest of the generator that it starts from.
        stop: true if the file STOP is there or the run has no such iteration.
    """
    return program("next", root, iteration=iteration)
