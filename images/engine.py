"""Docker, Podman or Buildah: the few words that differ between them."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ENGINES: Final = ("docker", "podman", "buildah")
EPOCH: Final = 0
"""Time of every file and of the image, in seconds. Constant, so that a layer changes with its content only."""


class ImageError(RuntimeError):
    """An image cannot be built or pushed; the message says what was found and what to do."""


@dataclass(frozen=True)
class Engine:
    """A program that builds images."""

    name: str
    options: tuple[str, ...] = ()
    """Global options, before the subcommand: `--root=DIR`, say."""

    def build(
        self, containerfile: str, tag: str, arguments: Mapping[str, str], extra: Sequence[str], *, cached: bool
    ) -> str:
        """Build from the current directory.

        Returns:
            The image ID in hex: it hashes the configuration and every layer, equal in a local store and a registry.
        """
        words = ["--file", containerfile, "--tag", tag, *([] if cached else ["--no-cache"])]
        words += [word for name, value in arguments.items() for word in ("--build-arg", f"{name}={value}")]
        if self.name == "docker":
            output = f"type=docker,name={tag},rewrite-timestamp=true"
            words = ["buildx", "build", *words, "--build-arg", f"SOURCE_DATE_EPOCH={EPOCH}", "--output", output]
        else:
            words = ["build", "--layers", "--timestamp", str(EPOCH), *words]
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch) / "id"
            self._run(*words, "--iidfile", str(file), *extra, ".")
            return file.read_text(encoding="utf-8").strip().removeprefix("sha256:")

    def push(self, tag: str) -> str:
        """Push a tag; return the digest that the registry serves it under, which is what a pod is given."""
        if self.name == "docker":
            self._run("push", tag)
            return self._asked("image", "inspect", "--format", "{{index .RepoDigests 0}}", tag).partition("@")[2]
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch) / "digest"
            self._run("push", "--digestfile", str(file), tag)
            return file.read_text(encoding="utf-8").strip()

    def digest(self, reference: str) -> str:
        """The digest of an image by its reference or in the local store; empty when neither tells."""
        if "@" in reference:
            return reference.partition("@")[2]
        inspect = {
            "docker": ("image", "inspect", "--format", '{{join .RepoDigests " "}}'),
            "podman": ("image", "inspect", "--format", "{{.Digest}}"),
            "buildah": ("inspect", "--type", "image", "--format", "{{.FromImageDigest}}"),
        }
        return self._asked(*inspect[self.name], reference).rpartition("@")[2]

    def _run(self, *words: str) -> None:
        """Run a subcommand; what it says goes to stderr."""
        command = [self.name, *self.options, *words]
        if code := subprocess.run(command, stdout=sys.stderr, check=False).returncode:
            raise ImageError(f"`{self.name} {words[0]} …` exited with {code}\n\nhint: its own messages stand above")

    def _asked(self, *words: str) -> str:
        """What a subcommand answers; empty when it fails."""
        command = [self.name, *self.options, *words]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def find_engine(name: str | None, options: Sequence[str] = ()) -> Engine:
    """The engine of that name, or the first of docker, podman and buildah that is installed.

    Raises:
        ImageError: there is none.
    """
    wanted = [name] if name else list(ENGINES)
    found = next((engine for engine in wanted if shutil.which(engine)), None)
    if found is None:
        raise ImageError(f"found none of {', '.join(wanted)}\n\nhint: install one, e.g. apt-get install buildah")
    return Engine(found, tuple(options))
