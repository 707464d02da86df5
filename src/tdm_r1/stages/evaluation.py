"""Stage `evaluation`: held-out accuracy of the averaged generator, and at iteration 0 of what it started from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from tdm_r1.artifacts.records import Evaluation, PromptSet
from tdm_r1.config import RunConfig
from tdm_r1.models.adapters import Adapter, RoleTensors
from tdm_r1.models.backbone import Backbone, Condition
from tdm_r1.models.prompts import PromptTable, PromptTexts
from tdm_r1.models.sampler import guided_sample, trajectory
from tdm_r1.report.page import evaluation_page
from tdm_r1.rewards.ask import Question
from tdm_r1.rewards.judges import Judges
from tdm_r1.rewards.protocol import Score
from tdm_r1.rng import Keys
from tdm_r1.statistics import OVERALL, Interval, tag_intervals

Sampler = Callable[[Tensor, Condition], Tensor]


@dataclass(frozen=True)
class Row:
    """One line of the result table: who samples, at what cost."""

    name: str
    nfe: int
    """Network evaluations per image; guidance costs two per step."""
    sample: Sampler
    images_per_prompt: int
    """The first images of each prompt; no more than the evaluation's own number."""


Prompt = TypeVar("Prompt")


def spread(tags: Mapping[str, Sequence[Prompt]], count: int) -> list[Prompt]:
    """The first prompts of each tag, at least `count` together where there are as many; as even as the tags allow."""
    quota, largest = 1, max(map(len, tags.values()))
    while quota < largest and sum(min(quota, len(rows)) for rows in tags.values()) < count:
        quota += 1
    return [prompt for rows in tags.values() for prompt in rows[:quota]]


def held_out(prompts: PromptTexts, config: RunConfig) -> list[str]:
    """Prompt ids to evaluate on, each repeated `images_per_prompt` times; as even over the tags as the split allows."""
    chosen = spread(prompts.by_tag(config.evaluation.split), config.evaluation.prompts)
    return [prompt for prompt in chosen for _ in range(config.evaluation.images_per_prompt)]


def guided_images(config: RunConfig) -> int:
    """Images per prompt of the rows that sample with guidance."""
    whole = config.evaluation.images_per_prompt
    return min(config.evaluation.teacher_images_per_prompt or whole, whole)


def generator_row(name: str, role: RoleTensors, *, backbone: Backbone, config: RunConfig) -> Row:
    """The few-step generator, without guidance."""
    weights = Adapter(backbone.base(), config.model.adapter).apply(role)

    def sample(noise: Tensor, condition: Condition) -> Tensor:
        path = trajectory(backbone, noise, condition, weights, config.sampler, config.rollout.microbatch)
        return path[:, -1]

    return Row(name, config.sampler.steps, sample, config.evaluation.images_per_prompt)


def guided_row(
    name: str,
    steps: int,
    guidance: float,
    role: RoleTensors | None,
    empty: Condition,
    *,
    backbone: Backbone,
    config: RunConfig,
) -> Row:
    """A many-step sampler with CFG: the frozen base, or the surrogate."""
    weights = {} if role is None else Adapter(backbone.base(), config.surrogate_adapter).apply(role)

    def sample(noise: Tensor, condition: Condition) -> Tensor:
        return guided_sample(
            backbone,
            noise,
            condition,
            empty,
            weights,
            steps=steps,
            shift=config.sampler.shift,
            guidance=guidance,
            microbatch=config.rollout.microbatch,
        )

    return Row(name, 2 * steps, sample, guided_images(config))


@dataclass(frozen=True)
class Outcome:
    """What one row drew and how it was judged."""

    name: str
    nfe: int
    prompt_ids: list[str]
    images: Tensor
    scores: list[Score]
    intervals: dict[str, Interval]


