"""Container that says which iterations are next."""
# mypy: allow-untyped-decorators, disable-error-code="valid-type"
# ruff: noqa: ARG001 - ports that only order tasks, or that the command finds in `{{$}}`, are not in argv

from kfp import dsl

from components.common import program


@dsl.container_component
def next_iterations(
    root: str,
    count: int,
    dep: str,
    iterations: dsl.OutputPath(list),
) -> dsl.ContainerSpec:
    """Say which iterations are not committed yet; none when the run is complete or stopped.

    Args:
        root: run directory, s3://… or a path.
        count: at most so many.
        dep: what it waits for.
        iterations: their numbers, in order.
    """
    return program("next", root, count=count)
