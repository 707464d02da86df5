"""Stage `reward_scoring`: ask every black box about every image of a shard."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from tdm_r1.artifacts.picture import picture_digest
from tdm_r1.artifacts.records import Feedback, Rewards, Rollout
from tdm_r1.config import RewardConfig, RunConfig
from tdm_r1.errors import SchemaError, ScorerError
from tdm_r1.models.progress import Progress, silent
from tdm_r1.models.prompts import PromptTexts
from tdm_r1.rewards.aggregate import aggregate
from tdm_r1.rewards.ask import Question
from tdm_r1.rewards.judges import Judges
from tdm_r1.rewards.preferences import evidence
from tdm_r1.rewards.protocol import NOT_ASKED, Score, is_failure


def reward_scoring(
    prompts: pa.Table,
    rollout: Rollout,
    feedback: Feedback | None = None,
    *,
    judges: Judges,
    config: RunConfig,
    progress: Progress = silent,
) -> Rewards:
    """Raw scores, scorer by scorer, samples in the order of the rollout; one that cannot be scored says why.

    Args:
        prompts: the table of a `PromptSet`; embeddings, gigabytes for a large base, are not needed.
        feedback: what people said of this iteration, for the scorers that need it.

    Raises:
        ScorerError: when a scorer is not fit to serve, or fails on more rows than the configuration bears.
        SchemaError: when the configuration weights a part that a scorer does not give.
    """
    table, index = PromptTexts(prompts), rollout.index.to_pylist()
    questions = [
        Question(image, *table.asked(row["prompt_id"]))
        for image, row in zip(rollout.images.numpy(), index, strict=True)
    ]
    columns: dict[str, list[Any]] = {name: [] for name in ("scorer", "value", "parts", "detail", "error")}
    for name in judges.scorers:
        asked = questions
        if "feedback" in judges.scorers[name].info.needs:
            asked = with_feedback(questions, rollout, feedback)
        scores = judges.score_asked(name, asked, progress=progress)
        check_errors(name, [score for score in scores if score.error != NOT_ASKED], config.reward)
        columns["scorer"] += [name] * len(scores)
        columns["value"] += [score.value for score in scores]
        columns["parts"] += [[{"name": part, "value": value} for part, value in score.parts] for score in scores]
        columns["detail"] += [score.detail for score in scores]
        columns["error"] += [score.error for score in scores]
    keys = {key: [row[key] for row in index] * len(judges.scorers) for key in ("sample_id", "prompt_id", "group")}
    record = Rewards(scores=Rewards.table("scores", **keys, **columns), scorers=_who(judges))
    aggregate(record, config.reward)  # so that a part which no scorer gives fails here, not a stage later
    return record


def with_feedback(questions: Sequence[Question], rollout: Rollout, feedback: Feedback | None) -> list[Question]:
    """The same questions, with what people said of each sample's group in the metadata.

    Raises:
        SchemaError: when there is no feedback, or it is on other samples or other pixels.
    """
    if feedback is None:
        raise SchemaError("a scorer needs feedback, but none was committed", hint="run the stage `feedback` first")
    samples = feedback.samples
    known = dict(zip(samples["sample_id"].to_pylist(), samples["picture"].to_pylist(), strict=True))
    said, found = evidence(feedback.votes, samples), []
    for question, name in zip(questions, rollout.index["sample_id"].to_pylist(), strict=True):
        if known.get(name) != picture_digest(question.picture):
            raise SchemaError(
                f"the feedback is not on sample `{name}` as it was rolled out",
                hint="the rollout was made again after people judged it: let them judge the new one",
            )
        found.append(replace(question, metadata={**question.metadata, "feedback": said[name]}))
    return found


def check_errors(name: str, scores: Sequence[Score], config: RewardConfig) -> None:
    """Refuse a shard on which a scorer failed too often, or at all where its errors must fail the stage."""
    errors = [score.error for score in scores if is_failure(score.error)]
    bearable = 0.0 if config.scorers[name].on_error == "fail" else config.max_error_rate
    if len(errors) > bearable * len(scores):
        raise ScorerError(
            f"scorer `{name}` failed on {len(errors)} of {len(scores)} images, at most {bearable:.0%} are borne;"
            f" the first: {errors[0]}",
            hint="repair the scorer and run the stage again; `reward.max_error_rate` sets what is borne",
        )


def _who(judges: Judges) -> Any:
    infos = [scorer.info for scorer in judges.scorers.values()]
    sections = [judges.config.scorers[name] for name in judges.scorers]
    named = ("version", "revision", "higher_is_better", "deterministic", "low", "high", "device", "licence")
    return Rewards.table(
        "scorers",
        name=list(judges.scorers),
        use=[section.use or name for name, section in zip(judges.scorers, sections, strict=True)],
        options=[json.dumps(section.options, sort_keys=True) for section in sections],
        **{column: [getattr(info, column) for info in infos] for column in named},
    )
