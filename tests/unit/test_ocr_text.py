"""Claims about the OCR reward that need no engine: formula, quotation marks, order of reading, prompts."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tdm_r1.presets import resolve
from tdm_r1.rewards.ocr_text import Line, in_reading_order, plain, read, target_of
from tdm_r1.worlds.ocr_prompts import TEST, OcrWorld, benchmark_rows, training_rows
from tdm_r1.worlds.world import open_world
from tests.support import tdm_r1

TEXT = st.text(alphabet="abcAB 1", max_size=8)


def distance(a: str, b: str) -> int:
    """Levenshtein's distance by its recursion, row by row."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row = row, [i]
        for j, y in enumerate(b, 1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (x != y)))
    return row[-1]


@settings(max_examples=60, deadline=None)
@given(found=TEXT, target=TEXT.filter(lambda text: text.strip()))
def test_the_reward_is_one_minus_the_distance_over_the_length_unless_contained(found: str, target: str) -> None:
    a, b = found.replace(" ", "").lower(), target.replace(" ", "").lower()
    wanted = 1.0 if b in a else 1 - min(distance(a, b), len(b)) / len(b)
    reading = read(found, target)
    assert reading.reward == reading.published == pytest.approx(wanted)
    assert reading.exact == (a == b)
    assert reading.similarity == pytest.approx(1 - distance(a, b) / max(len(a), len(b)))


@pytest.mark.parametrize(
    ("found", "reward", "exact"),
    [
        ("OPEN 24", 1.0, True),
        ("we are open 24 hours", 1.0, False),
        ("Opan 24", 5 / 6, False),
        ("", 0.0, False),
        ("nothing like that at all", 0.0, False),
    ],
)
def test_golden_rewards(found: str, reward: float, exact: bool) -> None:
    reading = read(found, "Open 24")
    assert reading.reward == pytest.approx(reward)
    assert reading.exact is exact


def test_a_length_penalty_takes_back_what_the_substring_rule_gives_to_many_words() -> None:
    spam = "open 24 open 24 open 24"
    assert read(spam, "Open 24").reward == 1.0
    penalised = read(spam, "Open 24", length_penalty=0.3)
    assert penalised.reward == pytest.approx(0.4)
    assert (penalised.published, penalised.excess) == (1.0, 2.0)
    assert read(spam, "Open 24", length_penalty=9.0).reward == 0.0
    assert read("Open 24", "Open 24", length_penalty=9.0).reward == 1.0


def test_composed_and_decomposed_characters_are_the_same_text() -> None:
    assert plain("Cafe\u0301 Zu\u0308rich") == plain("café zürich") == "cafézürich"


@pytest.mark.parametrize(
    ("prompt", "target"),
    [
        ('a sign that says "Open 24"', "Open 24"),
        ("a sign that says “Open 24” at night", "Open 24"),
        ("ein Schild „Offen“", "Offen"),
        ('a sign that says "Open 24” and "Closed"', "Open 24"),
        ('"It\'s here", says a cat', "It's here"),
    ],
)
def test_the_target_stands_between_the_first_two_quotation_marks(prompt: str, target: str) -> None:
    assert target_of(prompt) == target


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ("a dog on a beach", "no text in quotation marks"),
        ('a sign "Open', "no text in quotation marks"),
        ("", "no text in quotation marks"),
        ('a sign "" and "Open"', "hold no text"),
        ("a sign “ \n”", "hold no text"),
    ],
)
def test_a_prompt_that_asks_for_no_text_is_an_error(prompt: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        target_of(prompt)


def line(text: str, left: float, middle: float, height: float = 20.0) -> Line:
    return Line(text, 0.9, left, middle - height / 2, left + 10 * len(text), middle + height / 2)


def test_words_of_a_tilted_row_are_read_from_the_left_and_rows_from_the_top() -> None:
    tilted = [line("Birthday", 70, 44), line("Happy", 0, 50), line("You", 160, 38)]
    below = [line("Dear", 0, 80), line("Robin", 60, 76)]
    assert [one.text for one in in_reading_order([*below, *tilted])] == ["Happy", "Birthday", "You", "Dear", "Robin"]


def test_a_small_line_under_a_large_one_is_a_row_of_its_own() -> None:
    lines = [line("small", 0, 96, 12), line("LARGE", 40, 60, 80)]
    assert [one.text for one in in_reading_order(lines)] == ["LARGE", "small"]


def test_no_measured_text_is_trained_on_and_every_prompt_asks_for_its_text() -> None:
    test, train = benchmark_rows(), training_rows(1_700)
    assert (len(test), len(train)) == (1_018, 1_700)
    assert sum(TEST.values()) == 1_018
    assert len({plain(row["text"]) for row in test}) == 1_018
    assert len({row["prompt"] for row in train}) == 1_700
    assert not {plain(row["text"]) for row in test} & {plain(row["text"]) for row in train}
    for row in (*test, *train):
        assert target_of(row["prompt"]) == row["text"]


def test_the_prompts_are_the_same_everywhere() -> None:
    digest = hashlib.sha256(json.dumps([benchmark_rows(), training_rows(1_700)]).encode()).hexdigest()
    assert digest == "a498ab8d6399b8dfa93df906322770e51f68d4a0c3cd80883b0c808f1faf6830"


def test_the_world_numbers_the_prompts_of_each_tag() -> None:
    prompts = open_world("ocr").prompts()
    assert isinstance(open_world("ocr"), OcrWorld)
    assert len({prompt.prompt_id for prompt in prompts}) == len(prompts) == 1_018 + 1_700
    assert [prompt.split for prompt in prompts] == ["train"] * 1_700 + ["test"] * 1_018
    assert {prompt.prompt_id: prompt.metadata["text"] for prompt in prompts}["test-word-0000"]


def test_the_prompts_are_written_as_a_file(tmp_path: Path) -> None:
    for words, count in (((), 1_018), (("--train", "40"), 40)):
        file = tmp_path / "prompts.jsonl"
        assert tdm_r1("ocr", "prompts", "--out", str(file), *words) == 0
        rows = [json.loads(text) for text in file.read_text(encoding="utf-8").splitlines()]
        assert len(rows) == count
        assert {row["tag"] for row in rows} == set(TEST)


def test_the_published_preset_trains_on_texts_and_names_a_scorer_that_exists() -> None:
    from tdm_r1.rewards.judges import Judges

    config = resolve("sd35_medium_ocr", {})
    assert (config.world, config.evaluation.prompts) == ("ocr", 1_018)
    assert [scorer.info.name for scorer in Judges(config.reward).scorers.values()] == ["ocr"]
