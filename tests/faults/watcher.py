"""Sees every change below a directory the moment it happens, so that a kill can land in the middle of a commit."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from inotify_simple import INotify, flags  # type: ignore[import-untyped]

from tdm_r1.artifacts.leftovers import is_temporary
from tdm_r1.artifacts.records import RECORDS
from tdm_r1.runtime.layout import RUN_FILE, Task
from tests.faults.preloaded import Program

CHANGES = flags.CREATE | flags.MODIFY | flags.CLOSE_WRITE | flags.DELETE | flags.MOVED_TO
TICKS = os.sysconf("SC_CLK_TCK")


class Watcher:
    """Counts changes below a folder, in folders that are made later too."""

    def __init__(self, root: Path) -> None:
        self._inotify, self._folders = INotify(), dict[int, Path]()
        self.seen = Counter[str]()
        """Temporary names that were made, by the name that the file was to get."""
        self._watch(root)

    def _watch(self, folder: Path) -> int:
        """Watch a folder and those in it; return how many files lie there already."""
        self._folders[self._inotify.add_watch(folder, CHANGES)] = folder
        inside = list(folder.iterdir())
        self.seen.update(target_of(path.name) for path in inside if is_temporary(path.name))
        return sum(self._watch(path) if path.is_dir() else 1 for path in inside)

    def changes(self, timeout: float) -> int:
        """How many changes there were since the last call; at most `timeout` seconds are waited for the first."""
        count = 0
        for event in self._inotify.read(timeout=timeout * 1000):
            if not event.mask & flags.ISDIR:
                count += 1
                if event.mask & flags.CREATE and is_temporary(event.name):
                    self.seen[target_of(event.name)] += 1
            elif event.mask & flags.CREATE:
                count += self._watch(self._folders[event.wd] / event.name)
        return count

    def close(self) -> None:
        self._inotify.close()


def kill_after_changes(program: Program, root: Path, count: int) -> bool:
    """SIGKILL at the moment of the `count`-th change below `root`; False when the program ended before."""
    watcher = Watcher(root)
    try:
        with first_in_line():
            while count > 0 and not program.ended(0):
                count -= watcher.changes(0.05)
            program.kill()
    finally:
        watcher.close()
    return program.wait() < 0


@contextmanager
def first_in_line() -> Iterator[None]:
    """Let this thread run the moment it wakes, so that a watched program gets no further, if it may ask for that."""
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    with suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    try:
        yield
    finally:
        os.sched_setscheduler(0, *before)


def kill_after_cpu(program: Program, seconds: float) -> bool:
    """SIGKILL once the program has used so much CPU time; False when it ended before."""
    while not program.ended(0.005) and cpu_seconds(program.group) < seconds:
        pass
    program.kill()
    return program.wait() < 0


def cpu_seconds(process: int) -> float:
    """CPU time that a process has used, in user and kernel mode."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return float("inf")
    return (int(fields[11]) + int(fields[12])) / TICKS


def target_of(temporary: str) -> str:
    """The name that a temporary file was to get."""
    return temporary.lstrip(".").rsplit(".", 2)[0]


def names(root: Path) -> set[str]:
    """Every file below a folder, temporary ones too."""
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


def where_it_died(root: Path, before: set[str], tasks: list[Task]) -> tuple[str, str]:
    """Stage and phase in which a run was killed, from what lies there now and lay there before it was started."""
    now = names(root)
    fresh = {Path(name) for name in now - before}
    temporary = sorted(path for path in fresh if is_temporary(path.name))
    if temporary:
        path = temporary[-1]
        target = target_of(path.name)
        stage = next((task.stage for task in tasks if task.location == path.parent.as_posix()), target)
        done = (path.parent / target).as_posix() in now
        kind = "manifest" if target == "manifest.json" else "file"
        return stage, f"commit: {kind} {'in place, its temporary name too' if done else 'written, not in place'}"
    task = next((task for task in tasks if f"{task.location}/manifest.json" not in now), None)
    if RUN_FILE not in now:
        return "start", "nothing there yet"
    if task is None:
        return "pages", "all committed"
    here = {Path(name).name for name in now if Path(name).parent.as_posix() == task.location}
    if here:
        whole = here >= set(RECORDS[task.stage].files())
        return task.stage, f"commit: {'all files, no manifest' if whole else 'some files, no manifest'}"
    return task.stage, "computing, or reading its parents"
