"""What several tests need: a folder built once for all workers, the command line in process, and a run's content."""

from __future__ import annotations

import fcntl
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import pytest

from tdm_r1.artifacts.leftovers import is_temporary
from tdm_r1.artifacts.repository import read_manifest
from tdm_r1.artifacts.store import open_store
from tdm_r1.cli import main

TINY: Final[Mapping[str, Any]] = {
    "numerics.threads": 1,
    "iterations": 2,
    "distill.steps": 3,
    "distill.batch": 16,
    "rollout.groups": 4,
    "rollout.group_size": 4,
    "rollout.shards": 2,
    "surrogate.minibatch_groups": 4,
    "surrogate.microbatch_groups": 2,
    "surrogate.updates": 2,
    "surrogate.replay": 1,
    "generator.minibatch": 16,
    "evaluation.every": 1,
    "evaluation.prompts": 12,
    "evaluation.teacher_steps": 2,
    "evaluation.bootstrap": 50,
}
"""Overrides that turn the preset `plane` into a run of about a second, with rewards that differ inside a group."""


def once(path: Path, build: Callable[[Path], object]) -> Path:
    """Build a folder unless another worker of this test session did."""
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            scratch = path.with_suffix(".part")
            shutil.rmtree(scratch, ignore_errors=True)
            build(scratch)
            scratch.rename(path)
    return path


def settings(overrides: Mapping[str, Any]) -> list[str]:
    """`--set KEY=VALUE` for each override."""
    return [word for key, value in overrides.items() for word in ("--set", f"{key}={value}")]


def plane_run(root: Path, **overrides: Any) -> list[str]:
    """Arguments that start a tiny run in the plane; `a__b=1` sets `a.b`."""
    changed = {key.replace("__", "."): value for key, value in overrides.items()}
    return ["run", "--root", str(root), "--preset", "plane", *settings({**TINY, **changed})]


def tdm_r1(*arguments: str) -> int:
    """Exit code of `tdm-r1 ARGUMENTS`, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["tdm-r1", *arguments])
        try:
            main()
        except SystemExit as stop:
            return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return 0


def tree(root: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, unfinished ones included; empty when there is no folder."""
    return {
        path.relative_to(root).as_posix(): sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def content(root: Path) -> dict[str, str]:
    """What a run holds: SHA-256 of each file, but of a manifest the digest, which leaves provenance out."""
    files = {name: digest for name, digest in tree(root).items() if not is_temporary(Path(name).name)}
    store = open_store(str(root))
    for name in files:
        location, _, last = name.rpartition("/")
        if last == "manifest.json":
            manifest = read_manifest(store, location)
            assert manifest is not None
            files[name] = manifest.digest
    return files


def differing(left: Mapping[str, str], right: Mapping[str, str]) -> Sequence[str]:
    """Names whose content is not the same in both, or which only one of them has."""
    return sorted(name for name in left.keys() | right.keys() if left.get(name) != right.get(name))
