"""Tasks in processes of their own that are forked with PyTorch loaded: the argv, and nothing else, is what they get.

That processes which load everything themselves commit the same bytes is what tests/parity proves for a whole run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.launchers import PROGRAMS, Processes
from tdm_r1.artifacts.store import open_store
from tdm_r1.runtime.layout import all_tasks
from tdm_r1.runtime.run_file import read_config
from tests.faults.preloaded import Starter


def never() -> bool:
    """For a task that nobody kills."""
    return False


@dataclass(frozen=True)
class Forked:
    """A launcher for `pipelines.local`; a program other than `tdm-r1` is started as usual."""

    starter: Starter
    doomed: Callable[[], bool] = never
    """Asked while a task runs: True kills it, with all that it started."""

    def __call__(self, container: Mapping[str, Any], argv: Sequence[str]) -> int:
        """Run one task."""
        if argv[0] != "tdm-r1":
            return Processes(PROGRAMS)(container, argv)
        environment = {pair["name"]: pair["value"] for pair in container.get("env", ())}
        program = self.starter.start(*argv[1:], **environment)
        while not program.ended(0.05):
            if self.doomed():
                program.kill()
        code = program.wait()
        print(program.printed)
        return code


def all_but_the_last(root: str, starter: Starter, **environment: str) -> None:
    """Commit every task of a new run but the last, one process per stage, in order."""
    for task in all_tasks(read_config(open_store(root)))[:-1]:
        code, printed = starter.run("stage", *task.arguments(), "--root", root, **environment)
        assert code == 0, printed
