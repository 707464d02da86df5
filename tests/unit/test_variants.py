"""Claims about variants: another reward judges committed images again, and nothing committed is changed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from tdm_r1.artifacts.records import Evaluation, PromptSet, Rewards
from tdm_r1.errors import ConfigError
from tdm_r1.models.progress import Progress, silent
from tdm_r1.rewards.ask import Question
from tdm_r1.rewards.judges import Judges
from tdm_r1.rewards.protocol import Score
from tdm_r1.rng import Keys
from tdm_r1.runtime.audit import audit
from tdm_r1.runtime.layout import Task, parents_of
from tdm_r1.runtime.run import open_run
from tdm_r1.runtime.stage_view import view_of
from tdm_r1.runtime.variants import open_variant
from tdm_r1.stages.evaluation import evaluation_again
from tests.support import tdm_r1, tree
from tests.unit.test_kfp_outputs import message


@pytest.fixture
def root(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def again(root: Path, stage: str, name: str, iteration: int = 1, *more: str) -> int:
    return tdm_r1("stage", stage, "--root", str(root), "--iteration", str(iteration), "--variant", name, *more)


def created(root: Path, name: str = "other", knob: str = "reward.scorers.plane.scale=2") -> int:
    return tdm_r1("variant", "--root", str(root), "--name", name, "--set", knob)


def judged(root: Path, name: str, knob: str) -> None:
    assert created(root, name, knob) == 0
    for shard in (0, 1):
        assert again(root, "reward_scoring", name, 1, "--shard", str(shard)) == 0
    assert again(root, "evaluation", name) == 0


def test_a_variant_lies_beside_the_run_and_changes_nothing_of_it(root: Path) -> None:
    before = tree(root)
    judged(root, "shapes", "reward.scorers.plane.scale=2")
    after = tree(root)
    assert {name: after[name] for name in before} == before
    added = {name for name in after if name not in before}
    assert {name.rpartition("/")[0] for name in added} == {
        "variants/shapes",
        *(f"variants/shapes/iter-00001/reward_scoring/shard-000{shard}" for shard in (0, 1)),
        "variants/shapes/iter-00001/evaluation",
    }


def test_the_audit_follows_a_variant_to_the_rollouts_that_it_judged(root: Path) -> None:
    judged(root, "shapes", "reward.scorers.plane.scale=2")
    report = audit(str(root))
    assert report.clean, report
    locations = [record.task.location for record in report.records]
    assert "variants/shapes/iter-00001/reward_scoring/shard-0001" in locations
    manifest = open_run(str(root)).manifest(Task("reward_scoring", 1, 1, "shapes"))
    assert set(manifest.parents) == {"prompts", "iter-00001/rollout/shard-0001"}


def test_the_audit_finds_a_changed_reward_and_a_changed_verdict(root: Path) -> None:
    judged(root, "shapes", "reward.scorers.plane.scale=2")
    assert again(root, "reward_scoring", "shapes", 2) == 0
    part = next((root / "variants/shapes/iter-00002/reward_scoring/shard-0000").glob("*.parquet"))
    part.write_bytes(part.read_bytes()[:-1] + b"!")
    reward = root / "variants/shapes/reward.json"
    reward.write_text(reward.read_text().replace('"scale": 2.0', '"scale": 3.0'))
    (root / "variants/shapes/iter-00001/evaluation/stray").touch()
    report = audit(str(root))
    kinds = {(fault.kind, fault.location.split("/")[0]) for fault in report.faults}
    assert kinds == {("hash", "variants"), ("configuration", "variants"), ("orphan", "variants")}


def test_the_same_scorer_gives_the_same_tables_again(root: Path) -> None:
    """The control: when a process is replaced changes no score."""
    judged(root, "same", "reward.recycle_rows=5000")
    run = open_run(str(root))
    for task, kind, fields in (
        (Task("reward_scoring", 1, 1), Rewards, ("scores", "scorers")),
        (Task("evaluation", 1), Evaluation, ("metrics", "samples")),
    ):
        own, _ = run.load(task, kind)
        other, _ = run.load(Task(task.stage, task.iteration, task.shard, "same"), kind)
        assert all(getattr(own, field).equals(getattr(other, field)) for field in fields)


class Opposite(Judges):
    """Says the contrary of a run's scorers."""

    def score(self, name: str, questions: Sequence[Question], *, progress: Progress = silent) -> list[Score]:
        return [
            Score(value=1.0 - (score.value or 0.0), parts=(("correct", 1.0 - (score.part("correct") or 0.0)),))
            for score in super().score(name, questions, progress=progress)
        ]