def measured(scores: Sequence[Score]) -> list[float | None]:
    """What an evaluation averages: the verdict `correct` where a scorer gives one, else its raw value.

    A failed score is a wrong one for a scorer that gives verdicts, and is left out for one that does not.
    """
    verdicts = [score.part("correct") for score in scores]
    if any(verdict is not None for verdict in verdicts):
        return [0.0 if verdict is None else verdict for verdict in verdicts]
    return [score.value for score in scores]


def _verdict(score: Score, name: str) -> bool | None:
    value = score.part(name)
    return None if value is None else value == 1.0


def shares_by_tag(
    prompt_ids: Sequence[str], values: Sequence[float | None], tag_of: Mapping[str, str]
) -> dict[str, npt.NDArray[np.float64]]:
    """By tag, the mean over the images of each of its prompts; a prompt without any value is left out.

    Args:
        prompt_ids: of the images; the images of a prompt need not stand together.
    """
    images: dict[str, list[float]] = {}
    for prompt, value in zip(prompt_ids, values, strict=True):
        if value is not None:
            images.setdefault(prompt, []).append(value)
    shares: dict[str, list[float]] = {}
    for prompt, found in images.items():
        shares.setdefault(tag_of[prompt], []).append(float(np.mean(found)))
    return {tag: np.array(found) for tag, found in shares.items()}


def numbered(prompt_ids: Sequence[str], images_per_prompt: int) -> list[tuple[int, str]]:
    """The first images of every prompt: their place in the whole evaluation, which names their noise, and prompt."""
    seen: Counter[str] = Counter()
    kept = []
    for number, prompt in enumerate(prompt_ids):
        if seen[prompt] < images_per_prompt:
            kept.append((number, prompt))
        seen[prompt] += 1
    return kept


def _drawn(row: Row, own: list[tuple[int, str]], table: PromptTable, backbone: Backbone, keys: Keys) -> Tensor:
    """Images of one row, from the same initial noise for every row."""
    samples = [f"{prompt}/{number}" for number, prompt in own]
    noise = keys.normals("evaluation/noise", samples, shape=backbone.latent_shape)
    return backbone.decode(row.sample(noise, table.condition([prompt for _, prompt in own])))


def _judged(
    name: str,
    nfe: int,
    images: Tensor,
    prompt_ids: list[str],
    table: PromptTexts,
    judges: Judges,
    config: RunConfig,
    keys: Keys,
) -> Outcome:
    """Score each image with the first scorer that is asked about its prompt, and take intervals.

    Images of one prompt are not independent, so that the intervals resample prompts.
    """
    asked = [Question(i, *table.asked(prompt)) for i, prompt in zip(images.numpy(), prompt_ids, strict=True)]
    found: dict[int, Score] = {}
    value_of: dict[int, float | None] = {}
    for scorer, rows in judges.first_asked(asked).items():
        own = judges.score(scorer, [asked[row] for row in rows])
        found |= zip(rows, own, strict=True)
        value_of |= zip(rows, measured(own), strict=True)
    scores = [found[row] for row in range(len(asked))]
    values = [value_of[row] for row in range(len(asked))]
    tag_of = {prompt: table.rows[prompt]["tag"] for prompt in prompt_ids}
    shares = shares_by_tag(prompt_ids, values, tag_of)
    seed = keys.seed("evaluation/bootstrap")
    intervals = tag_intervals(shares, resamples=config.evaluation.bootstrap, seed=seed)
    return Outcome(name, nfe, prompt_ids, images, scores, intervals)


