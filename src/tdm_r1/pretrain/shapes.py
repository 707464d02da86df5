"""`tdm-r1 pretrain --world shapes`: autoencoder and teacher from scratch, seeded, as a stock pipeline folder."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from tdm_r1.pretrain.autoencoder import polish_decoder, train_autoencoder
from tdm_r1.pretrain.resume import Checkpoints, checkpoints_of
from tdm_r1.pretrain.scenes import SHAPES, Log, Scenes
from tdm_r1.pretrain.teacher import Teacher, new_corpus, new_teacher, save_pipeline, train_teacher


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A stretch of teacher training on a corpus of its own, with a fresh optimizer and learning-rate schedule."""

    steps: int
    rate: float
    """Peak learning rate."""
    mix: Mapping[str, int]
    """Relative number of pictures by tag."""
    corpus: int = 40_000
    """Rendered pictures."""
    batch: int = 64


HARD_FIRST = MappingProxyType(dict(zip(SHAPES.tags, (1, 2, 2, 1, 3, 3), strict=True)))
"""Single objects and their colours are learned from the other tags, too; only their size words are not."""
EVEN = MappingProxyType(dict(zip(SHAPES.tags, (2, 2, 2, 2, 3, 3), strict=True)))
"""Gives the size words their share."""


@dataclass(frozen=True, kw_only=True)
class PretrainPlan:
    """How long each part trains; the defaults made the committed weights."""

    seed: int = 0
    """Every draw follows from it."""
    autoencoder_steps: int = 3000
    decoder_steps: int = 2000
    """Steps of the decoder alone, after the autoencoder's."""
    autoencoder_batch: int = 16
    phases: tuple[Phase, ...] = (
        Phase(steps=9_500, rate=1e-3, mix=HARD_FIRST),
        Phase(steps=8_000, rate=8e-4, mix=EVEN, corpus=60_000),
    )
    """Of the teacher, one after the other."""

    def shortened(self, steps: int) -> PretrainPlan:
        """The same plan with at most `steps` steps in every part, and no more pictures than they can see."""
        return replace(
            self,
            autoencoder_steps=min(self.autoencoder_steps, steps),
            decoder_steps=min(self.decoder_steps, steps),
            phases=tuple(
                replace(p, steps=min(p.steps, steps), corpus=min(p.corpus, p.batch * steps)) for p in self.phases
            ),
        )


def pretrain_shapes(folder: Path, plan: PretrainPlan, log: Log, *, every: int = 250) -> None:
    """Train both parts and write the pipeline folder; go on where a killed pretraining of the same plan stopped.

    Args:
        every: steps between two checkpoints.
    """
    kept = checkpoints_of(folder, plan, log, every)
    vae = _autoencoder(plan, kept)
    with tempfile.TemporaryDirectory() as scratch:
        teacher = new_teacher(SHAPES, Path(scratch), seed=plan.seed)
        for number, phase in enumerate(plan.phases):
            train_phase(SHAPES, teacher, vae, phase, number=number, seed=plan.seed + number, kept=kept)
        save_pipeline(teacher, vae, folder)
    kept.remove()


def train_phase(
    scenes: Scenes, teacher: Teacher, vae: Any, phase: Phase, *, number: int, seed: int, kept: Checkpoints
) -> None:
    """Draw the phase's corpus and train on it, in place."""
    part = f"teacher {number}"
    corpus = new_corpus(scenes, vae, teacher.tokenizer, mix=phase.mix, count=phase.corpus, seed=seed + 1, log=kept.log)
    train_teacher(
        teacher, corpus, part=part, steps=phase.steps, batch=phase.batch, peak=phase.rate, seed=seed, kept=kept
    )


def _autoencoder(plan: PretrainPlan, kept: Checkpoints) -> Any:
    batch = plan.autoencoder_batch
    vae = train_autoencoder(SHAPES, steps=plan.autoencoder_steps, batch=batch, seed=plan.seed, kept=kept)
    torch.set_num_threads(1)  # from here on as the committed weights were made; their last bits depend on it
    polish_decoder(SHAPES, vae, steps=plan.decoder_steps, batch=batch, seed=plan.seed + 2, kept=kept)
    return vae
