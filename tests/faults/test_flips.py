"""One flipped bit in each kind of file: the audit names it, and so does the command that would read it.

`tests/unit/test_audit.py` flips a bit in every file of a finished run, and in what each stage reads; here is
what those leave out: the configuration, tombstones, and the files of evaluations.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tdm_r1.artifacts.manifest import Manifest
from tdm_r1.artifacts.store import open_store
from tdm_r1.artifacts.tombstone import read_tombstone
from tdm_r1.errors import ArtifactError, ConfigError
from tdm_r1.runtime.audit import audit
from tdm_r1.runtime.run_file import read_config
from tests.faults.guard import Ledger
from tests.support import differing, tdm_r1, tree
from tests.unit.damage import flip

Capture = pytest.CaptureFixture[str]
LAST = "iter-00002/evaluation"
BITS = 600


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


STONE = "iter-00001/surrogate_update"


def readers(run: Path) -> dict[str, tuple[Path, Callable[[], object]]]:
    """Each small file that is read whole, and what reads it."""
    store, manifest = open_store(str(run)), run / LAST / "manifest.json"
    return {
        "run.json": (run / "run.json", lambda: read_config(store)),
        "manifest": (manifest, lambda: Manifest.from_bytes(manifest.read_bytes())),
        "tombstone": (run / STONE / "pruned.json", lambda: read_tombstone(store, STONE)),
    }


@pytest.mark.parametrize("kind", ["run.json", "manifest", "tombstone"])
def test_no_flipped_bit_of_a_small_file_goes_unnoticed_by_its_reader(
    kind: str, run: Path, draw: random.Random, ledger: Callable[[str], Ledger]
) -> None:
    assert tdm_r1("prune", "--root", str(run), "--keep-last", "0", "--yes") == 0
    counts = ledger(f"bit flips, {kind}")
    path, read = readers(run)[kind]
    whole = path.read_bytes()
    for bit in draw.sample(range(len(whole) * 8), min(BITS, len(whole) * 8)):
        flip(path, bit)
        counts.where["refused by its reader"] += 1
        with pytest.raises((ArtifactError, ConfigError)):  # noqa: PT012
            read()
            pytest.fail(f"bit {bit} went unnoticed: {path.read_bytes()[bit // 8 - 20 : bit // 8 + 20]!r}")
        counts.survived += 1
        path.write_bytes(whole)
    read()
    counts.checked += len(whole)
    counts.close()


COMMANDS = [
    ("run.json", ["stage", "rollout", "--iteration", "1"], "configuration"),
    ("run.json", ["stage", "encode_prompts"], "configuration"),
    (f"{LAST}/metrics.parquet", ["report"], "hash"),
    (f"{LAST}/samples.parquet", ["report"], "hash"),
    (f"{LAST}/report.html", ["run"], "hash"),
    ("iter-00001/generator_update/metrics.parquet", ["report"], "hash"),
    ("iter-00002/reward_scoring/shard-0001/part.parquet", ["report"], "hash"),
    ("iter-00002/generator_update/state.safetensors", ["sample", "--prompt", "class 0"], "hash"),
]


@pytest.mark.parametrize(("name", "command", "kind"), COMMANDS)
def test_a_flipped_bit_is_named_by_the_audit_and_by_the_command_that_reads_the_file(
    name: str, command: list[str], kind: str, run: Path, draw: random.Random, tmp_path: Path, capsys: Capture
) -> None:
    flip(run / name, draw.randrange((run / name).stat().st_size * 8))
    found = {(fault.kind, fault.location) for fault in audit(str(run), load=False).faults}
    assert found == {(kind, name)}
    before = tree(run)
    capsys.readouterr()
    out = ["--out", str(tmp_path / "page")] if command[0] in ("report", "sample") else []
    assert tdm_r1(*command, "--root", str(run), *out) == 2
    assert name in capsys.readouterr().err
    assert differing(before, tree(run)) == []


def test_a_flipped_bit_of_a_tombstone_is_named_by_the_audit_and_by_the_stage_that_misses_the_file(
    run: Path, draw: random.Random, capsys: Capture
) -> None:
    assert tdm_r1("prune", "--root", str(run), "--keep-last", "0", "--yes") == 0
    stone = f"{STONE}/pruned.json"
    flip(run / stone, draw.randrange((run / stone).stat().st_size * 8))
    found = {(fault.kind, fault.location) for fault in audit(str(run), load=False).faults}
    assert ("manifest", stone) in found
    assert {kind for kind, _ in found} == {"manifest", "missing"}
    shutil.rmtree(run / "iter-00002/surrogate_update")
    capsys.readouterr()
    assert tdm_r1("stage", "surrogate_update", "--iteration", "2", "--root", str(run)) == 2
    assert stone in capsys.readouterr().err
