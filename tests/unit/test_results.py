"""The paired difference between two evaluations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tdm_r1.artifacts.records import Evaluation
from tdm_r1.presets import resolve
from tdm_r1.runtime.history import drawn_prompts
from tdm_r1.runtime.results import gain, remarks, rows_of

RNG = np.random.default_rng(0)
PROMPTS = [("colors", f"c{n}") for n in range(40)] + [("counting", f"n{n}") for n in range(20)]
HARD = {prompt: RNG.random() for _, prompt in PROMPTS}
"""Prompts differ much more than the two models do."""


def evaluated(name: str, values: Mapping[str, Sequence[float | None]], *, verdicts: bool = True) -> Evaluation:
    rows = [(tag, prompt, value) for tag, prompt in PROMPTS for value in values[prompt]]
    cell: dict[str, Any] = {
        "name": [name],
        "nfe": [4],
        "tag": ["overall"],
        "value": [0.5],
        "low": [0.4],
        "high": [0.6],
        "count": [60],
    }
    return Evaluation(
        metrics=Evaluation.table("metrics", **cell),
        samples=Evaluation.table(
            "samples",
            name=[name] * len(rows),
            prompt_id=[prompt for _, prompt, _ in rows],
            text=["a"] * len(rows),
            tag=[tag for tag, _, _ in rows],
            correct=[None if value is None or not verdicts else value > 0.5 for _, _, value in rows],
            strict=[None] * len(rows),
            score=[value for _, _, value in rows],
        ),
        image=torch.zeros(len(rows), 2, 2, 3, dtype=torch.uint8),
        report="",
    )


def found(before: Evaluation, after: Evaluation) -> tuple[float, float, float]:
    gained = gain(before, after, resamples=500, seed=0)
    assert gained is not None
    assert (gained["of"], gained["over"]) == ("tdm-r1", "tdm")
    return gained["overall"], *gained["ci95"]


def test_a_model_gains_nothing_over_itself() -> None:
    values = {prompt: [float(HARD[prompt] > 0.4), 1.0] for _, prompt in PROMPTS}
    assert found(evaluated("tdm", values), evaluated("tdm-r1", values)) == (0, 0, 0)


def test_the_overall_gain_is_the_mean_over_tags_of_the_differences_of_prompts() -> None:
    before = {prompt: [0.0, 1.0] for _, prompt in PROMPTS}
    after = {prompt: [1.0, 1.0] if tag == "counting" else [0.0, 1.0] for tag, prompt in PROMPTS}
    assert found(evaluated("tdm", before), evaluated("tdm-r1", after)) == (0.25, 0.25, 0.25)


def test_what_makes_prompts_differ_cancels() -> None:
    before = {prompt: [HARD[prompt]] for _, prompt in PROMPTS}
    after = {prompt: [HARD[prompt] + 0.1 + 0.01 * RNG.standard_normal()] for _, prompt in PROMPTS}
    value, low, high = found(evaluated("tdm", before, verdicts=False), evaluated("tdm-r1", after, verdicts=False))
    assert value == pytest.approx(0.1, abs=0.005)
    assert 0 < high - low < 0.02


def test_an_image_without_a_verdict_is_wrong_and_one_without_any_score_is_left_out() -> None:
    before = {prompt: [1.0, 1.0] for _, prompt in PROMPTS}
    after = {prompt: [1.0, None] for _, prompt in PROMPTS}
    assert found(evaluated("tdm", before), evaluated("tdm-r1", after)) == (-0.5, -0.5, -0.5)
    assert found(evaluated("tdm", before, verdicts=False), evaluated("tdm-r1", after, verdicts=False)) == (0, 0, 0)


def test_without_common_prompts_there_is_no_gain() -> None:
    values = {prompt: [None] for _, prompt in PROMPTS}
    nothing = evaluated("tdm", values, verdicts=False)
    assert gain(nothing, nothing, resamples=10, seed=0) is None


def test_the_remarks_tell_where_the_generator_came_from_and_what_it_gained() -> None:
    gained = {"of": "tdm-r1", "over": "tdm", "overall": 0.045, "ci95": [0.02, -0.072]}
    assert remarks(resolve("plane", {}), None) == []
    assert remarks(resolve("shapes_cpu", {}), gained) == [
        "tdm is the generator embedded:shapes_tdm, which an earlier run distilled",
        "tdm-r1 over tdm on the same prompts and noise: +0.045, 95% interval +0.020 to -0.072",
    ]


def test_the_page_shows_a_prompt_once_with_the_first_image_of_every_model_however_many_each_drew() -> None:
    few = {prompt: [1.0, 0.0] for _, prompt in PROMPTS}
    many = {prompt: [0.0, 1.0, 1.0] for _, prompt in PROMPTS}
    shown = drawn_prompts([evaluated("teacher", few), evaluated("tdm", many)])
    assert [drawn.tag for drawn in shown] == ["colors"] * 4 + ["counting"] * 4
    assert all({name: p.correct for name, p in d.pictures.items()} == {"teacher": True, "tdm": False} for d in shown)


def test_a_share_reads_the_same_with_three_digits_in_the_table_as_in_the_report() -> None:
    record = evaluated("tdm", {prompt: [1.0] for _, prompt in PROMPTS})
    values = {"value": 0.686502, "low": 0.636501, "high": 0.700499}
    metrics = [{**cell, **values} for cell in record.metrics.to_pylist()]
    columns = {name: [cell[name] for cell in metrics] for name in record.metrics.column_names}
    [row] = rows_of(replace(record, metrics=Evaluation.table("metrics", **columns)))
    assert [f"{share:.3f}" for share in (row["overall"], *row["ci95"])] == ["0.687", "0.637", "0.700"]
