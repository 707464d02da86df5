"""The loop on one machine: in process, or one process per stage. Resumes by itself, for a committed task is free."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tdm_r1.artifacts.repository import read_manifest
from tdm_r1.errors import TdmR1Error
from tdm_r1.models.progress import Progress, silent
from tdm_r1.runtime.execute import execute
from tdm_r1.runtime.layout import Task, all_tasks
from tdm_r1.runtime.run import Run
from tdm_r1.telemetry.metrics import ENVIRONMENT


class StageError(TdmR1Error):
    """A stage's process exited with another code than 0; its own message is on stderr."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message, hint="see the message of the stage above")
        self.code = code


Executor = Callable[[Run, Task, Progress], None]


@dataclass(frozen=True)
class Done:
    """A task that is now committed."""

    task: Task
    position: int
    total: int


def in_process(run: Run, task: Task, progress: Progress) -> None:
    execute(run, task, progress=progress, resumable=True)


def isolated(run: Run, task: Task, progress: Progress) -> None:
    """The command that every orchestrator runs, in a process of its own.

    Raises:
        StageError: when it exits with another code than 0.
    """
    del progress
    if read_manifest(run.store, task.location) is not None:
        return
    command = [sys.executable, "-m", "tdm_r1", "stage", *task.arguments(), "--root", run.root]
    environment = {name: value for name, value in os.environ.items() if name not in ENVIRONMENT}  # we publish for it
    code = subprocess.run(command, check=False, env=environment).returncode
    if code:
        raise StageError(f"`{' '.join(command[2:])}` exited with {code}", code)


def loop(run: Run, executor: Executor = in_process, progress: Progress = silent) -> Iterator[Done]:
    """Commit every task of the run in order, one at a time, until the end or a STOP file.

    A STOP is honoured between iterations, so that none is left half done; killing the process at any
    point costs the running stage and nothing else.
    """
    run.judges.require()
    tasks = all_tasks(run.config)
    begun: int = 0
    for position, task in enumerate(tasks):
        if task.iteration > begun:
            if run.stopped:
                return
            begun = task.iteration
        executor(run, task, progress)
        yield Done(task, position + 1, len(tasks))


def commands(run: Run) -> list[list[str]]:
    """Argv of every task, in order, for those who start them elsewhere."""
    return [["tdm-r1", "stage", *task.arguments(), "--root", run.root] for task in all_tasks(run.config)]


def parameters_of(run: Run) -> dict[str, Any]:
    """What a pipeline run needs beside the root."""
    return {"root": run.root, "start": 1, "shards": list(range(run.config.rollout.shards))}
