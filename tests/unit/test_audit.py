"""Claims about `tdm-r1 audit`: what is damaged is found and named, and what is not damaged passes."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from tdm_r1.artifacts.records import GeneratorState
from tdm_r1.artifacts.repository import require_manifest
from tdm_r1.artifacts.store import open_store
from tdm_r1.runtime.audit import audit
from tdm_r1.runtime.audit_faults import AuditReport
from tdm_r1.runtime.layout import all_tasks, parents_of
from tdm_r1.runtime.run_file import read_config
from tests.support import differing, tdm_r1, tree
from tests.unit.damage import doctor, flip, forge
from tests.unit.test_hostile_tables import first_page

Capture = pytest.CaptureFixture[str]
LAST = "iter-00002/generator_update"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def faults(root: Path, **options: Any) -> set[tuple[str, str]]:
    return {(fault.kind, fault.location) for fault in audit(str(root), **options).faults}


def test_a_clean_run_passes_and_nothing_of_it_is_changed(run: Path, capsys: Capture) -> None:
    before = tree(run)
    capsys.readouterr()
    assert tdm_r1("audit", "--root", str(run), "--all") == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.endswith("ok    ") or line.rstrip().endswith(" ok") for line in lines) == 4 + 17
    assert lines[-1].startswith("17 of 17 records, ")
    assert lines[-1].endswith(": clean")
    assert tree(run) == before


@pytest.mark.parametrize("options", [["--fast"], [], ["--threads", "3"]])
def test_the_machine_readable_report_counts_every_byte_that_a_manifest_names(
    options: list[str], run: Path, capsys: Capture
) -> None:
    capsys.readouterr()
    assert tdm_r1("audit", str(run), "--json", *options) == 0
    report = json.loads(capsys.readouterr().out)
    outside = {"manifest.json", "run.json", "result.json"}
    files = [p for p in run.rglob("*") if p.is_file() and p.name not in outside and p != run / "report.html"]
    assert report["bytes"] == sum(path.stat().st_size for path in files)
    assert (report["clean"], report["faults"], report["notes"], report["total"]) == (True, [], [], 17)
    assert {record["verdict"] for record in report["records"]} == {"ok"}


def records_of(root: Path) -> Iterator[Path]:
    yield from sorted(
        p for p in root.rglob("*") if p.is_file() and p not in (root / "report.html", root / "result.json")
    )


@pytest.mark.slow
def test_one_flipped_bit_anywhere_in_a_run_is_found_in_the_file_that_has_it(run: Path) -> None:
    draw = random.Random(0)
    kinds: dict[str, int] = {}
    for path in records_of(run):
        name = path.relative_to(run).as_posix()
        whole = path.read_bytes()
        flip(path, bit := draw.randrange(len(whole) * 8))
        found = faults(run, load=False)
        if name == "run.json":
            assert found == {("configuration", name)}, (bit, found)
        else:
            assert found == {("manifest" if path.name == "manifest.json" else "hash", name)}, (bit, found)
        path.write_bytes(whole)
        kinds[path.suffix] = kinds.get(path.suffix, 0) + 1
    assert kinds == {".json": 18, ".parquet": 24, ".safetensors": 11, ".html": 3}
    assert audit(str(run)).clean


def test_a_damaged_run_json_is_named_and_the_records_are_audited_all_the_same(run: Path) -> None:
    (run / "run.json").write_text("{")
    report = audit(str(run))
    assert [(fault.kind, fault.location) for fault in report.faults] == [("configuration", "run.json")]
    assert len(report.records) == 17
    (run / "run.json").unlink()
    assert faults(run) == {("configuration", "run.json")}


def test_another_configuration_than_that_of_the_records_is_found_in_every_record(run: Path) -> None:
    change(run / "run.json", seed=1)
    report = audit(str(run))
    assert {fault.kind for fault in report.faults} == {"configuration"}
    assert len(report.faults) == 17


def change(path: Path, **values: Any) -> None:
    """Change `run.json` as it can be only where an earlier version wrote it, without a seal."""
    body = json.loads(path.read_bytes()) | values
    del body["seal"]
    path.write_text(json.dumps(body, indent=2) + "\n")


def test_a_run_of_an_earlier_version_without_a_seal_in_run_json_is_clean(run: Path) -> None:
    change(run / "run.json")
    assert audit(str(run)).clean


def test_a_truncated_and_a_missing_file_are_named_with_what_was_expected(run: Path, capsys: Capture) -> None:
    path = run / LAST / "state.safetensors"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-7])
    (run / "prompts/prompts.parquet").unlink()
    assert faults(run) == {("size", f"{LAST}/state.safetensors"), ("missing", "prompts/prompts.parquet")}
    capsys.readouterr()
    assert tdm_r1("audit", "--root", str(run)) == 1
    shown = capsys.readouterr().out
    assert f"{LAST}/state.safetensors: found {size - 7:,} bytes; expected {size:,} bytes" in shown
    assert "2 faults in 2 classes" in shown


def test_a_parent_that_is_not_the_record_which_stands_there_is_found(run: Path) -> None:
    doctor(run, "iter-00002/evaluation", lambda body: body["parents"].update({LAST: "a" * 64}))
    (fault,) = audit(str(run)).faults
    assert (fault.kind, fault.location) == ("lineage", "iter-00002/evaluation")
    assert f"parent `{LAST}` had digest aaaaaaaaaaaa" in fault.found
    assert fault.expected.startswith(require_manifest(open_store(str(run)), LAST).digest[:12])


@pytest.mark.parametrize("edit", [lambda p: p.pop("prompts"), lambda p: p.update({"iter-00001/evaluation": "a" * 64})])
def test_a_lineage_with_a_parent_too_few_or_too_many_is_found(edit: Callable[[Any], object], run: Path) -> None:
    doctor(run, "iter-00002/evaluation", lambda body: edit(body["parents"]))
    assert faults(run) == {("lineage", "iter-00002/evaluation")}


def test_a_consistently_forged_record_is_found_by_those_made_from_the_true_one(run: Path) -> None:
    def change(record: GeneratorState) -> GeneratorState:
        state = {name: tensor + 1 for name, tensor in record.state.items()}
        return GeneratorState(state=state, optimizer=record.optimizer, metrics=record.metrics)

    forge(run, "iter-00001/generator_update", change)
    children = ["iter-00001/evaluation", "iter-00002/generator_update"]
    children += [f"iter-00002/rollout/shard-{n:04d}" for n in range(2)]
    assert faults(run) == {("lineage", child) for child in children}


def test_what_a_stage_reads_is_what_the_layout_says(finished: Path) -> None:
    store = open_store(str(finished))
    config = read_config(store)
    for task in all_tasks(config):
        recorded = set(require_manifest(store, task.location).parents)
        assert recorded == {parent.location for parent in parents_of(task, config)}, task


def test_a_record_missing_before_a_later_iteration_is_a_gap(run: Path) -> None:
    shutil.rmtree(run / "iter-00001/evaluation")
    assert faults(run) == {("gap", "iter-00001/evaluation")}
    shutil.rmtree(run / "iter-00001/surrogate_update")
    children = ["iter-00001/generator_update", "iter-00002/surrogate_update"]
    gaps = {("gap", f"iter-00001/{stage}") for stage in ("evaluation", "surrogate_update")}
    assert faults(run) == gaps | {("lineage", child) for child in children}


def test_a_run_that_still_goes_on_or_has_no_baseline_passes(run: Path) -> None:
    for folder in ("iter-00000", "iter-00002/evaluation", "iter-00002/generator_update"):
        shutil.rmtree(run / folder)
    (run / "STOP").touch()
    report = audit(str(run))
    assert (report.clean, len(report.records), report.total) == (True, 14, 17)


def test_files_that_no_manifest_names_are_orphans(run: Path) -> None:
    orphans = ["extra.txt", f"{LAST}/0123.state.safetensors", "iter-00003/evaluation/manifest.json", ".hidden"]
    for name in orphans:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_bytes(b"x")
    assert faults(run) == {("orphan", name) for name in orphans}


def test_an_unfinished_write_is_shown_and_is_no_fault(run: Path, capsys: Capture) -> None:
    (run / "iter-00002/evaluation/manifest.json").unlink()
    (run / "base/.state.safetensors.0123.tmp").write_bytes(b"half of it")
    report = audit(str(run))
    assert report.clean
    left = {f"iter-00002/evaluation/{name}" for name in ("metrics.parquet", "samples.parquet", "report.html")}
    assert {note.location for note in report.notes} == left | {"base/.state.safetensors.0123.tmp"}
    capsys.readouterr()
    assert tdm_r1("audit", str(run)) == 0
    assert "16 of 17 records" in (shown := capsys.readouterr().out)
    assert shown.rstrip().endswith("clean, 4 unfinished writes")


def set_entry(**change: Any) -> Callable[[dict[str, Any]], object]:
    return lambda body: body["files"]["state.safetensors"].update(change)


@pytest.mark.parametrize(
    "edit",
    [
        set_entry(stored_as="../../base/state.safetensors"),
        set_entry(stored_as="/etc/passwd"),
        set_entry(stored_as=".."),
        set_entry(stored_as="a/b"),
        set_entry(stored_as="a\\b"),
        set_entry(stored_as=".hidden"),
        set_entry(stored_as="new\nline"),
        set_entry(stored_as=""),
        set_entry(size=-1),
        set_entry(size=10**30),
        set_entry(size=1.5),
        set_entry(rows=-1),
        set_entry(rows=10**30),
        set_entry(sha256="A" * 64),
        lambda body: body.update(kind="rollin"),
        lambda body: body.update(kind="distill_base"),
        lambda body: body.update(version=2),
        lambda body: body.update(version=True),
        lambda body: body.update(strange=1),
        lambda body: body["files"].update({"../x": dict(body["files"]["state.safetensors"])}),
        lambda body: body["files"].pop("state.safetensors"),
        lambda body: body["parents"].update({"../other": "a" * 64}),
    ],
)
def test_a_hostile_manifest_is_a_fault_of_its_own_and_is_not_followed(
    edit: Callable[[dict[str, Any]], object], run: Path, capsys: Capture
) -> None:
    doctor(run, LAST, edit)
    assert faults(run) == {("manifest", f"{LAST}/manifest.json")}
    shutil.rmtree(run / "iter-00002/evaluation")
    before = tree(run)
    assert tdm_r1("stage", "evaluation", "--iteration", "2", "--root", str(run)) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert differing(before, tree(run)) == []


@pytest.mark.parametrize(
    ("change", "kind", "name"),
    [({"size": 2**62}, "size", "/state.safetensors"), ({"rows": 2**62}, "content", "/state.safetensors")],
)
def test_a_possible_but_wrong_size_or_number_of_rows_is_found(
    change: dict[str, int], kind: str, name: str, run: Path
) -> None:
    doctor(run, LAST, set_entry(**change))
    assert (kind, LAST + name) in faults(run)


def test_a_record_that_breaks_its_contract_under_a_consistent_manifest_is_found_by_loading_it(run: Path) -> None:
    part = "iter-00002/reward_scoring/shard-0001"
    other = (run / "iter-00002/rollout/shard-0001/part.parquet").read_bytes()
    (run / part / "part.parquet").write_bytes(other)
    change = {"size": len(other), "sha256": sha256(other).hexdigest()}
    doctor(run, part, lambda body: body["files"]["part.parquet"].update(change))
    child = ("lineage", "iter-00002/surrogate_update")
    assert faults(run, load=False) == {child}
    assert faults(run) == {child, ("content", part)}


def test_pictures_are_decompressed_when_asked_for(run: Path) -> None:
    part = "iter-00002/rollout/shard-0001"
    path = run / part / "part.parquet"
    data = bytearray(path.read_bytes())
    data[data.index(bytes.fromhex("28b52ffd"), first_page(path, "images"))] ^= 1  # a frame of zstd
    path.write_bytes(data)
    assert faults(run) == {("hash", f"{part}/part.parquet")}
    doctor(run, part, lambda body: body["files"]["part.parquet"].update(sha256=sha256(data).hexdigest()))
    names = ("reward_scoring/shard-0001", "surrogate_update", "generator_update")
    children = {("lineage", f"iter-00002/{name}") for name in names}
    assert faults(run) == children
    assert faults(run, pixels=True) == {*children, ("content", part)}


PARENTS = [
    ("distill_base", 0, "prompts/prompts.parquet"),
    ("distill_base", 0, "prompts/embeddings.safetensors"),
    ("distill_base", 0, "prompts/manifest.json"),
    ("rollout", 1, "base/state.safetensors"),
    ("reward_scoring", 2, "iter-00002/rollout/shard-0000/part.parquet"),
    ("surrogate_update", 2, "iter-00002/reward_scoring/shard-0000/part.parquet"),
    ("surrogate_update", 2, "iter-00001/surrogate_update/optimizer.safetensors"),
    ("generator_update", 2, "iter-00002/surrogate_update/metrics.parquet"),
    ("evaluation", 2, "iter-00002/generator_update/manifest.json"),
]


@pytest.mark.parametrize(("stage", "iteration", "parent"), PARENTS)
def test_a_stage_refuses_to_read_a_flipped_file_and_commits_nothing(
    stage: str, iteration: int, parent: str, run: Path, capsys: Capture
) -> None:
    folder = run / ("base" if stage == "distill_base" else f"iter-{iteration:05d}/{stage}")
    shutil.rmtree(folder)
    size = (run / parent).stat().st_size
    flip(run / parent, random.Random(parent).randrange(size * 8))
    before = tree(run)
    assert tdm_r1("stage", stage, "--iteration", str(iteration), "--root", str(run)) == 2
    assert parent in capsys.readouterr().err
    assert differing(before, tree(run)) == []


@pytest.mark.parametrize(
    "arguments",
    [
        *([], ["a", "--root", "b"], ["a", "--replay", "1", "--fast"]),
        *(["a", "--replay", "1", "--pixels"], ["a", "--fast", "--pixels"]),
    ],
)
def test_arguments_that_do_not_fit_together_are_refused(arguments: list[str], capsys: Capture) -> None:
    assert tdm_r1("audit", *arguments) == 2
    assert "hint: " in capsys.readouterr().err


def test_a_root_that_is_no_run_is_refused(tmp_path: Path, capsys: Capture) -> None:
    assert tdm_r1("audit", str(tmp_path / "nothing")) == 2
    assert "holds no run.json" in capsys.readouterr().err


def test_every_number_of_threads_gives_the_same_report(run: Path) -> None:
    flip(run / LAST / "state.safetensors", 8000)
    (run / "extra").touch()

    def bare(report: AuditReport) -> Any:
        return report.records, report.faults, report.notes

    assert bare(audit(str(run), threads=1)) == bare(audit(str(run), threads=4))
