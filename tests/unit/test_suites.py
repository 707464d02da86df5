"""Claims about suites: what is measured, that a killed evaluation goes on, and that pairs are really pairs."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from tdm_r1.artifacts.store import open_store
from tdm_r1.config import RewardConfig
from tdm_r1.errors import ConfigError
from tdm_r1.models.open import open_backbone
from tdm_r1.models.sampler import guided_sample
from tdm_r1.presets import resolve
from tdm_r1.report.card import Card, model_card
from tdm_r1.rewards.geneval_results import read_results, summarize
from tdm_r1.rewards.judges import Judges
from tdm_r1.rewards.protocol import Score, ScorerInfo
from tdm_r1.rng import Keys
from tdm_r1.runtime.release import _remarks
from tdm_r1.runtime.results import result
from tdm_r1.runtime.run import open_run
from tdm_r1.runtime.suites.comparison import partings
from tdm_r1.runtime.suites.evaluation import SAMPLES, geneval_results
from tdm_r1.runtime.suites.judging import judging
from tdm_r1.runtime.suites.parts import Part, scored, write
from tdm_r1.runtime.suites.subject import open_model
from tdm_r1.runtime.suites.suite import open_suite
from tdm_r1.runtime.suites.tables import reward_metric
from tdm_r1.statistics import Interval
from tdm_r1.worlds.world import WorldPrompt
from tests.support import content, tdm_r1, tree

PLANE = ("--suite", "plane", "--workers", "0")
HALF = json.dumps({"use": "plane"})


def evaluate(*arguments: str) -> int:
    return tdm_r1("evaluate", *PLANE, *arguments)


def result_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "evaluation.json").read_text())
    return found


def overall(folder: Path) -> dict[str, float]:
    return {row["metric"]: row["value"] for row in result_of(folder)["metrics"] if row["tag"] == "overall"}


@pytest.fixture(scope="module")
def run_root(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two iterations with one evaluation beside its records: 8 prompts, 16 images each, two parts."""
    root = tmp_path_factory.mktemp("suites") / "run"
    shutil.copytree(finished, root)
    assert evaluate("--root", str(root), "--images-per-prompt", "16") == 0
    return root


@pytest.fixture
def evaluated(run_root: Path, tmp_path: Path) -> tuple[Path, list[str]]:
    """A copy of that evaluation, and the arguments that go on with it."""
    (folder,) = (run_root / "evaluations").iterdir()
    out = tmp_path / "evaluation"
    shutil.copytree(folder, out)
    return out, ["--root", str(run_root), "--images-per-prompt", "16", "--out", str(out)]


def test_an_evaluation_lies_beside_the_records_and_changes_none(run_root: Path, finished: Path) -> None:
    records = {name: digest for name, digest in content(run_root).items() if not name.startswith("evaluations/")}
    assert records == content(finished)
    assert tdm_r1("audit", "--root", str(run_root)) == 0
    (folder,) = (run_root / "evaluations").iterdir()
    assert folder.name.startswith("plane-iter-00002-")


def test_the_value_is_the_mean_over_tags_of_the_prompts_means_and_the_reward_is_the_training_ones(
    evaluated: tuple[Path, list[str]],
) -> None:
    rows = pq.read_table(evaluated[0] / "samples.parquet").to_pylist()
    tags: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        tags.setdefault(row["tag"], {}).setdefault(row["prompt_id"], []).append(row["value"])
    expected = np.mean([np.mean([np.mean(images) for images in own.values()]) for own in tags.values()])
    assert overall(evaluated[0]) == pytest.approx({"reward": expected, "plane": expected})
    assert len(rows) == 8 * 16
    assert pq.read_table(evaluated[0] / "metrics.parquet").num_rows == 2 * 9
    assert "| plane ↑ |" in (evaluated[0] / "evaluation.md").read_text()


def test_a_killed_evaluation_draws_what_is_missing_alone_and_ends_the_same(evaluated: tuple[Path, list[str]]) -> None:
    folder, arguments = evaluated
    whole = {name: (folder / name).read_bytes() for name in ("evaluation.json", "samples.parquet", "evaluation.md")}
    kept = {path: path.stat().st_mtime_ns for path in folder.rglob("00000.parquet")}
    for name in ("evaluation.json", "samples.parquet", "images/00001.parquet", "scores/plane/00001.parquet"):
        (folder / name).unlink()
    assert evaluate(*arguments) == 0
    assert {name: (folder / name).read_bytes() for name in whole} == whole
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert len(kept) == 2


