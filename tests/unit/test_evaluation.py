"""Claims about how images become the numbers of the result table."""

from __future__ import annotations

from tdm_r1.stages.evaluation import numbered, shares_by_tag
from tdm_r1.statistics import OVERALL, tag_intervals

TAG_OF = {"p1": "colors", "p2": "colors", "p3": "counting"}


def test_a_prompt_counts_once_however_many_images_it_has() -> None:
    shares = shares_by_tag(["p1", "p1", "p2", "p2", "p3", "p3"], [1, 0, 1, 1, 0, 0], TAG_OF)
    assert {tag: values.tolist() for tag, values in shares.items()} == {"colors": [0.5, 1.0], "counting": [0.0]}
    assert tag_intervals(shares, resamples=20, seed=0)[OVERALL].count == 3


def test_images_that_always_agree_within_a_prompt_do_not_narrow_the_interval() -> None:
    prompts = [f"p{number}" for number in range(50)]
    correct = [float(number < 20) for number in range(50)]
    tag_of = dict.fromkeys(prompts, "colors")
    once = tag_intervals(shares_by_tag(prompts, correct, tag_of), resamples=200, seed=0)
    often = tag_intervals(shares_by_tag(prompts * 8, correct * 8, tag_of), resamples=200, seed=0)
    assert often == once


def test_a_row_with_fewer_images_draws_the_first_of_each_prompt_from_the_noise_of_the_others() -> None:
    prompt_ids = ["p1", "p1", "p1", "p2", "p2", "p2"]
    assert numbered(prompt_ids, 2) == [(0, "p1"), (1, "p1"), (3, "p2"), (4, "p2")]
    assert numbered(prompt_ids, 3) == list(enumerate(prompt_ids))