def test_judging_an_evaluation_again_keeps_its_images_and_asks_the_new_scorer(finished: Path) -> None:
    run = open_run(str(finished))
    drawn, _ = run.load(Task("evaluation", 0), Evaluation)
    prompts = run.load(Task("encode_prompts"), PromptSet)[0]
    judges = Opposite(run.config.reward)
    other = evaluation_again(prompts.prompts, drawn, judges=judges, config=run.config, keys=Keys(0, 0))
    assert other.image.equal(drawn.image)
    assert other.samples["name"].equals(drawn.samples["name"])
    assert other.metrics["nfe"].equals(drawn.metrics["nfe"])
    before, after = drawn.samples["correct"].to_pylist(), other.samples["correct"].to_pylist()
    assert after == [not correct for correct in before]
    assert len(set(before)) == 2


def test_the_page_shows_how_far_a_variant_agrees_with_the_run(root: Path, tmp_path: Path) -> None:
    assert created(root, "same", "reward.recycle_rows=5000") == 0
    asked = message(tmp_path)
    asked["outputs"]["artifacts"]["record"] = {"artifacts": [{"name": "record", "uri": str(tmp_path / "record")}]}
    assert again(root, "reward_scoring", "same", 1, "--executor-input", json.dumps(asked)) == 0
    told = json.loads((tmp_path / "deep/output_metadata.json").read_text())["artifacts"]
    shown, record = (told[name]["artifacts"][0]["metadata"] for name in ("metrics", "record"))
    assert (shown["samples"], shown["failed"]) == (8, 0)
    assert (shown["reward_moved"], shown["verdicts_changed"]) == (0, 0)
    assert record["location"] == "variants/same/iter-00001/reward_scoring/shard-0000"
    assert json.loads((tmp_path / "record").read_text())["digest"] == record["digest"]


def test_a_variant_is_written_once_and_a_name_is_never_given_to_another_reward(root: Path) -> None:
    assert created(root) == 0
    assert created(root) == 0
    assert created(root, knob="reward.workers=2") == 2
    assert open_variant(open_run(str(root)), "other").config.reward.scorers["plane"].scale == 2


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["variant", "--name", "a", "--set", "seed=1"], "`seed` is no knob of the reward"),
        (["variant", "--name", "a", "--set", "reward.kynd=strict"], "`reward.kynd` is no knob"),
        (["variant", "--name", "a"], "the variant's reward is that of the run"),
        (["variant", "--name", "../a", "--set", "reward.workers=3"], "cannot be the name of a variant"),
        (["stage", "reward_scoring", "--iteration", "1", "--variant", "b"], "there is no variant `b`"),
        (["stage", "rollout", "--iteration", "1", "--variant", "ok"], "a variant judges again"),
        (["stage", "reward_scoring", "--iteration", "3", "--variant", "ok"], "out of range, expected 1..2"),
    ],
)
def test_a_mistaken_variant_is_refused(
    arguments: list[str], complaint: str, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert created(root, "ok") == 0
    before = tree(root)
    assert tdm_r1(*arguments[:1], *arguments[1:], "--root", str(root)) == 2
    assert complaint in " ".join(capsys.readouterr().err.split())
    assert tree(root) == before


def test_a_variant_has_the_parents_that_it_reads() -> None:
    from tdm_r1.presets import plane

    config = plane()
    assert parents_of(Task("evaluation", 20, 0, "a"), config) == [Task("encode_prompts"), Task("evaluation", 20)]


def test_a_variant_without_its_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a run"):
        open_run(str(tmp_path))


def test_the_page_shows_the_numbers_of_an_update_without_its_weights(root: Path) -> None:
    run, task = open_run(str(root)), Task("generator_update", 2)
    next((root / task.location).glob("*state.safetensors")).unlink()
    shown = view_of(run, task).metrics
    assert shown
    assert all(isinstance(value, float) for value in shown.values())
