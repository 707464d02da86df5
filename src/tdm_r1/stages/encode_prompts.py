"""Stage `encode_prompts`: the world's prompts with their embeddings, so that encoders never load again."""

from __future__ import annotations

import json

import pyarrow as pa
import torch

from tdm_r1.artifacts.records import PromptSet
from tdm_r1.models.backbone import Backbone
from tdm_r1.worlds.world import World


@torch.no_grad()
def encode_prompts(world: World, *, backbone: Backbone) -> PromptSet:
    """Both splits of the world. Row 0 of the embeddings is the empty prompt; equal texts share a row."""
    rows = world.prompts()
    texts = ["", *dict.fromkeys(row.text for row in rows)]
    position = {text: index for index, text in enumerate(texts)}
    condition = backbone.encode_prompts(texts)
    table = {
        "prompt_id": pa.array([row.prompt_id for row in rows], pa.string()),
        "text": pa.array([row.text for row in rows], pa.string()),
        "tag": pa.array([row.tag for row in rows], pa.string()),
        "split": pa.array([row.split for row in rows], pa.string()),
        "metadata": pa.array([json.dumps(row.metadata) for row in rows], pa.string()),
        "embedding": pa.array([position[row.text] for row in rows], pa.int64()),
    }
    return PromptSet(prompts=pa.table(table), embeddings={"sequence": condition.sequence, "pooled": condition.pooled})
