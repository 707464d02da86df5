"""What the stage containers share: two image references and one command line."""

import os
from typing import Any, Final

from kfp import dsl

TRAIN_IMAGE: Final = os.environ.get("TDM_R1_IMAGE", "ghcr.io/tdm-r1/train:0.1.0")
"""Image of every stage but scoring. Read when the pipeline is compiled; pin it by digest for a release."""

SCORER_IMAGE: Final = os.environ.get("TDM_R1_SCORER_IMAGE", "ghcr.io/tdm-r1/scorers:0.1.0")
"""Image of `reward_scoring`, which closes over the reward libraries. Read when the pipeline is compiled."""


def stage_container(stage: str, root: str, *, image: str = TRAIN_IMAGE, **flags: Any) -> dsl.ContainerSpec:
    """Run `tdm-r1 stage STAGE --root ROOT [--FLAG VALUE …] --executor-input {{$}}`, without a shell.

    Args:
        stage: name of the stage, as the command spells it.
        root: run directory, `s3://…` or a path; a placeholder while KFP compiles.
        image: image reference, by digest for a release.
        flags: further options in the order they are given. KFP cannot add, so `iteration` is the
            first iteration of the block and `offset` the literal distance from it.
    """
    return program("stage", root, image=image, words=(stage,), **flags)


def program(
    command: str, root: str, *, image: str = TRAIN_IMAGE, words: tuple[str, ...] = (), **flags: Any
) -> dsl.ContainerSpec:
    """Run `tdm-r1 COMMAND [WORD …] --root ROOT [--FLAG VALUE …] --executor-input {{$}}`, without a shell."""
    options = [part for flag, value in flags.items() for part in (f"--{flag}", value)]
    told = ["--executor-input", dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER]
    return dsl.ContainerSpec(image=image, command=["tdm-r1"], args=[command, *words, "--root", root, *options, *told])
