"""What killed and losing writers really left behind is ignored by readers, and swept; a living writer's files stay."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from tdm_r1.artifacts.leftovers import ADOPTED_SECONDS
from tdm_r1.artifacts.records import GeneratorState
from tdm_r1.artifacts.repository import commit, load
from tdm_r1.artifacts.store import open_store
from tdm_r1.errors import ArtifactError
from tdm_r1.runtime.audit import audit
from tests.faults.preloaded import Starter
from tests.faults.s3_run import environment, objects, uploads
from tests.faults.test_kill_s3 import Trigger, a_write, line
from tests.faults.watcher import kill_after_changes, names
from tests.s3 import Server
from tests.s3_proxy import Request
from tests.support import content, differing, plane_run, tdm_r1, tree

Capture = pytest.CaptureFixture[str]
LAST = "iter-00002/generator_update"


def swept(capsys: Capture, root: str, *options: str) -> dict[str, Any]:
    capsys.readouterr()
    assert tdm_r1("sweep", root, "--json", *options) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def listed(plan: dict[str, Any], which: str = "doomed") -> dict[str, str]:
    return {leftover["entry"]["key"]: leftover["why"] for leftover in plan[which]}


def age(root: Path, hours: float) -> None:
    """Let every file of a run be older."""
    then = time.time() - hours * 3600
    for path in root.rglob("*"):
        os.utime(path, (then, then))


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run", copy_function=shutil.copyfile))  # all of it is young


def lose_a_race(root: str) -> str:
    """Commit other content where a record stands already, as a rival does that comes second; return its file."""
    store = open_store(root)
    record, manifest = load(store, LAST, GeneratorState)
    state = {name: tensor + 1 for name, tensor in record.state.items()}
    other = GeneratorState(state=state, optimizer=record.optimizer, metrics=record.metrics)
    late = Late(store, manifest.to_bytes())
    store.delete(f"{LAST}/manifest.json")
    given: Any = {"parents": manifest.parents, "config_digest": manifest.config_digest}
    with pytest.raises(ArtifactError, match="is already committed"):
        commit(late, LAST, other, provenance=manifest.provenance, **given)
    (loser,) = {key for key in store.list(LAST) if key.endswith(".state.safetensors")}
    return loser


class Late:
    """A store whose manifest is written by a rival just before ours."""

    def __init__(self, store: Any, manifest: bytes) -> None:
        self._store, self._manifest = store, manifest

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def write_bytes_if_absent(self, key: str, data: bytes) -> bool:
        assert self._store.write_bytes_if_absent(key, self._manifest)
        return bool(self._store.write_bytes_if_absent(key, data))


@pytest.mark.slow
def test_what_kills_left_is_kept_while_it_is_young_and_swept_when_it_is_old(
    starter: Starter, finished: Path, tmp_path: Path, capsys: Capture
) -> None:
    root = tmp_path / "run"
    root.mkdir()
    while not any(".tmp" in name for name in names(root)):
        assert kill_after_changes(starter.start(*plane_run(root)), root, 2)
    code, printed = starter.run(*plane_run(root))
    assert code == 0, printed
    left = {name for name in names(root) if ".tmp" in name}
    assert {note.location for note in audit(str(root)).notes} == left
    assert set(listed(swept(capsys, str(root), "--yes"), "young")) == left
    assert left <= names(root)
    age(root, 25)
    before = tree(root)
    dry = swept(capsys, str(root))
    assert (listed(dry), dry["deleted"]) == (dict.fromkeys(left, "write never finished"), 0)
    assert dry["size"] == sum((root / name).stat().st_size for name in left)
    assert tree(root) == before
    assert swept(capsys, str(root), "--yes")["deleted"] == len(left)
    assert names(root) == names(finished)
    assert differing(content(finished), content(root)) == []
    assert (audit(str(root)).faults, audit(str(root)).notes) == ((), ())


def test_the_file_of_a_loser_is_no_fault_and_is_swept(run: Path, capsys: Capture) -> None:
    before = tree(run)
    loser = lose_a_race(str(run))
    report = audit(str(run))
    assert (report.faults, [note.location for note in report.notes]) == ((), [loser])
    age(run, 25)
    assert listed(swept(capsys, str(run), "--yes")) == {loser: "of a writer that lost"}
    assert tree(run) == before


def test_files_of_a_commit_that_never_ended_are_swept_and_its_stage_runs_again(
    run: Path, finished: Path, capsys: Capture
) -> None:
    (run / LAST / "manifest.json").unlink()
    (run / "iter-00002/evaluation/manifest.json").unlink()
    left = {f"{LAST}/{name}" for name in ("state.safetensors", "optimizer.safetensors", "metrics.parquet")}
    left |= {f"iter-00002/evaluation/{name}" for name in ("metrics.parquet", "samples.parquet", "report.html")}
    age(run, 25)
    assert listed(swept(capsys, str(run), "--yes")) == dict.fromkeys(left, "commit never finished")
    assert tdm_r1("run", "--root", str(run)) == 0
    assert differing(content(finished), content(run)) == []


def test_nothing_else_is_ever_swept(run: Path, capsys: Capture) -> None:
    """Whatever a manifest names, pages, a tombstone, what is not ours, and a record whose manifest is damaged."""
    assert tdm_r1("prune", "--root", str(run), "--keep-last", "0", "--yes") == 0
    for name in ("STOP", "notes.txt", f"{LAST}/mine.safetensors", "iter-00009/rollout/shard-0000/mine", ".hidden"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).touch()
    (run / "base/manifest.json").write_bytes(b"{")
    age(run, 1000)
    before = tree(run)
    plan = swept(capsys, str(run), "--older-than", "0s", "--yes")
    assert (plan["doomed"], plan["unreadable"]) == ([], ["base"])
    assert tree(run) == before


def test_old_bytes_without_a_manifest_are_not_taken_over_so_that_a_sweep_cannot_take_them_from_a_commit(
    run: Path, finished: Path, capsys: Capture
) -> None:
    """The commit begins before the sweep deletes, and ends after it."""
    (run / LAST / "manifest.json").unlink()
    age(run, ADOPTED_SECONDS / 3600 + 0.1)
    store = open_store(str(run))
    record, manifest = load(open_store(str(finished)), LAST, GeneratorState)

    class Sweeping(Late):
        def write_bytes_if_absent(self, key: str, data: bytes) -> bool:
            assert swept(capsys, str(run), "--older-than", "3600s", "--yes")["deleted"] == 3
            return bool(self._store.write_bytes_if_absent(key, data))

    given: Any = {"parents": manifest.parents, "config_digest": manifest.config_digest}
    commit(Sweeping(store, b""), LAST, record, provenance=manifest.provenance, **given)
    assert audit(str(run)).faults == ()
    assert load(store, LAST, GeneratorState)[1].digest == manifest.digest


@pytest.mark.slow
def test_a_sweep_beside_a_living_runner_takes_nothing_of_it(
    starter: Starter, finished: Path, tmp_path: Path, capsys: Capture
) -> None:
    root = tmp_path / "run"
    program = starter.start(*plane_run(root))
    sweeps = 0
    while not program.ended(0.05):
        if (root / "run.json").exists():
            plan = swept(capsys, str(root), "--older-than", "10m", "--yes")
            assert plan["deleted"] == 0
            sweeps += 1
    assert program.wait() == 0, program.printed
    assert sweeps > 3
    assert differing(content(finished), content(root)) == []


def of_a_probe(request: Request) -> bool:
    """Whether it removes a probe that was written."""
    return request.method == "DELETE" and ".probe." in request.path


@pytest.mark.slow
def test_on_s3_unfinished_uploads_probes_and_losers_are_swept(
    starter: Starter, s3_server: Server, s3_root: str, finished: Path, capsys: Capture
) -> None:
    store = open_store(s3_root)
    for path in sorted(path for path in finished.rglob("*") if path.is_file()):
        store.put_file_if_absent(path, path.relative_to(finished).as_posix())
    whole = set(objects(s3_server, s3_root))
    loser = lose_a_race(s3_root)
    with line(s3_server) as (front, exchange):
        for nth, counted, order, entry in (
            (5, a_write, [f"{s3_root}/extra"], "tests.faults.big_commit:main"),  # both parts are there
            (1, of_a_probe, ["init", "--root", f"{s3_root}/other", "--preset", "plane"], "tdm_r1.cli:main"),
        ):
            exchange(trigger := Trigger(nth, counted, executed=False))
            trigger.arm(program := starter.start(*order, entry=entry, **environment(front)))
            assert program.wait() < 0, program.printed
    store.delete_prefix("extra")
    (upload,) = uploads(s3_server, s3_root)
    (probe,) = {name for name in objects(s3_server, s3_root) if ".probe." in name}
    expected = {loser: "of a writer that lost", probe: "write never finished", upload: "upload never completed"}
    assert {note.location for note in audit(s3_root, load=False).notes} == set(expected)
    assert listed(swept(capsys, s3_root, "--yes"), "young") == expected
    time.sleep(1.1)  # S3 tells ages in whole seconds
    plan = swept(capsys, s3_root, "--older-than", "0s")
    assert listed(plan) == expected
    assert uploads(s3_server, s3_root) == [upload]
    assert next(item["entry"]["size"] for item in plan["doomed"] if item["entry"]["upload"]) >= 24 << 20
    assert swept(capsys, s3_root, "--older-than", "0s", "--yes")["deleted"] == 3
    assert uploads(s3_server, s3_root) == []
    assert set(objects(s3_server, s3_root)) == whole
    report = audit(s3_root, load=False)
    assert (report.faults, report.notes) == ((), ())


@pytest.mark.parametrize("text", ["", "24", "h", "-1h", "1.5h", "1w"])
def test_an_age_that_is_none_is_refused(text: str, run: Path, capsys: Capture) -> None:
    assert tdm_r1("sweep", str(run), "--older-than", text) == 2
    assert "write 90s, 30m, 24h or 7d" in capsys.readouterr().err


def test_what_is_no_run_is_not_swept(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / ".a.0.tmp").touch()
    age(tmp_path, 1000)
    assert tdm_r1("sweep", str(tmp_path), "--older-than", "0s", "--yes") == 2
    assert "holds no run.json" in capsys.readouterr().err
    assert (tmp_path / ".a.0.tmp").exists()


def test_the_table_says_what_would_go_and_how_to_do_it(run: Path, capsys: Capture) -> None:
    lose_a_race(str(run))
    age(run, 25)
    capsys.readouterr()
    assert tdm_r1("sweep", "--root", str(run), "--dry-run") == 0
    shown = capsys.readouterr().out
    assert "of a writer that lost" in shown
    assert "would be deleted; nothing was changed, repeat with --yes to do it: 1 leftovers, " in shown
    assert tdm_r1("sweep", "--root", str(run), "--yes") == 0
    assert "1 deleted of 1 leftovers, " in capsys.readouterr().out


def test_a_delete_that_was_cut_short_is_swept_with_its_folder(run: Path, capsys: Capture) -> None:
    doomed = run / ".iter-00003.0123.tmp"
    shutil.copytree(run / "iter-00002", doomed)
    age(run, 25)
    assert swept(capsys, str(run), "--yes")["deleted"] == len(
        [p for p in (run / "iter-00002").rglob("*") if p.is_file()]
    )
    assert not any(path.is_file() for path in doomed.rglob("*"))
