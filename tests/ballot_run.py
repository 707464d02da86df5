"""A run whose rollouts are committed and wait for people, without any training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from tdm_r1 import presets
from tdm_r1.artifacts.records import PromptSet, Rollout
from tdm_r1.artifacts.repository import commit
from tdm_r1.runtime.feedback_votes import Election, open_election
from tdm_r1.runtime.layout import Task, shard_tasks
from tdm_r1.runtime.run import create_run
from tests.unit.artifact_examples import PROVENANCE

SCORERS = {"jpeg": {"weight": 0}, "feedback": {}}
HOSTILE = "a red circle <script>document.title='owned'</script>&amp;\"'"


def ballot_run(root: Path, *, groups: int = 4, size: int = 4, side: int = 16, **knobs: Any) -> Election:
    """Groups of flat pictures, every sample a grey level of its own; open for votes on iteration 1."""
    overrides = {"rollout.groups": groups, "rollout.group_size": size, "reward.scorers": SCORERS, **knobs}
    run = create_run(str(root), presets.resolve("shapes_smoke", overrides))
    same: dict[str, Any] = {"config_digest": run.config_digest, "provenance": PROVENANCE}
    texts = [HOSTILE, *(f"prompt number {n}" for n in range(1, groups))]
    prompts = PromptSet(
        prompts=PromptSet.table(
            "prompts",
            prompt_id=[f"p{n}" for n in range(groups)],
            text=texts,
            **{"tag": ["t"] * groups, "split": ["train"] * groups, "metadata": ["{}"] * groups},
            embedding=[0] * groups,
        ),
        embeddings={"sequence": torch.zeros(1, 1, 1), "pooled": torch.zeros(1, 1)},
    )
    parents = {"prompts": commit(run.store, Task("encode_prompts").location, prompts, parents={}, **same).digest}
    shards = shard_tasks("rollout", 1, run.config)
    for task in shards:
        numbers = torch.arange(groups * size).view(len(shards), -1)[task.shard]
        level = (numbers % 200 + 20).to(torch.uint8)
        part = Rollout(
            index=pa.table(
                {
                    "sample_id": [f"00001-{n // size:04d}-{n % size:03d}" for n in numbers.tolist()],
                    "prompt_id": [f"p{n // size}" for n in numbers.tolist()],
                    "group": pa.array((numbers // size).tolist(), pa.int64()),
                }
            ),
            images=level[:, None, None, None].expand(-1, side, side, 3).contiguous(),
            states=torch.zeros(len(numbers), 2, 1, 1, 1),
        )
        commit(run.store, task.location, part, parents=parents, **same)
    return open_election(str(root), 1, "")


def name(group: int, member: int) -> str:
    """Of a sample of `ballot_run`."""
    return f"00001-{group:04d}-{member:03d}"