def test_shards_in_any_order_leave_the_files_of_one_command(
    evaluated: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, arguments = evaluated
    whole = tree(folder)
    shutil.rmtree(folder)
    assert evaluate(*arguments, "--shard", "1/2") == 0
    assert "shard 1/2: 64 images are drawn and scored" in capsys.readouterr().out
    assert {path.name for path in (folder / "images").iterdir()} == {"00001.parquet"}
    assert not (folder / "evaluation.json").exists()
    assert evaluate(*arguments, "--shard", "0/2") == 0
    drawn = {path: path.stat().st_mtime_ns for path in folder.glob("images/*")}
    assert evaluate(*arguments) == 0
    assert tree(folder) == whole
    assert {path: path.stat().st_mtime_ns for path in drawn} == drawn


@pytest.mark.parametrize(
    ("shard", "said"), [("2/2", "expected 0/2 to 1/2"), ("one", "expected I/N"), ("-1/2", "I/N"), ("0/0", "0/0")]
)
def test_a_shard_that_is_none_is_refused_before_anything_is_written(
    shard: str, said: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate("--root", str(finished), "--out", str(tmp_path / "out"), f"--shard={shard}") == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


class Bare:
    """A scorer of another hand: no base class, and at first no revision."""

    info = ScorerInfo(name="bare", version="1", licence="MIT")
    asked = 0

    def load(self, threads: int) -> None:
        del threads

    def selftest(self) -> None:
        return

    def score(self, images: Sequence[Any], prompts: Sequence[str], metadata: Sequence[Any]) -> list[Score]:
        Bare.asked += len(images)
        return [Score(float(len(prompt))) for prompt in prompts]


@pytest.mark.parametrize(("revision", "times"), [("", 2), ("a", 1)])
def test_a_score_is_taken_from_before_only_if_its_scorer_says_which_revision_it_is(
    revision: str, times: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Bare, "asked", 0)
    monkeypatch.setattr(Bare, "info", replace(Bare.info, revision=revision))
    judges = Judges(RewardConfig.model_validate({"scorers": {"bare": {"use": f"{__name__}:Bare"}}, "workers": 0}))
    part = Part(0, ((WorldPrompt("p-0", "a cat", "animals", "test", {}), 0),))
    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "PNG")
    for _ in range(2):
        (row,) = scored(part, [picture.getvalue()], "bare", judges, open_store(str(tmp_path)), "suite")
        assert row["value"] == 5.0
    assert Bare.asked == times


def test_a_scorer_that_is_added_later_draws_nothing_again(evaluated: tuple[Path, list[str]]) -> None:
    folder, arguments = evaluated
    drawn = {path: path.stat().st_mtime_ns for path in (folder / "images").iterdir()}
    assert evaluate(*arguments, "--scorer", f"again={HALF}") == 0
    assert {path: path.stat().st_mtime_ns for path in drawn} == drawn
    assert overall(folder)["again"] == overall(folder)["plane"]


@pytest.mark.parametrize(
    ("change", "claim"),
    [
        (("--seed", "1"), "noise.seed is 0 there and 1 here"),
        (("--steps", "7"), "generator.nfe is 4 there and 7 here"),
        (("--iteration", "0"), "generator.iteration is 2 there and 0 here"),
        (("--images-per-prompt", "4"), "prompts.images_per_prompt is 16 there and 4 here"),
    ],
)
def test_a_folder_holds_one_evaluation(
    evaluated: tuple[Path, list[str]], change: Sequence[str], claim: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(*evaluated[1], *change) == 2
    assert claim in capfd.readouterr().err


def test_a_pipeline_is_drawn_at_the_steps_and_the_guidance_that_are_asked(tmp_path: Path) -> None:
    out = tmp_path / "out"
    asked = ("--steps", "5", "--guidance", "2", "--seed", "3")
    assert evaluate("--model", "embedded:plane", *asked, "--out", str(out)) == 0
    assert json.loads((out / "suite.json").read_text())["generator"]["nfe"] == 10
    drawn = pq.read_table(out / "images/00000.parquet").to_pylist()
    backbone, names = open_backbone(resolve("plane", {}).model), [f"{row['prompt_id']}/0" for row in drawn]
    texts = pq.read_table(out / "prompts.parquet")["text"].to_pylist()
    latents = guided_sample(
        backbone,
        Keys(3, 0).normals("suite/noise", names, shape=backbone.latent_shape),
        backbone.encode_prompts(texts),
        backbone.encode_prompts([""]),
        {},
        steps=5,
        shift=3.0,
        guidance=2.0,
        microbatch=64,
    )
    found = np.stack([np.asarray(Image.open(io.BytesIO(row["image"]))) for row in drawn])
    torch.testing.assert_close(torch.from_numpy(found), backbone.decode(latents))
    assert "reward" not in overall(out)


def test_the_shift_is_that_of_the_pipelines_own_scheduler(pipeline: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pipeline"
    shutil.copytree(pipeline, folder)
    config = folder / "scheduler/scheduler_config.json"
    stated = json.loads(config.read_text())
    config.write_text(json.dumps({**stated, "shift": 6.0}))
    found = open_model(str(folder), "", {}).config
    assert (found.sampler.shift, found.model.backbone) == (6.0, "sd3")
    config.write_text(json.dumps({**stated, "use_dynamic_shifting": True}))
    with pytest.raises(ConfigError, match="depends on the size"):
        open_model(str(folder), "", {})
    assert open_model(str(folder), "", {"sampler.shift": 2.5}).config.sampler.shift == 2.5


def test_a_scorer_without_its_weights_refuses_before_anything_is_drawn(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    asked = ("--model", "embedded:plane", "--steps", "2", "--scorer", "aesthetic", "--out", str(out))
    assert evaluate(*asked) == 2
    said = capfd.readouterr().err
    assert "`aesthetic` cannot be loaded" in said
    assert "the option `head`" in said
    assert not list(tmp_path.rglob("*.parquet"))


def test_a_mix_asks_each_scorer_about_its_own_prompts_and_knows_the_reward_of_each_half() -> None:
    config = resolve("z_image_geneval_ocr", {})
    section, reward = judging(open_suite("geneval+ocr"), config, {}, 1)
    assert {name: one.worlds for name, one in section.scorers.items()} == {"geneval": ("geneval",), "ocr": ("ocr",)}
    assert reward == config.reward
    alone, own = judging(open_suite("ocr"), config, {}, 1)
    assert own is not None
    assert (list(alone.scorers), list(own.scorers)) == (["ocr"], ["ocr"])
    assert judging(open_suite("shapes"), config, {}, 1)[1] is None
    assert open_suite("geneval").images_per_prompt == 4


def test_the_training_reward_is_weighted_and_signed_as_the_run_does() -> None:
    def rows(*values: float | None) -> list[dict[str, Any]]:
        said: dict[str, Any] = {"parts": [], "detail": None, "tag": "t", "number": 0}
        return [
            {**said, "prompt_id": f"p{n}", "value": value, "error": "broke" if value is None else None}
            for n, value in enumerate(values)
        ]

    reward = RewardConfig.model_validate(
        {"scorers": {"a": {"weight": 2, "high": 1.5}, "b": {"scale": 0.5}, "c": {"weight": 0}}}
    )
    metric = reward_metric({"a": rows(1, 2, 3), "b": rows(4, 4, None)}, {"a": True, "b": False}, reward)
    assert metric.values == {("t", "p0"): 2 * 1 - 2, ("t", "p1"): 2 * 1.5 - 2}


def test_genevals_own_summary_reads_the_result_file(tmp_path: Path) -> None:
    suite = open_suite("geneval", count=12)
    right = [n % 3 == 0 for n in range(len(suite.prompts) * 4)]
    rows = [
        {
            "prompt_id": prompt.prompt_id,
            "number": number,
            "value": 0.5,
            "parts": [{"name": "correct", "value": float(right[4 * position + number])}],
            "detail": json.dumps({"reason": "", "details": {}}),
            "error": None,
        }
        for position, prompt in enumerate(suite.prompts)
        for number in range(4)
    ]
    (tmp_path / "geneval.jsonl").write_bytes(geneval_results(suite, rows))
    summary = summarize(read_results(tmp_path / "geneval.jsonl"))
    assert (summary.images, summary.prompts, summary.missing) == (48, 12, [])
    assert summary.correct_images == sum(right) / 48


def made(folder: Path, scores: Mapping[str, Sequence[float]], *, seed: int = 0, trained: bool = True) -> str:
    """An evaluation of 40 prompts as it lies in a folder, with these scores; `a` is the training reward."""
    store = open_store(str(folder))
    rows = [
        {"scorer": name, "tag": "t", "text": "", "prompt_id": f"p{n}", "number": 0, "value": value, "parts": []}
        for name, own in scores.items()
        for n, value in enumerate(own)
    ]
    write(store, "samples.parquet", pa.Table.from_pylist(rows, schema=SAMPLES))
    body = {
        "format": 1,
        "title": folder.name,
        "prompts": {"count": 40, "sha256": "0" * 64, "images_per_prompt": 1},
        "noise": {"seed": seed, "latent": [1]},
        "bootstrap": {"resamples": 200, "seed": 0},
        "reward": RewardConfig.model_validate({"scorers": {"a": {}}}).model_dump(mode="json") if trained else None,
        "scorers": {name: {"higher_is_better": name != "less", "revision": "r"} for name in scores},
    }
    store.overwrite("evaluation.json", json.dumps(body).encode())
    return str(folder)


HARD = np.random.default_rng(0).random(40)
"""Prompts differ much more than models do."""


@pytest.fixture
def pair(tmp_path: Path) -> list[str]:
    """The second has more of the reward `a`, less of `b`, as much of `c`, and more of `less`, which should be low."""
    noise = 0.01 * np.random.default_rng(1).standard_normal((4, 40))
    before = {name: (HARD + noise[n]).tolist() for n, name in enumerate(("a", "b", "less", "c"))}
    change = {"a": 0.1, "b": -0.1, "less": 0.1, "c": 0.0}
    after = {name: (HARD + noise[n][::-1] + change[name]).tolist() for n, name in enumerate(before)}
    return [made(tmp_path / "before", before), made(tmp_path / "after", after)]


def test_pairs_cancel_what_makes_prompts_differ_and_a_hacked_reward_is_told(
    pair: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert tdm_r1("compare", *pair, "--out", str(out)) == 0
    assert tdm_r1("compare", *pair, "--strict") == 1
    assert tdm_r1("compare", *pair[::-1], "--strict") == 0
    (one,) = json.loads((out / "comparison.json").read_text())["against"]
    found = {row["metric"]: row for row in one["differences"] if row["tag"] == "overall"}
    for name, change in {"reward": 0.1, "a": 0.1, "b": -0.1, "less": 0.1, "c": 0.0}.items():
        assert found[name]["value"] == pytest.approx(change, abs=0.01)
        assert found[name]["high"] - found[name]["low"] < 0.02 < 4 * HARD.std() / 40**0.5
        assert found[name]["value"] == pytest.approx(found[name]["after"] - found[name]["before"])
    assert [warning.split("`")[1] for warning in one["warnings"]] == ["b", "less"]
    assert "while `b` is worse" in capfd.readouterr().err
    assert "while `b` is worse" in (out / "comparison.md").read_text()
    assert pq.read_table(out / "comparison.parquet").num_rows == 10


@pytest.mark.parametrize(
    ("reward", "other", "parts"),
    [
        ((0.1, 0.05), (-0.2, -0.1), True),
        ((0.1, 0.0), (-0.2, -0.1), False),
        ((0.1, 0.05), (-0.2, 0.0), False),
        ((-0.1, -0.2), (-0.2, -0.1), False),
    ],
)
def test_they_part_only_when_both_intervals_leave_0(
    reward: tuple[float, float], other: tuple[float, float], parts: bool
) -> None:
    low = Interval(reward[0], reward[1], 1.0, 9)
    high = Interval(other[0], -1.0, other[1], 9)
    found = partings({"reward": low, "a": high, "b": high}, {"reward": True, "a": True, "b": True}, ["a"])
    assert len(found) == parts


def test_other_noise_or_other_prompts_cannot_be_paired(
    pair: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    other = made(tmp_path / "other", {"a": HARD.tolist()}, seed=7)
    assert tdm_r1("compare", pair[0], other) == 2
    assert "noise `seed` is 0 and 7; 40 prompt ids are in both" in capfd.readouterr().err.replace("\n", " ")
    assert tdm_r1("compare", pair[0]) == 2
    assert tdm_r1("compare", pair[0], str(tmp_path)) == 2


def test_without_a_training_reward_nothing_is_warned_of_and_this_is_said(
    pair: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    other = made(tmp_path / "other", {"a": (HARD + 1).tolist(), "b": (HARD - 1).tolist()}, trained=False)
    assert tdm_r1("compare", pair[0], other, "--strict") == 0
    assert "no training reward is measured in both" in capfd.readouterr().out


def test_a_reward_that_the_baseline_did_not_measure_is_no_passed_gate(
    pair: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    other = made(tmp_path / "other", {"b": HARD.tolist()})
    assert tdm_r1("compare", other, pair[1], "--strict") == 1
    said = capfd.readouterr().err.replace("\n", " ")
    assert 'did not ask a; run its command again with --scorer \'a={"use": "a", "options": {}}\'' in said


def test_the_model_card_tells_the_gain_that_the_result_tells(finished: Path) -> None:
    run = open_run(str(finished))
    gained = result(run)["gain"]
    (line,) = _remarks(run, run.config.iterations)
    assert f"{gained['overall']:+.3f}, 95% interval {gained['ci95'][0]:+.3f} to {gained['ci95'][1]:+.3f}" in line
    assert _remarks(run, 0) == []
    names = Card.__dataclass_fields__
    empty: dict[str, Any] = dict.fromkeys(names, "") | {"base_digests": {}, "call": {}, "absent": [], "sigmas": []}
    row = {"name": "tdm-r1", "nfe": 4, "overall": 0.5, "ci95": [0.4, 0.6], "tags": {}}
    shown = empty | {"row": row, "remarks": [line], "steps": 4, "shift": 3.0, "grid": [], "iteration": 2, "judged": 8}
    assert f"\n- {line}\n" in model_card(Card(**shown))
