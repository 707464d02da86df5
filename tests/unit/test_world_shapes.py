"""Claims about the world `shapes`: the verifier sees what the renderer drew, and nothing is leaked between splits."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from tdm_r1.rewards.shapes import ShapesScorer
from tdm_r1.worlds.shapes.grammar import BACKGROUNDS, HELD_OUT, TAGS, Prompt, split, vocabulary
from tdm_r1.worlds.shapes.render import SIDE, compose, render
from tdm_r1.worlds.shapes.verifier import verify
from tdm_r1.worlds.world import open_world

TRAINING, TEST = split()


def cycle(prompts: tuple[Prompt, ...], count: int) -> list[Prompt]:
    return [prompts[number % len(prompts)] for number in range(count)]


@pytest.mark.parametrize("tag", TAGS)
def test_the_verifier_agrees_with_the_renderer_on_held_out_prompts(tag: str) -> None:
    rng = np.random.default_rng(7)
    verdicts = [verify(render(prompt, rng), prompt.metadata()) for prompt in cycle(TEST[tag], 200)]
    assert np.mean([v.correct for v in verdicts]) >= 0.99
    assert np.mean([v.strict for v in verdicts]) >= 0.99
    assert np.mean([v.score for v in verdicts]) >= 0.99


@pytest.mark.parametrize("tag", TAGS)
def test_an_image_of_another_prompt_is_rarely_correct(tag: str) -> None:
    rng = np.random.default_rng(8)
    prompts = cycle(TEST[tag], 60)
    images = [render(prompt, rng) for prompt in prompts]
    shifted = prompts[1:] + prompts[:1]
    correct = [verify(i, p.metadata()).correct for i, p in zip(images, shifted, strict=True)]
    same = [a.include == b.include for a, b in zip(prompts, shifted, strict=True)]
    assert np.mean(correct) <= np.mean(same) + 0.1


@pytest.mark.parametrize("tag", TAGS)
def test_noise_and_blank_images_earn_nothing(tag: str) -> None:
    rng = np.random.default_rng(9)
    noise = [rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8) for _ in range(10)]
    blanks = [np.full((SIDE, SIDE, 3), color, dtype=np.uint8) for color in (0, 127, 255, *BACKGROUNDS.values())]
    for image in noise + blanks:
        for prompt in TEST[tag][:5]:
            score = ShapesScorer().score_one(image, prompt.text, prompt.metadata())
            assert (score.value, score.part("correct"), score.part("strict")) == (0.0, 0.0, 0.0)


def test_no_held_out_sentence_is_in_training() -> None:
    train = {prompt.text for rows in TRAINING.values() for prompt in rows}
    test = [prompt.text for rows in TEST.values() for prompt in rows]
    assert len(test) == len(set(test)) == 600 == sum(HELD_OUT.values())
    assert not train & set(test)


def test_every_held_out_word_is_learnable() -> None:
    seen = {word for rows in TRAINING.values() for prompt in rows for word in prompt.text.split()}
    assert set(vocabulary()) == seen


def test_the_split_and_the_prompt_ids_are_those_that_were_published() -> None:
    rows = open_world("shapes").prompts()
    assert len(rows) == len({row.prompt_id for row in rows})
    assert [row.split for row in rows] == sorted((row.split for row in rows), reverse=True)  # train before test
    first = {row.tag: row.text for row in reversed(rows) if row.split == "test"}
    assert first == {tag: TEST[tag][0].text for tag in TAGS}


@pytest.mark.parametrize("tag", TAGS)
def test_the_renderer_draws_what_the_prompt_asks(tag: str) -> None:
    rng = np.random.default_rng(10)
    for prompt in cycle(TRAINING[tag], 100):
        figures = compose(prompt, rng)
        asked = [clause["class"] for clause in prompt.include for _ in range(clause["count"])]
        assert [figure.shape for figure in figures] == asked
        for figure, clause in zip(figures, prompt.include, strict=False):
            assert figure.color == clause.get("color", figure.color)
            if "position" in clause:
                anchor, relation = figures[clause["position"][1]], clause["position"][0]
                dx, dy = figure.x - anchor.x, figure.y - anchor.y
                holds = {"left of": -dx, "right of": dx, "above": -dy, "below": dy}
                assert max(holds, key=lambda name: holds[name]) == relation
        for a, b in combinations(figures, 2):
            assert max(abs(a.x - b.x), abs(a.y - b.y)) > a.radius + b.radius
        for figure in figures:
            assert figure.radius < min(figure.x, figure.y, SIDE - figure.x, SIDE - figure.y)


def test_the_same_seed_draws_the_same_image() -> None:
    prompt = TEST["counting"][0]
    one, two, other = (render(prompt, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(one, two)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize(("kind", "reward"), [("partial", 0.5), ("strict", 0.0), ("correct", 0.0)])
def test_the_kind_of_reward_chooses_the_number(kind: str, reward: float) -> None:
    two = {"tag": "two_object", "include": [{"class": "circle", "count": 1}, {"class": "ring", "count": 1}]}
    only_circle = Prompt(text="", tag="single_object", include=({"class": "circle", "count": 1},))
    score = ShapesScorer(kind=kind).score_one(render(only_circle, np.random.default_rng(0)), "", two)
    assert score.value == reward
    assert score.part("partial") == 0.5
