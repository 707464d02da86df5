"""Claims about people in the loop: their votes are a record like any other, and the generator learns what they want."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from benchmarks.feedback import learn
from tdm_r1.artifacts.records import Feedback, Rewards
from tdm_r1.rewards.aggregate import aggregate
from tdm_r1.runtime.audit import audit
from tdm_r1.runtime.ballots import Box
from tdm_r1.runtime.feedback_votes import open_election
from tdm_r1.runtime.layout import Task
from tdm_r1.runtime.lineage import trace
from tdm_r1.runtime.replay import replay
from tdm_r1.runtime.run import open_run
from tdm_r1.runtime.variants import open_variant
from tests.ballot_run import ballot_run, name
from tests.support import tdm_r1, tree

GAIN = 0.1
PEOPLE = 'reward.scorers={"plane": {"weight": 0}, "feedback": {}}'


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_generator_learns_what_a_scripted_person_likes(tmp_path: Path, seed: int) -> None:
    before, after = learn(tmp_path, seed)
    assert after >= before + GAIN, f"{before} → {after}"
    if seed == 0:
        root = str(tmp_path / "run")
        assert audit(root).clean
        assert all(record.identical for record in replay(root, "6/feedback"))
        lineage = trace(open_run(root), sample_id="00006-0000-000")
        assert "iter-00006/feedback" in [node.location for node in lineage.nodes]
        assert not lineage.faults


@pytest.fixture
def judged(finished: Path, tmp_path: Path) -> Path:
    """A finished run with a variant that asks people, and one like and one dislike for it."""
    root = Path(shutil.copytree(finished, tmp_path / "run"))
    assert tdm_r1("variant", "--root", str(root), "--name", "people", "--set", PEOPLE) == 0
    likes = tmp_path / "likes.csv"
    likes.write_text("sample_id,like\n00001-0000-000,1\n00001-0000-001,0\n")
    arguments = ("--root", str(root), "--iteration", "1", "--variant", "people")
    assert tdm_r1("feedback", "import", str(likes), *arguments) == 0
    return root


def test_a_variant_asks_people_about_committed_images_and_changes_nothing_of_the_run(judged: Path) -> None:
    before = tree(judged)
    arguments = ("--root", str(judged), "--iteration", "1", "--variant", "people")
    assert tdm_r1("stage", "reward_scoring", *arguments) == 2  # nobody committed the votes
    assert tdm_r1("stage", "feedback", *arguments) == 0
    for shard in ("0", "1"):
        assert tdm_r1("stage", "reward_scoring", *arguments, "--shard", shard) == 0
    assert {file: digest for file, digest in tree(judged).items() if file in before} == before
    assert audit(str(judged)).clean
    run = open_variant(open_run(str(judged)), "people")
    rewards, manifest = run.load(Task("reward_scoring", 1, 0, "people"), Rewards)
    said = run.manifest(Task("feedback", 1, 0, "people"))
    assert manifest.parents["variants/people/iter-00001/feedback"] == said.digest
    rows = aggregate(rewards, run.config.reward).to_pylist()
    assert rows[0]["reward"] == pytest.approx(-rows[1]["reward"])
    assert all(row["reward"] is None and "no opinion" in row["error"] for row in rows[2:])


def test_the_audit_finds_changed_votes(judged: Path) -> None:
    arguments = ("--root", str(judged), "--iteration", "1", "--variant", "people")
    assert tdm_r1("stage", "feedback", *arguments) == 0
    file = judged / "variants/people/iter-00001/feedback/votes.parquet"
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    assert [fault.kind for fault in audit(str(judged)).faults] == ["hash"]


def test_committed_votes_are_closed_and_a_run_without_people_has_no_such_stage(
    judged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--root", str(judged), "--iteration", "1", "--variant", "people")
    assert tdm_r1("stage", "feedback", *arguments) == 0
    assert tdm_r1("feedback", "import", str(judged.parent / "likes.csv"), *arguments) == 2
    assert "a record never changes" in capsys.readouterr().err
    assert tdm_r1("stage", "feedback", "--root", str(judged), "--iteration", "1") == 2
    assert "the reward asks no people" in " ".join(capsys.readouterr().err.split())


def test_a_stage_that_waits_for_people_says_how_they_judge(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ballot_run(tmp_path / "run")
    for stage in ("reward_scoring", "feedback"):
        assert tdm_r1("stage", stage, "--root", str(tmp_path / "run"), "--iteration", "1") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"tdm-r1 stage feedback --iteration 1 --root {tmp_path / 'run'}" in said
    assert f"tdm-r1 label --root {tmp_path / 'run'} --iteration 1" in said


def test_a_changed_ballot_a_missing_one_and_another_rollout_are_noticed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    election = ballot_run(tmp_path / "run")
    rows = election.samples().to_pylist()
    digest = election.run.manifest(election.rollouts[0]).digest
    box = Box(election.run.store, election.folder, "ann")
    for row in rows[:3]:
        box.append(kind="like", sample_id=row["sample_id"], picture=row["picture"], page="1", rollout=digest)
    folder = tmp_path / "run/votes/iter-00001/raters/ann"
    files = sorted(folder.iterdir())
    kept = {file: file.read_bytes() for file in files}
    arguments = ("stage", "feedback", "--root", str(tmp_path / "run"), "--iteration", "1")
    ballot = json.loads(kept[files[0]])
    for file, content, complaint in (
        (files[0], json.dumps({**ballot, "verdict": False}).encode(), "does not follow"),
        (files[2], json.dumps({**ballot, "number": 3}).encode(), "does not follow"),
        (files[1], b"<html>", "is no ballot"),
        (files[1], None, "are not 1 to 2"),
    ):
        if content is None:
            file.unlink()
        else:
            file.write_bytes(content)
        assert tdm_r1(*arguments) == 2
        assert complaint in " ".join(capsys.readouterr().err.split())
        file.write_bytes(kept[file])
    for file in files:
        file.unlink()
    stranger = Box(election.run.store, election.folder, "ann")
    stranger.append(kind="like", sample_id=name(0, 0), picture=rows[0]["picture"], page="1", rollout="0" * 64)
    assert tdm_r1(*arguments) == 2
    assert "judged another rollout" in " ".join(capsys.readouterr().err.split())


def test_what_a_person_took_back_is_recorded_and_does_not_count(tmp_path: Path) -> None:
    election = ballot_run(tmp_path / "run")
    row, other = election.samples().to_pylist()[:2]
    about = {"page": "1", "rollout": election.run.manifest(election.rollouts[0]).digest}
    box = Box(election.run.store, election.folder, "ann")
    first = box.append(kind="like", sample_id=row["sample_id"], picture=row["picture"], **about)
    box.append(kind="undo", undoes=first.number, sample_id=row["sample_id"], picture=row["picture"], **about)
    box.append(kind="pair", sample_id=row["sample_id"], other_id=other["sample_id"], picture=row["picture"], **about)
    assert tdm_r1("stage", "feedback", "--root", str(tmp_path / "run"), "--iteration", "1") == 0
    election = open_election(str(tmp_path / "run"), 1, "")
    votes = election.run.load(election.task, Feedback)[0].votes.to_pylist()
    assert [(vote["kind"], vote["rater"], vote["fate"]) for vote in votes] == [
        ("like", "ann", "undone"),
        ("pair", "ann", "counted"),
    ]
    assert all(vote["time"] is not None and vote["source"] == "page 1" for vote in votes)
