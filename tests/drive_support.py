"""What the tests of the driver share: an unfinished run, work that commits real records, and the driver's commands."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from pipelines.compile import COMPILED
from pipelines.local import TaskFailedError, task_argvs
from tdm_r1.artifacts.store import open_store
from tdm_r1.runtime.layout import iteration_tasks, once_tasks
from tdm_r1.runtime.run_file import read_config
from tests.faults.preloaded import Starter, scratch_in
from tests.forked import Forked
from tests.kfp_server import KfpServer, Work
from tests.support import content, differing

BLOCK: Final = str(COMPILED / "block.yaml")
QUICK: Final = ("--poll", "0.05", "--lease-seconds", "20")
SHORT: Final = ("--lease-seconds", "3")
"""A lease that a test waits for."""
WITHOUT: Final = ("iter-00000/", "drive/", "result.json", "report.html")
"""Of the baseline that a block may leave out, of the driver, and of `tdm-r1 run`."""


def begun(finished: Path, root: Path) -> Path:
    """A run that has its configuration and nothing else."""
    root.mkdir(parents=True)
    shutil.copy(finished / "run.json", root)
    return root


def committing(
    finished: Path,
    *,
    per_block: int = 5,
    fail_after: Sequence[int] = (),
    hold: threading.Event | None = None,
    writes: bool = True,
) -> Work:
    """Work that commits the records of a finished run, in order, files first.

    Args:
        per_block: iterations of a block.
        fail_after: for each run in turn, the number of records after which it fails; then none fails.
        hold: nothing is committed before this is set.
        writes: False for pods whose storage is another one.
    """
    config = read_config(open_store(str(finished)))
    failures = list(fail_after)

    def work(parameters: Mapping[str, Any], spec: Mapping[str, Any], ended: threading.Event) -> str | None:
        del spec
        root, start = Path(parameters["root"]), parameters["start"]
        budget = failures.pop(0) if failures else sys.maxsize
        while hold is not None and not hold.is_set() and not ended.is_set():
            time.sleep(0.01)
        numbers = range(start, min(start + per_block, config.iterations + 1))
        for iteration, tasks in [(0, once_tasks()), *((n, iteration_tasks(n, config)) for n in numbers)]:
            if not writes or ended.is_set() or (iteration > start and (root / "STOP").exists()):
                break
            for task in tasks:
                if (root / task.location / "manifest.json").exists():
                    continue
                if budget == 0:
                    return "exit code 75"
                budget -= 1
                copied(finished / task.location, root / task.location)
        return None

    return work


def copied(source: Path, target: Path) -> None:
    """Commit a record: its manifest last."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("manifest.json"))
    shutil.copy(source / "manifest.json", target)


def executing(scratch: Path, starter: Starter, fail_after: Sequence[int] = ()) -> Work:
    """Work that really executes the submitted pipeline: each task's own argv as a process on this machine.

    Args:
        fail_after: for each run in turn, the number of manifests after which its process is killed.
    """
    kills = list(fail_after)

    def work(parameters: Mapping[str, Any], spec: Mapping[str, Any], ended: threading.Event) -> str | None:
        limit = kills.pop(0) if kills else sys.maxsize
        root = Path(parameters["root"])

        def doomed() -> bool:
            return ended.is_set() or len(list(root.rglob("manifest.json"))) >= limit

        ir = json.loads(json.dumps(spec.get("pipeline_spec", spec)))  # as it came over the wire
        place = Path(tempfile.mkdtemp(dir=scratch))
        try:
            for _ in task_argvs(ir, parameters, scratch=place, launcher=Forked(starter, doomed)):
                pass
        except TaskFailedError as error:
            return f"exit code {error.code}"
        return None

    return work


def arguments(server: KfpServer, root: Path, *more: str) -> list[str]:
    """Of `tdm-r1`, to drive a run."""
    return ["drive", "--root", str(root), "--endpoint", server.endpoint, "--pipeline", BLOCK, *QUICK, *more]


def started(server: KfpServer, root: Path, *more: str) -> subprocess.Popen[str]:
    """The driver in a process of its own."""
    command = [sys.executable, "-m", "tdm_r1", *arguments(server, root, *more)]
    environment = {**os.environ, "TMPDIR": str(scratch_in(root.parent))}
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    """Wait for a condition."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def names(server: KfpServer) -> list[str]:
    """Of the blocks that were submitted, without what is random in them: `run b00001 i00001`."""
    return [body["display_name"].rpartition("-")[0] for body in server.bodies]


def uncommitted(finished: Path, root: Path) -> list[str]:
    """Names that differ from the finished run, but for what a block does not make."""
    return [name for name in differing(content(finished), content(root)) if not name.startswith(WITHOUT)]


def journal(root: Path) -> list[str]:
    """How every submission ended."""
    ends = sorted(root.glob("drive/submissions/*/end.json"))
    return [json.loads(path.read_text())["ended"] for path in ends]
