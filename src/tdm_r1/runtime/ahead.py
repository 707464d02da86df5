"""What comes next: the iterations that are not committed yet, for whoever starts them."""

from __future__ import annotations

from pathlib import Path

from tdm_r1.artifacts.repository import MANIFEST_NAME
from tdm_r1.errors import MissingParentError
from tdm_r1.kfp_outputs import parse_executor_input, write_outputs
from tdm_r1.runtime.layout import Task, generator_before, iteration_tasks
from tdm_r1.runtime.run import Run, open_run

NONE = "none"
"""Stands for the next iteration when there is none: the run is complete, or STOP is set."""


def ahead(run: Run, count: int) -> list[int]:
    """At most `count` iterations from the first that is not whole; none when STOP is set or all are committed."""
    if run.stopped:
        return []
    first = first_open(run)
    return list(range(first, min(first + count, run.config.iterations + 1)))


def first_open(run: Run) -> int:
    """The first iteration that lacks a record; one more than the last when all are there. Lists the root once."""
    keys = frozenset(run.store.list(""))
    for iteration in range(1, run.config.iterations + 1):
        if missing_of(iteration, run, keys):
            return iteration
    return run.config.iterations + 1


def missing_of(iteration: int, run: Run, keys: frozenset[str]) -> list[Task]:
    """Tasks of an iteration that are not committed."""
    tasks = iteration_tasks(iteration, run.config)
    return [task for task in tasks if f"{task.location}/{MANIFEST_NAME}" not in keys]


def require_turn(run: Run, iteration: int) -> None:
    """Refuse an iteration before the one before it is whole.

    Raises:
        MissingParentError: names the first record that is missing.
    """
    if iteration > 1 and (missing := missing_of(iteration - 1, run, frozenset(run.store.list("")))):
        command = " ".join(["tdm-r1 stage", *missing[0].arguments(), "--root", run.root])
        raise MissingParentError(
            f"iteration {iteration} cannot begin: `{run.root}/{missing[0].location}` is not committed",
            hint=f"run `{command}`, or let the loop begin with iteration {iteration - 1}",
        )


def next_iterations(root: str, *, count: int, iteration: int | None, executor_input: str, out: Path | None) -> str:
    """Tell an orchestrator which iterations are next, or whether one may begin.

    Args:
        count: at most so many.
        iteration: look at this one instead of the first that is open.
        executor_input: KFP's, for the outputs `iterations`, `first`, `stop` and `done`.
        out: file for the first iteration or `none`, as Argo wants it.

    Returns:
        The iterations, separated by spaces, or `none`.
    """
    run = open_run(root)
    if iteration is None:
        found = ahead(run, count)
    else:
        require_turn(run, iteration)
        found = [] if run.stopped or iteration > run.config.iterations else [iteration]
    if out is not None:
        out.write_text(str(found[0]) if found else NONE)
    if executor_input:
        parameters = {"iterations": str(found), "stop": "false" if found else "true"}
        if found:
            parameters["done"] = run.manifest(generator_before(found[0])).digest
        else:
            parameters["done"] = NONE
        write_outputs(parse_executor_input(executor_input), parameters=parameters, metrics={}, html=None)
    return " ".join(map(str, found)) or NONE
