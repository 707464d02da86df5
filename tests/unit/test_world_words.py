"""Claims about the world `words`: what is held out, what is drawn, and that a real OCR engine reads it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest

from tdm_r1.rewards.ask import Question, ask, make_ready
from tdm_r1.rewards.ocr_text import target_of
from tdm_r1.rewards.protocol import Score, Scorer
from tdm_r1.rewards.registry import open_scorer
from tdm_r1.worlds.words import DIGITS, GROUNDS, INKS, LETTERS, TAGS, Image, Prompt, render, split
from tdm_r1.worlds.world import WorldPrompt, open_world


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    opened = open_scorer("words", {"kind": "correct"})
    make_ready(opened)
    return opened


def parts() -> tuple[list[WorldPrompt], list[WorldPrompt]]:
    rows = open_world("words").prompts()
    return [row for row in rows if row.split == "train"], [row for row in rows if row.split == "test"]


def judged(scorer: Scorer, images: Sequence[Image], texts: Sequence[str]) -> list[Score]:
    return ask(scorer, [Question(image, "", {"text": text}) for image, text in zip(images, texts, strict=True)])


def test_no_held_out_string_is_in_training_but_every_character_is_at_both_places() -> None:
    training, held_out = ({row.metadata["text"] for row in part} for part in parts())
    assert training.isdisjoint(held_out)
    assert len(training | held_out) == len(LETTERS + DIGITS) ** 2
    for place in (0, 1):
        seen = Counter(text[place] for text in training)
        assert set(seen) == set(LETTERS + DIGITS)
        assert min(seen.values()) >= 8


def test_there_are_600_held_out_prompts_and_a_sentence_says_what_is_to_be_read() -> None:
    training, held_out = parts()
    assert len(held_out) >= 600
    assert {row.tag for row in held_out} == {row.tag for row in training} == set(TAGS)
    assert all(target_of(row.text) == row.metadata["text"] for row in training + held_out)
    assert len({row.text for row in training + held_out}) == len(training + held_out)
    colors = {(ink, ground) for ink in INKS for ground in GROUNDS}
    assert {tuple(row.text.split(" in ")[1].split(" on ")) for row in held_out} == colors


def test_a_picture_follows_from_its_prompt_and_its_draws_and_no_glyph_is_cut() -> None:
    prompts = [prompt for rows in split()[0].values() for prompt in rows]
    once, again = ([render(prompt, np.random.default_rng(7)) for prompt in prompts[:40]] for _ in range(2))
    assert np.array_equal(once, again)
    rng = np.random.default_rng(0)
    for prompt in prompts:
        picture = render(prompt, rng)
        edge = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
        assert (edge == GROUNDS[prompt.ground]).all()


@pytest.mark.parametrize("tag", TAGS)
def test_rapidocr_reads_99_of_100_drawn_strings(scorer: Scorer, tag: str) -> None:
    rng = np.random.default_rng(1)
    prompts = [prompt for part in split() for prompt in part[tag]]
    chosen = [prompts[row] for row in rng.permutation(len(prompts))[:300]]
    scores = judged(scorer, [render(prompt, rng) for prompt in chosen], [prompt.text for prompt in chosen])
    assert np.mean([score.value for score in scores]) >= 0.99


def test_noise_and_blanks_and_another_string_are_not_right(scorer: Scorer) -> None:
    rng = np.random.default_rng(2)
    noise = [rng.integers(0, 256, (64, 64, 3), dtype=np.uint8) for _ in range(40)]
    blanks = [np.full((64, 64, 3), color, np.uint8) for color in GROUNDS.values()]
    others = [render(Prompt("K4", "white", ground), rng) for ground in GROUNDS]
    images = noise + blanks + others
    assert {score.value for score in judged(scorer, images, ["A7"] * len(images))} == {0.0}


def test_one_right_character_is_half_of_the_similarity_and_case_does_not_count() -> None:
    partial = open_scorer("words", {})
    make_ready(partial)
    picture = render(Prompt("K4", "yellow", "black"), np.random.default_rng(0))
    scores = judged(partial, [picture] * 4, ["K4", "k4", "K7", "74"])
    assert [score.value for score in scores] == [1.0, 1.0, 0.5, 0.5]
    assert [score.part("correct") for score in scores] == [1.0, 1.0, 0.0, 0.0]


def test_metadata_without_a_string_cost_their_own_row(scorer: Scorer) -> None:
    picture = render(Prompt("K4", "white", "navy"), np.random.default_rng(0))
    asked = [Question(picture, "", metadata) for metadata in ({"text": "K4"}, {}, {"text": " "}, {"text": 4})]
    good, *bad = ask(scorer, asked)
    assert good.value == 1.0
    assert all(score.error and "expected the string to be read" in score.error for score in bad)