@torch.no_grad()
def evaluation(
    prompts: PromptSet,
    generator: RoleTensors,
    *,
    name: str,
    with_teacher: bool,
    surrogate: RoleTensors | None,
    judges: Judges,
    backbone: Backbone,
    config: RunConfig,
    keys: Keys,
) -> Evaluation:
    """Judge the averaged generator on held-out prompts.

    Args:
        generator: the role `generator_ema`.
        name: of the generator's row, `tdm` at iteration 0 and `tdm-r1` later.
        with_teacher: add the teacher at its own steps and at the generator's.
        surrogate: add a row that samples from this role.
    """
    table = PromptTable(prompts)
    prompt_ids = held_out(table, config)
    rows: list[Row] = []
    if with_teacher and config.evaluation.teacher_steps:
        guidance = config.evaluation.teacher_guidance
        budgets = {"teacher": config.evaluation.teacher_steps, f"teacher-{config.sampler.steps}": config.sampler.steps}
        rows += [
            guided_row(row, steps, guidance, None, table.empty, backbone=backbone, config=config)
            for row, steps in budgets.items()
        ]
    if surrogate is not None:
        steps, guidance = config.evaluation.surrogate_steps, config.generator.surrogate_guidance
        rows.append(guided_row("surrogate", steps, guidance, surrogate, table.empty, backbone=backbone, config=config))
    rows.append(generator_row(name, generator, backbone=backbone, config=config))
    fixed = keys.at(0)
    outcomes = []
    for row in rows:
        own = numbered(prompt_ids, row.images_per_prompt)
        images = _drawn(row, own, table, backbone, fixed)
        asked = [prompt for _, prompt in own]
        outcomes.append(_judged(row.name, row.nfe, images, asked, table, judges, config, fixed))
    return _record(outcomes, table, keys.iteration)


def evaluation_again(
    prompts: pa.Table, drawn: Evaluation, *, judges: Judges, config: RunConfig, keys: Keys
) -> Evaluation:
    """Judge the images of a committed evaluation by another reward. Nothing is sampled, so it needs no accelerator.

    Args:
        prompts: the table of a `PromptSet`.
        drawn: its images, and who drew them at what cost.
        config: of the variant: its reward is the judges'.
    """
    table = PromptTexts(prompts)
    nfe = {cell["name"]: int(cell["nfe"]) for cell in drawn.metrics.to_pylist()}
    rows: dict[str, list[int]] = {}
    for number, name in enumerate(drawn.samples["name"].to_pylist()):
        rows.setdefault(name, []).append(number)
    prompt_ids = drawn.samples["prompt_id"].to_pylist()
    outcomes = [
        _judged(name, nfe[name], drawn.image[own], [prompt_ids[n] for n in own], table, judges, config, keys.at(0))
        for name, own in rows.items()
    ]
    return _record(outcomes, table, keys.iteration)


def _record(outcomes: Sequence[Outcome], table: PromptTexts, iteration: int) -> Evaluation:
    cells = [
        (outcome, tag, outcome.intervals[tag])
        for outcome in outcomes
        for tag in (OVERALL, *(t for t in outcome.intervals if t != OVERALL))
    ]
    samples = [
        (outcome.name, prompt, table.rows[prompt], score)
        for outcome in outcomes
        for prompt, score in zip(outcome.prompt_ids, outcome.scores, strict=True)
    ]
    images = torch.cat([outcome.images for outcome in outcomes])
    metrics = Evaluation.table(
        "metrics",
        name=[outcome.name for outcome, _, _ in cells],
        nfe=[outcome.nfe for outcome, _, _ in cells],
        tag=[tag for _, tag, _ in cells],
        value=[interval.value for _, _, interval in cells],
        low=[interval.low for _, _, interval in cells],
        high=[interval.high for _, _, interval in cells],
        count=[interval.count for _, _, interval in cells],
    )
    drawn = Evaluation.table(
        "samples",
        name=[name for name, _, _, _ in samples],
        prompt_id=[prompt for _, prompt, _, _ in samples],
        text=[row["text"] for _, _, row, _ in samples],
        tag=[row["tag"] for _, _, row, _ in samples],
        correct=[_verdict(score, "correct") for _, _, _, score in samples],
        strict=[_verdict(score, "strict") for _, _, _, score in samples],
        score=[score.value for _, _, _, score in samples],
    )
    page = evaluation_page(metrics, drawn, images, title=f"Evaluation at iteration {iteration}")
    return Evaluation(metrics=metrics, samples=drawn, image=images, report=page)
