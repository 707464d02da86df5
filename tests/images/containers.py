"""Images built and run for real, in a store of this checkout, which `make clean-containers` drops."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from images.build import REGISTRY

ROOT: Final = Path(__file__).parents[2]
STORE: Final = ROOT / "build/containers"
WHEELHOUSE: Final = ROOT / "images/wheelhouse"
BASE: Final = "localhost/python-stand-in:3.11-bookworm"
"""Stands for the public base, which no test can pull: Debian's own Python 3.11."""
PACKAGES: Final = "python3,python3-pip,python3-venv,ca-certificates"
TAG: Final = "test"
PODMAN: Final = (
    "podman",
    *("--root", str(STORE / "storage"), "--runroot", str(STORE / "run"), "--storage-driver", "overlay"),
    *("--runtime", "runc", "--cgroup-manager", "cgroupfs", "--events-backend", "file"),
)
LIMITS: Final = ("--ulimit", "nofile=4096:4096", "--ulimit", "nproc=4096:4096")
"""Podman's own defaults ask for more than a container inside a container may have."""
NO_SHELL: Final = ("--volume", "/dev/null:/usr/bin/dash:ro", "--volume", "/dev/null:/usr/bin/bash:ro")
"""Puts nothing in the place of every shell of the base."""
ANYBODY: Final = "1234567:0"
"""A UID that no image knows, as OpenShift gives; its group is root's."""


@dataclass(frozen=True)
class Image:
    """A built image."""

    name: str
    image_id: str
    """SHA-256 of its configuration, which names every layer."""
    reference: str
    """By the digest that it has in the store."""


def podman(*words: str) -> str:
    """What a podman command answers; it must succeed."""
    ended = subprocess.run([*PODMAN, *words], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, f"podman {' '.join(words)}\n{ended.stderr[-3000:]}"
    return ended.stdout.strip()


@contextmanager
def locked() -> Iterator[None]:
    """One worker at a time."""
    STORE.mkdir(parents=True, exist_ok=True)
    with (STORE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def ensure_base() -> None:
    """Make the stand-in of the base, once per checkout."""
    if subprocess.run([*PODMAN, "image", "exists", BASE], check=False).returncode == 0:
        return
    tar = STORE / "base.tar"
    hooks = ('ln -s python3 "$1/usr/bin/python"', 'rm -f "$1"/usr/lib/python3*/EXTERNALLY-MANAGED')
    excluded = ("doc", "man", "locale", "info")
    words = [
        *("mmdebstrap", "--quiet", "--variant=minbase", f"--include={PACKAGES}"),
        *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in excluded),
        *(f"--customize-hook={hook}" for hook in hooks),
        *("bookworm", str(tar)),
    ]
    subprocess.run(words, check=True)
    podman("import", str(tar), BASE)
    tar.unlink()


def build(name: str, *, fresh: bool = False) -> Image:
    """Build an image as `make images` does, from the wheelhouse and without an index."""
    tag = f"{name}-{TAG}-fresh" if fresh else f"{name}-{TAG}"
    words = [
        *(sys.executable, "-m", "images.build", "--engine", "podman", "--base", BASE, "--tag", tag),
        *(f"--engine-option={word}" for word in PODMAN[1:]),
        *("--option=--isolation=chroot", "--option=--pull=never", "--option=--network=host"),
        *("--build-arg=PIP_ARGS=--no-index --find-links /wheels", "--revision=test"),
        *(["--no-cache"] if fresh else []),
    ]
    ended = subprocess.run([*words, name], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, f"{ended.stdout}{ended.stderr[-5000:]}"
    _, reference, image_id = ended.stdout.split()
    assert image_id == f"sha256:{podman('image', 'inspect', '--format', '{{.Id}}', reference)}"
    digest = podman("image", "inspect", "--format", "{{.Digest}}", reference)
    return Image(name, image_id.removeprefix("sha256:"), f"{REGISTRY}/{name}@{digest}")


def built(names: Sequence[str]) -> dict[str, Image]:
    """The images by name; what has not changed since the last time comes from the cache of layers.

    The first is built alone, for it makes the layers that all share; then two at a time.
    """
    with locked(), ThreadPoolExecutor(2) as pool:
        wheels = pool.submit(download_wheels, names)
        pool.submit(ensure_base).result()
        wheels.result()
        first, *others = names
        return {first: build(first), **dict(zip(others, pool.map(build, others), strict=True))}


def download_wheels(names: Sequence[str]) -> None:
    """Fill the wheelhouse; what lies there already is only hashed."""
    subprocess.run([sys.executable, "-m", "images.wheelhouse", *names, *wheel_options()], cwd=ROOT, check=True)


def wheel_options() -> list[str]:
    """Where torch without CUDA lies on this machine; PyTorch's index if it lies nowhere."""
    folder = os.environ.get("PIP_FIND_LINKS")
    return ["--", "--find-links", folder] if folder else []


def run(
    image: Image, *words: str, mounts: Sequence[Path] = (), network: str = "none", environment: Mapping[str, str] = {}
) -> subprocess.CompletedProcess[str]:
    """Run a command of an image as anybody, with a read-only root, no capability and no shell."""
    command = [
        *(*PODMAN, "run", "--rm", "--pull", "never", "--network", network, "--user", ANYBODY, *LIMITS, *NO_SHELL),
        *("--read-only", "--cap-drop", "all", "--security-opt", "no-new-privileges"),
        *(word for folder in mounts for word in ("--volume", f"{folder}:{folder}")),
        *(word for name, value in environment.items() for word in ("--env", f"{name}={value}")),
        *(image.reference, *words),
    ]
    return subprocess.run(command, capture_output=True, text=True, check=False)
