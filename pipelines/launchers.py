"""How a task of a compiled pipeline becomes a process of this machine: the program itself, or its container."""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

Launcher = Callable[[Mapping[str, Any], Sequence[str]], int]
"""From the container of an executor and the argv with every placeholder replaced, to the exit code."""

PROGRAMS: Final[Mapping[str, Sequence[str]]] = {
    "tdm-r1": (sys.executable, "-m", "tdm_r1"),
    "python": (sys.executable,),
}
"""What stands here for the first word of a container's argv."""


def process(argv: Sequence[str]) -> int:
    """Exit code of a process."""
    return subprocess.run(argv, check=False).returncode


@dataclass(frozen=True)
class Processes:
    """Runs the argv itself, with the environment of this process and what the pipeline sets."""

    programs: Mapping[str, Sequence[str]]
    """Replaces argv[0]; other programs run as they are."""

    def __call__(self, container: Mapping[str, Any], argv: Sequence[str]) -> int:
        """Run one task."""
        environment = os.environ | {pair["name"]: pair["value"] for pair in container.get("env", ())}
        command = [*self.programs.get(argv[0], (argv[0],)), *argv[1:]]
        return subprocess.run(command, env=environment, check=False).returncode


@dataclass(frozen=True, kw_only=True)
class Containers:
    """Runs each task in its image, as KFP's pods do: command replaced, read-only root, no capability, no shell."""

    engine: Sequence[str] = ("podman",)
    """The program and its global options; docker takes the same words."""
    folders: Sequence[Path] = ()
    """Folders of this machine that the containers see at the same place: the run directory and the scratch."""
    network: str = "none"
    """`host` when the root is in S3."""
    user: str = "65532:0"
    """UID and GID of the process. Any UID works; GID 0 owns what the image lets be written."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Set in every container, after what the pipeline sets."""
    options: Sequence[str] = ()
    """More words for `run`."""

    def command(self, container: Mapping[str, Any], argv: Sequence[str]) -> list[str]:
        """The whole command line of one task."""
        given = {pair["name"]: pair["value"] for pair in container.get("env", ())} | dict(self.environment)
        return [
            *(*self.engine, "run", "--rm", "--pull", "never", "--network", self.network, "--user", self.user),
            *("--read-only", "--tmpfs", "/tmp", "--cap-drop", "all", "--security-opt", "no-new-privileges"),
            *(word for folder in self.folders for word in ("--volume", f"{folder.resolve()}:{folder.resolve()}")),
            *(word for name, value in given.items() for word in ("--env", f"{name}={value}")),
            *self.options,
            *("--entrypoint", argv[0], container["image"], *argv[1:]),
        ]

    def __call__(self, container: Mapping[str, Any], argv: Sequence[str]) -> int:
        """Run one task."""
        return subprocess.run(self.command(container, argv), check=False).returncode
