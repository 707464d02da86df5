"""Claims about runs with prompts of two kinds: each image is judged by the scorers of its own world, and no other."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

from tdm_r1.artifacts.records import PromptSet, Rewards, Rollout
from tdm_r1.config import RewardConfig, RunConfig, SurrogateConfig
from tdm_r1.errors import ConfigError
from tdm_r1.models.prompts import PromptTable
from tdm_r1.presets import resolve
from tdm_r1.rewards.aggregate import aggregate
from tdm_r1.rewards.judges import Judges
from tdm_r1.rewards.protocol import NOT_ASKED
from tdm_r1.rewards.scored import score
from tdm_r1.rng import Keys
from tdm_r1.runtime.dry_run import plan
from tdm_r1.stages.reward_scoring import reward_scoring
from tdm_r1.worlds.mix import WORLD
from tdm_r1.worlds.shapes import render
from tdm_r1.worlds.world import WorldPrompt, open_world
from tests.unit.artifact_examples import raw_scores

SCORERS: dict[str, Any] = {"shapes": {"worlds": ["shapes"]}, "ocr": {"worlds": ["ocr"]}}
CIRCLE = render.Figure("circle", "red", 32.0, 32.0, 9.0)
WORD = "Yoga"


def prompt_set(rows: list[WorldPrompt]) -> PromptSet:
    """Prompts that all have the embedding of the empty one."""
    columns: dict[str, Any] = {
        "prompt_id": [row.prompt_id for row in rows],
        "text": [row.text for row in rows],
        "tag": [row.tag for row in rows],
        "split": [row.split for row in rows],
        "metadata": [json.dumps(row.metadata) for row in rows],
        "embedding": [0] * len(rows),
    }
    embeddings = {"sequence": torch.zeros(1, 1, 1), "pooled": torch.zeros(1, 1)}
    return PromptSet(prompts=PromptSet.table("prompts", **columns), embeddings=embeddings)


@pytest.fixture(scope="module")
def mixed() -> list[WorldPrompt]:
    return open_world("shapes+ocr").prompts()


def figures(*shown: render.Figure) -> np.ndarray[Any, Any]:
    return render.draw(shown, "black", np.random.default_rng(0))


def writing(text: str) -> np.ndarray[Any, Any]:
    picture = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(picture).text((32, 32), text, fill="black", font=ImageFont.load_default(20), anchor="mm")
    return np.asarray(picture)


def test_every_image_is_judged_by_the_scorers_of_its_world_and_groups_of_both_kinds_have_advantages() -> None:
    circle = WorldPrompt(
        "p-circle",
        "a red circle",
        "colors",
        "train",
        {"tag": "colors", "include": [{"class": "circle", "count": 1, "color": "red"}], WORLD: "shapes"},
    )
    word = WorldPrompt("p-word", f'a sign that says "{WORD}"', "word", "train", {"text": WORD, WORLD: "ocr"})
    images = [figures(CIRCLE), figures(), writing(WORD), writing("")]
    index = {"sample_id": [f"s{n}" for n in range(4)], "prompt_id": ["p-circle"] * 2 + ["p-word"] * 2}
    drawn = Rollout(
        index=Rollout.table("index", **index, group=[0, 0, 1, 1]),
        images=torch.from_numpy(np.stack(images)),
        states=torch.zeros(4, 2, 1, 1, 1),
    )
    config = resolve("shapes_smoke", {"world": "shapes+ocr", "reward.scorers": SCORERS, "reward.max_error_rate": 0.0})
    rewards = reward_scoring(prompt_set([circle, word]).prompts, drawn, judges=Judges(config.reward), config=config)

    rows = {(row["scorer"], row["sample_id"]): row for row in rewards.scores.to_pylist()}
    asked = {key for key, row in rows.items() if row["error"] is None}
    assert asked == {("shapes", "s0"), ("shapes", "s1"), ("ocr", "s2"), ("ocr", "s3")}
    assert {row["error"] for key, row in rows.items() if key not in asked} == {NOT_ASKED}
    assert all(row["value"] is None for key, row in rows.items() if key not in asked)
    trajectories, advantages = score([(drawn, rewards)], 1, SurrogateConfig(), config.reward)
    assert trajectories.valid.all()
    assert (trajectories.advantages > 0).tolist() == [True, False, True, False]
    assert advantages.zero_variance_groups == 0


def test_a_scorer_that_was_not_asked_neither_adds_nor_fails_nor_takes_the_groups_mean() -> None:
    record = raw_scores(
        {"a": [1.0, 3.0, None, None], "b": [None, None, 5.0, None]},
        errors=[None, None, NOT_ASKED, NOT_ASKED, NOT_ASKED, NOT_ASKED, None, "broke"],
        sample_id=["s0", "s1", "s2", "s3"],
        prompt_id=["p", "p", "q", "q"],
        group=[0, 0, 1, 1],
    )
    for on_error, last in (("drop", None), ("group_mean", 10.0)):
        config = RewardConfig.model_validate({"scorers": {"a": {}, "b": {"weight": 2, "on_error": on_error}}})
        assert aggregate(record, config)["reward"].to_pylist() == [1.0, 3.0, 10.0, last]


def test_verdicts_of_a_mix_are_those_of_the_scorer_that_was_asked() -> None:
    right, wrong = ([{"name": "correct", "value": value}] for value in (1.0, 0.0))
    record = raw_scores({"a": [1.0, None], "b": [None, 0.0]}, errors=[None, NOT_ASKED, NOT_ASKED, None], **KEYS)
    parts = Rewards.table("scores", **{**record.scores.to_pydict(), "parts": [right, [], [], wrong]})
    config = RewardConfig.model_validate({"scorers": {"a": {}, "b": {}}})
    table = aggregate(Rewards(scores=parts, scorers=record.scorers), config)
    assert table["correct"].to_pylist() == [True, False]


KEYS: dict[str, Any] = {"sample_id": ["s0", "s1"], "prompt_id": ["p", "q"], "group": [0, 1]}


def test_worlds_are_drawn_by_their_shares_and_tags_by_theirs_inside_them(mixed: list[WorldPrompt]) -> None:
    table = PromptTable(prompt_set([row for row in mixed if row.split == "train"]))
    shares = table.shares({"counting": 3.0}, {"shapes": 1.0, "ocr": 3.0})
    drawn = table.draw(range(8000), Keys(0, 1), shares)
    rows = [table.rows[prompt_id] for prompt_id in drawn]
    from_shapes = [row for row in rows if row["metadata"][WORLD] == "shapes"]
    assert len(from_shapes) / len(rows) == pytest.approx(1 / 4, abs=0.02)
    assert sum(row["tag"] == "counting" for row in from_shapes) / len(from_shapes) == pytest.approx(3 / 8, abs=0.03)
    assert table.shares({"counting": 3.0}, {}) == {"counting": 3.0}


def test_a_mix_holds_the_prompts_of_its_worlds_with_their_names(mixed: list[WorldPrompt]) -> None:
    for name in ("shapes", "ocr"):
        alone = {(row.prompt_id, row.text, row.split) for row in open_world(name).prompts()}
        assert {(row.prompt_id, row.text, row.split) for row in mixed if row.metadata[WORLD] == name} == alone
    assert [row.split for row in mixed] == sorted((row.split for row in mixed), reverse=True)
    with pytest.raises(ConfigError, match="both have the tag `"):
        open_world("shapes+geneval").prompts()


@pytest.mark.parametrize(
    ("overrides", "claim"),
    [
        ({"world": "shapes+faces"}, "there is no world `faces`"),
        ({"world": "ocr+ocr"}, "twice"),
        ({"world": "shapes+ocr", "reward.scorers": {"shapes": {"worlds": ["shapes"]}}}, "asked about prompts of `ocr`"),
        ({"world": "shapes+ocr", "reward.scorers": {**SCORERS, "ocr": {"worlds": ["ocr"], "weight": 0}}}, "of `ocr`"),
        ({"reward.scorers": {"shapes": {"worlds": ["geneval"]}}}, "`geneval`, but the world is shapes"),
        ({"rollout.world_shares": {"ocr": 1.0}}, "`ocr`, but the world is shapes"),
    ],
)
def test_a_mix_that_cannot_be_judged_is_refused(overrides: dict[str, Any], claim: str) -> None:
    with pytest.raises(ConfigError, match=claim):
        resolve("shapes_smoke", overrides)


def test_the_published_mix_asks_each_scorer_about_its_own_half() -> None:
    config: RunConfig = resolve("z_image_geneval_ocr", {})
    found = plan(config).prompts
    assert {world: scorers for world, (_, _, scorers) in found.items()} == {"geneval": ("geneval",), "ocr": ("ocr",)}
    assert sum(held_out for _, held_out, _ in found.values()) == config.evaluation.prompts == 553 + 1018
