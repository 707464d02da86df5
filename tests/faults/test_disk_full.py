"""A disk that is full: a clear error and exit code 2, nothing committed, and after space was made the same bytes."""

from __future__ import annotations

import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.guard import Guard, Ledger
from tests.faults.preloaded import Starter
from tests.faults.watcher import names
from tests.support import content, differing, plane_run

pytestmark = pytest.mark.slow

FULL = 2
ROOMY = 64 << 20


class Disk:
    """A file system of its own, of a size that can be changed while it is mounted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def mount(self, size: int) -> None:
        folder = self.folder
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        if not shutil.which("mount") or subprocess.run(command, check=False, capture_output=True).returncode:
            pytest.skip("this user may not mount a tmpfs; tests/unit/test_store.py fills a quota instead")

    def resize(self, size: int) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", str(self.folder)], check=True)

    def free(self) -> int:
        return shutil.disk_usage(self.folder).free


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """Not mounted yet; unmounted at the end whatever happened, also while something still holds a file of it."""
    found = Disk(tmp_path / "disk")
    try:
        yield found
    finally:
        if found.folder.is_mount():
            subprocess.run(["umount", "--lazy", str(found.folder)], check=True)


def test_a_run_on_a_disk_that_fills_stops_with_an_error_and_goes_on_when_there_is_space(
    starter: Starter,
    finished: Path,
    disk: Disk,
    draw: random.Random,
    ledger: Callable[[str], Ledger],
) -> None:
    counts, root = ledger("disk full"), disk.folder / "run"
    disk.mount(size := 16 << 10)
    guard = Guard(str(root))
    while (done := starter.run(*plane_run(root)))[0] != 0:
        code, printed = done
        assert code == FULL, printed
        assert "error: no space is left to write" in printed
        assert f"`{root}" in printed
        assert "hint: free some space" in printed
        assert "Traceback" not in printed
        last = printed.partition("no space is left to write `")[2].partition("`")[0]
        counts.where[Path(last).parent.name if Path(last).suffix else Path(last).name] += 1
        counts.survived += guard.check()
        assert not any(".tmp" in name for name in names(root)), "an unfinished file takes space"
        disk.resize(size := int(size * draw.uniform(1.5, 3)))
        assert size < ROOMY
    assert guard.check()
    assert differing(content(finished), content(root)) == []
    assert starter.run("audit", str(root))[0] == 0
    assert counts.injected >= 4
    counts.close(guard)


def test_a_full_scratch_folder_stops_a_run_with_an_error_and_commits_nothing(
    starter: Starter, finished: Path, disk: Disk, tmp_path: Path, ledger: Callable[[str], Ledger]
) -> None:
    counts, root = ledger("scratch folder full"), tmp_path / "run"
    disk.mount(4 << 10)
    code, printed = starter.run(*plane_run(root), TMPDIR=str(disk.folder))
    assert code == FULL, printed
    assert "error: no space is left to write" in printed
    assert "Traceback" not in printed
    counts.where["prompts"] += 1
    counts.survived += names(root) <= {"run.json"}
    disk.resize(ROOMY)
    code, printed = starter.run(*plane_run(root), TMPDIR=str(disk.folder))
    assert code == 0, printed
    guard = Guard(str(root))
    assert guard.check()
    assert differing(content(finished), content(root)) == []
    assert list(disk.folder.iterdir()) == []
    counts.close(guard)
