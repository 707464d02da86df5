"""A program that commits one record of 24 MiB, which S3 takes in two parts, and reads it back."""

from __future__ import annotations

import sys

import torch

from tdm_r1.artifacts.records import PromptSet
from tdm_r1.artifacts.repository import load
from tdm_r1.artifacts.store import open_store
from tests.unit.artifact_examples import assert_same, prompt_set, put

WHERE = "prompts"
FLOATS = 2 << 20


def record() -> PromptSet:
    sequence = torch.arange(3 * FLOATS, dtype=torch.float32).reshape(3, 1, FLOATS)
    return PromptSet(prompts=prompt_set().prompts, embeddings={"sequence": sequence, "pooled": torch.zeros(3, 6)})


def main() -> None:
    store = open_store(sys.argv[1])
    manifest = put(store, record(), WHERE)
    assert_same(load(store, WHERE, PromptSet)[0], record())
    print(f"the record is whole: {sum(entry.size for entry in manifest.files.values())} bytes")
