"""Stage `reward_scoring`: ask the black box about every image of a shard."""

from __future__ import annotations

from tdm_r1.artifacts.records import PromptSet, Rewards, Rollout
from tdm_r1.config import RunConfig
from tdm_r1.models.prompts import PromptTable
from tdm_r1.rewards.scorer import Scorer, score_all


def reward_scoring(prompts: PromptSet, rollout: Rollout, *, scorer: Scorer, config: RunConfig) -> Rewards:
    """One row per sample, in the order of the rollout; a sample that cannot be scored carries its error.

    Returns:
        Reward, both verdicts and the parts per clause.
    """
    rows = PromptTable(prompts).rows
    index = rollout.index.to_pylist()
    metadata = [rows[row["prompt_id"]]["metadata"] for row in index]
    scores = score_all(scorer, rollout.images.numpy(), metadata, config.reward.workers)
    table = Rewards.table(
        "rewards",
        sample_id=[row["sample_id"] for row in index],
        prompt_id=[row["prompt_id"] for row in index],
        group=[row["group"] for row in index],
        reward=[score.reward for score in scores],
        correct=[score.correct for score in scores],
        strict=[score.strict for score in scores],
        parts=[[{"name": name, "value": value} for name, value in score.parts] for score in scores],
        error=[score.error for score in scores],
    )
    return Rewards(rewards=table)
