"""Starts the real program as often as a test wants to kill it, without importing PyTorch each time.

A server process imports the package once. For each start it forks a child that becomes the leader of a
process group of its own and runs `tdm_r1.cli.main`, the entry point of the command `tdm-r1`: after the
fork nothing but the operating system connects it with anything here.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

ENDED_SECONDS = 300
PRELOADED = (
    *("boto3", "boto3.s3.transfer", "matplotlib.backends.backend_svg"),
    *("tdm_r1.cli", "tdm_r1.runtime.command", "tdm_r1.models.plane", "tdm_r1.rewards.plane"),
)
"""What a run imports late, too: the client of S3, for instance."""


@dataclass
class Program:
    """A running `tdm-r1`."""

    group: int
    """Process group, and process id of its leader."""
    status: IO[str]
    output: Path
    code: int | None = None
    """What `wait` returned; None before."""

    def kill(self) -> None:
        """SIGKILL for the whole group; none there is fine."""
        with suppress(ProcessLookupError):
            os.killpg(self.group, signal.SIGKILL)

    def ended(self, seconds: float) -> bool:
        """Wait so long at most; whether it has ended."""
        return bool(select.select([self.status], [], [], seconds)[0])

    def wait(self) -> int:
        """Exit code, or the negative number of the signal that ended it."""
        if self.code is None:
            with self.status:
                self.code = int(self.status.readline())
        return self.code

    @property
    def printed(self) -> str:
        return self.output.read_text(encoding="utf-8", errors="replace")


class Starter:
    """The server, seen from the test."""

    def __init__(self, server: subprocess.Popen[str], folder: Path) -> None:
        self._server, self._folder = server, folder
        self._started: list[Program] = []

    def start(self, *arguments: str, entry: str = "tdm_r1.cli:main", folder: str = "", **environment: str) -> Program:
        """Start `tdm-r1 ARGUMENTS`, or another function with these arguments, and return at once.

        Args:
            folder: where it works; the repository without one.
            environment: over that of the server.
        """
        assert self._server.stdin is not None
        number = len(self._started)
        report, output = self._folder / f"{number}.fifo", self._folder / f"{number}.log"
        os.mkfifo(report)
        order: dict[str, Any] = {"arguments": arguments, "environment": environment, "entry": entry}
        order |= {"report": str(report), "output": str(output), "folder": folder}
        print(json.dumps(order), file=self._server.stdin, flush=True)
        status = report.open(encoding="utf-8")
        report.unlink()
        self._started.append(Program(int(status.readline()), status, output))
        return self._started[-1]

    def run(self, *arguments: str, folder: str = "", **environment: str) -> tuple[int, str]:
        """Exit code and everything printed by `tdm-r1 ARGUMENTS`; the rest as for `start`."""
        program = self.start(*arguments, folder=folder, **environment)
        return program.wait(), program.printed

    def end(self) -> None:
        """Kill what still runs."""
        for program in self._started:
            if program.code is None:
                program.kill()
                program.wait()


def scratch_in(folder: Path) -> Path:
    """Where programs that a test kills leave what they could not delete: pytest removes it with the folder."""
    scratch = folder / "scratch"
    scratch.mkdir(exist_ok=True)
    return scratch


@contextmanager
def preloaded(folder: Path, environment: Mapping[str, str], *more: str) -> Iterator[Starter]:
    """Run the server; when it ends, whatever it started and still runs is killed.

    Args:
        folder: for what programs print, and for their temporary files: a killed one deletes none of its own.
        more: modules that it imports beside those of every run.
    """
    command, home = [sys.executable, "-m", "tests.faults.preloaded", *more], Path(__file__).parents[2]
    inside = {**environment, "TMPDIR": str(scratch_in(folder))}
    with subprocess.Popen(command, env=inside, cwd=home, stdin=subprocess.PIPE, text=True) as server:
        starter = Starter(server, folder)
        try:
            yield starter
        finally:
            starter.end()
            assert server.stdin is not None
            server.stdin.close()
            server.wait(ENDED_SECONDS)


def serve() -> None:
    """Fork one program per line of stdin, until its end."""
    import importlib

    for name in (*PRELOADED, *sys.argv[1:]):
        importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        if os.fork() == 0:
            _watch(json.loads(line))


def _watch(order: Mapping[str, Any]) -> None:
    """Fork the program, wait for its end, and report both; this process does nothing else."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    child = os.fork()
    if child == 0:
        _become(order)
    with suppress(PermissionError, ProcessLookupError):  # it is already the leader, or dead
        os.setpgid(child, child)
    with Path(order["report"]).open("w", encoding="utf-8") as report:
        print(child, file=report, flush=True)
        _, status = os.waitpid(child, 0)
        with suppress(BrokenPipeError):
            print(os.waitstatus_to_exitcode(status), file=report, flush=True)
    os._exit(0)


def _become(order: Mapping[str, Any]) -> None:
    """Be `tdm-r1`: own process group, own output, own arguments."""
    import importlib

    with suppress(PermissionError):  # it is already the leader
        os.setpgid(0, 0)
    output = os.open(order["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for target, source in ((0, nothing), (1, output), (2, output)):
        os.dup2(source, target)
    os.environ.update(order["environment"])
    os.chdir(order["folder"] or ".")
    tempfile.tempdir = None  # of the server's environment: to be looked up again
    sys.argv = ["tdm-r1", *cast(Sequence[str], order["arguments"])]
    module, _, function = order["entry"].partition(":")
    code = 1
    try:
        getattr(importlib.import_module(module), function)()
        code = 0
    except Exception:
        traceback.print_exc()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code & 0xFF)


if __name__ == "__main__":
    serve()
