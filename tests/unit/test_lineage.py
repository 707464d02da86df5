"""Claims about lineage: the graph is whole, every digest in it is compared, and what is wrong is told."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tdm_r1.artifacts.records import Rewards
from tdm_r1.models.sources import ASSETS
from tdm_r1.rewards.aggregate import aggregate
from tdm_r1.runtime.layout import Task
from tdm_r1.runtime.lineage import Lineage, trace
from tdm_r1.runtime.lineage_view import as_tree
from tdm_r1.runtime.openlineage import dataset_name
from tdm_r1.runtime.prune import Retention, plan_prune, prune
from tdm_r1.runtime.run import open_run
from tests.support import plane_run, tdm_r1

SIZES = {"iterations": 5, "evaluation__every": 0}
SAMPLE = "00002-0003-001"
"""Of the second shard: slots 2 and 3 are its own."""


@pytest.fixture(scope="module")
def five(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("five") / "run"
    assert tdm_r1(*plane_run(root, **SIZES)) == 0
    return root


@pytest.fixture
def root(five: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(five, tmp_path / "run"))


def manifest(root: Path, location: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((root / location / "manifest.json").read_bytes())
    return found


def walked(root: Path, head: str) -> dict[str, str]:
    """Digest of every ancestor, read without the code under test."""
    found: dict[str, str] = {}
    ahead = [head]
    while ahead:
        body = manifest(root, location := ahead.pop())
        found[location] = body["digest"]
        ahead += body["parents"].keys() - found.keys()
    return found


def shown(root: Path, lineage: Lineage, *, full: bool = False, styles: bool = False) -> str:
    console = Console(width=300, force_terminal=styles, color_system="standard" if styles else None)
    with console.capture() as capture:
        console.print(as_tree(lineage, open_run(str(root)).config, full=full))
    return capture.get()


def test_the_graph_holds_every_ancestor_and_every_digest_of_the_newest_generator(five: Path) -> None:
    lineage = trace(open_run(str(five)))
    assert lineage.head == "iter-00005/generator_update"
    assert {node.location: node.digest for node in lineage.nodes} == walked(five, lineage.head)
    assert {(e.child, e.parent, e.digest) for e in lineage.edges} == {
        (node.location, parent, digest)
        for node in lineage.nodes
        for parent, digest in manifest(five, node.location)["parents"].items()
    }
    assert all(edge.verified for edge in lineage.edges)
    assert lineage.faults == ()


def test_every_parent_stands_before_its_children(five: Path) -> None:
    lineage = trace(open_run(str(five)))
    position = {node.location: number for number, node in enumerate(lineage.nodes)}
    assert all(position[edge.parent] < position[edge.child] for edge in lineage.edges)
    assert lineage.nodes[-1].location == lineage.head


def test_an_earlier_generator_has_no_later_ancestor(five: Path) -> None:
    lineage = trace(open_run(str(five)), iteration=2)
    assert {node.location for node in lineage.nodes} == walked(five, "iter-00002/generator_update").keys()
    assert not any(node.location.startswith("iter-00003") for node in lineage.nodes)
    assert trace(open_run(str(five)), iteration=0).head == "base"


def test_the_base_weights_are_hashed_as_they_lie_here(five: Path) -> None:
    expected = sha256((ASSETS / "plane" / "model.safetensors").read_bytes()).hexdigest()
    assert trace(open_run(str(five))).weights.files == {"model.safetensors": expected}


def test_a_sample_is_traced_to_its_verdict_its_prompt_and_its_generator(
    five: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = open_run(str(five))
    table = aggregate(run.load(Task("reward_scoring", 2, 1), Rewards)[0], run.config.reward)
    (row,) = [row for row in table.to_pylist() if row["sample_id"] == SAMPLE]
    assert tdm_r1("lineage", "--root", str(five), "--sample", SAMPLE, "--json") == 0
    graph = json.loads(capsys.readouterr().out)
    assert graph["head"] == graph["sample"]["location"] == "iter-00002/reward_scoring/shard-0001"
    assert {key: graph["sample"][key] for key in ("prompt_id", "group", "reward", "correct")} == {
        key: row[key] for key in ("prompt_id", "group", "reward", "correct")
    }
    assert graph["sample"]["text"]
    assert {node["location"] for node in graph["nodes"]} == walked(five, graph["head"]).keys()


def test_a_sample_that_was_not_scored_is_found_in_its_rollout(root: Path) -> None:
    shutil.rmtree(root / "iter-00002/reward_scoring/shard-0001")
    lineage = trace(open_run(str(root)), sample_id=SAMPLE)
    assert lineage.head == "iter-00002/rollout/shard-0001"
    assert lineage.sample is not None
    assert lineage.sample.reward is None
    assert "not scored" in shown(root, lineage)


@pytest.mark.parametrize(
    "more", [["--sample", "nobody"], ["--sample", SAMPLE, "--iteration", "3"], ["--iteration", "6"]]
)
def test_what_the_run_does_not_have_is_refused(more: list[str], five: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tdm_r1("lineage", "--root", str(five), *more) == 2
    assert "hint:" in capsys.readouterr().err


def swap(root: Path) -> str:
    """Another valid record where a parent stood: shard 1's rollout in the place of shard 0's."""
    shutil.copy(root / "iter-00003/rollout/shard-0001/manifest.json", root / "iter-00003/rollout/shard-0000")
    return "iter-00003/rollout/shard-0000"


def remove(root: Path) -> str:
    (root / "iter-00003/rollout/shard-0000/manifest.json").unlink()
    return "iter-00003/rollout/shard-0000"


def flip(root: Path) -> str:
    path = root / "iter-00003/rollout/shard-0000/manifest.json"
    data = path.read_bytes().replace(b'"size": 2', b'"size": 3', 1)
    assert data != path.read_bytes()
    path.unlink()
    path.write_bytes(data)
    return "iter-00003/rollout/shard-0000"


@pytest.mark.parametrize("damage", [swap, remove, flip])
def test_a_parent_that_is_not_what_its_child_saw_is_red_and_exits_1(
    damage: Callable[[Path], str], root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = damage(root)
    assert tdm_r1("lineage", "--root", str(root), "--json") == 1
    graph = json.loads(capsys.readouterr().out)
    wrong = {(edge["child"], edge["parent"]) for edge in graph["edges"] if not edge["verified"]}
    children = {location for location in walked_children(root) if where in manifest(root, location)["parents"]}
    assert wrong == {(child, where) for child in children}
    assert any(where in fault for fault in graph["faults"])
    lineage = trace(open_run(str(root)))
    lines = [line for line in shown(root, lineage, styles=True).splitlines() if f"from {where}  " in line]
    assert len(lines) == len(children)
    assert all("\x1b[1;31m" in line and "but there stands" in line for line in lines)


def walked_children(root: Path) -> list[str]:
    """Locations of all committed ancestors of the newest generator that can be children of a rollout of iteration 3."""
    own = [f"iter-{n:05d}/{stage}" for n in (3, 4) for stage in ("surrogate_update", "generator_update")]
    return [*own, "iter-00003/reward_scoring/shard-0000", "iter-00003/reward_scoring/shard-0001"]


def test_a_changed_run_file_is_told_and_exits_1(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = root / "run.json"
    body = json.loads(path.read_bytes()) | {"seed": 7}
    del body["seal"]  # as an earlier version wrote it; a seal that does not fit is refused at once
    path.unlink()
    path.write_text(json.dumps(body))
    assert tdm_r1("lineage", "--root", str(root)) == 1
    assert "run.json hashes to" in " ".join(capsys.readouterr().out.split())


def test_the_chain_between_first_and_last_is_one_line_unless_asked_for(five: Path) -> None:
    lineage = trace(open_run(str(five)))
    short, whole = shown(five, lineage), shown(five, lineage, full=True)
    assert "iterations 4…2: 3 iterations, 18 records," in short
    assert [n for n in range(1, 6) if f"iteration {n}\n" in short] == [1, 5]
    assert [n for n in range(1, 6) if f"iteration {n}\n" in whole] == [1, 2, 3, 4, 5]
    assert sum(line.count("from ") for line in whole.splitlines()) == len(lineage.edges)
    assert "from " not in short


def test_an_iteration_with_a_fault_is_not_hidden_in_the_chain(root: Path) -> None:
    swap(root)
    short = shown(root, trace(open_run(str(root))))
    assert "iteration 3\n" in short


def test_a_pruned_run_has_its_whole_lineage_and_says_what_was_pruned(root: Path) -> None:
    before = trace(open_run(str(root)))
    run = open_run(str(root))
    prune(run, plan_prune(run, Retention(1, 0)))
    after = trace(run)
    assert after.faults == ()
    assert [(node.location, node.digest) for node in after.nodes] == [(n.location, n.digest) for n in before.nodes]
    assert {node.location for node in after.nodes if "part.parquet" in node.pruned} == {
        f"iter-{n:05d}/rollout/shard-{shard:04d}" for n in (1, 2, 3, 4) for shard in (0, 1)
    }
    assert "pruned: part.parquet" in shown(root, after)


def test_openlineage_has_a_start_and_a_complete_per_record_that_fit_together(five: Path, tmp_path: Path) -> None:
    path = tmp_path / "new" / "events.ndjson"
    assert tdm_r1("lineage", "--root", str(five), "--openlineage", str(path)) == 0
    events = [json.loads(line) for line in path.read_text().splitlines()]
    expected = walked(five, "iter-00005/generator_update")
    starts, completes = events[::2], events[1::2]
    assert {e["eventType"] for e in starts} == {"START"}
    assert {e["eventType"] for e in completes} == {"COMPLETE"}
    assert [e["run"]["runId"] for e in starts] == [e["run"]["runId"] for e in completes]
    assert len({e["run"]["runId"] for e in starts}) == len(completes) == len(expected)
    known: set[tuple[str, str]] = set()
    for event in completes:
        (out,) = event["outputs"]
        location = Path(out["name"]).relative_to(five).as_posix()
        assert (out["namespace"], version(out)) == ("file", expected[location])
        assert event["job"]["name"] == manifest(five, location)["kind"]
        assert {(d["name"], version(d)) for d in event["inputs"] if d["namespace"] == "file"} == {
            (str(five / parent), digest) for parent, digest in manifest(five, location)["parents"].items()
        }
        assert all((d["name"], version(d)) in known for d in event["inputs"] if d["namespace"] == "file")
        known.add((out["name"], version(out)))
    weights = [d for e in completes for d in e["inputs"] if d["name"] == "weights/embedded:plane"]
    assert {version(d) for d in weights} == {trace(open_run(str(five))).weights.digest}
    assert path.read_text().count("\n") == len(events)


def version(dataset: dict[str, Any]) -> str:
    found: str = dataset["facets"]["version"]["datasetVersion"]
    return found


def test_a_record_in_a_bucket_is_named_as_openlineage_names_objects() -> None:
    assert dataset_name("s3://bucket/runs/a", "iter-00001/rollout/shard-0000") == (
        "s3://bucket",
        "runs/a/iter-00001/rollout/shard-0000",
    )
