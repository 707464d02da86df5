"""`tdm-r1 pretrain --world shapes`: autoencoder and teacher from scratch, seeded, as a stock pipeline folder."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tdm_r1.pretrain.autoencoder import Log, train_autoencoder
from tdm_r1.pretrain.teacher import new_corpus, new_teacher, save_pipeline, train_teacher


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A stretch of teacher training on a corpus of its own, with a fresh optimizer and learning-rate schedule."""

    corpus: int
    """Rendered pictures."""
    corpus_seed: int
    noisy: bool
    """Whether captions lie, see `CAPTION_NOISE`."""
    steps: int
    seed: int
    rate: float
    """Peak learning rate."""
    batch: int = 64


PHASES = (
    Phase(corpus=20_000, corpus_seed=1, noisy=True, steps=6_000, seed=0, rate=1e-3),
    Phase(corpus=16_000, corpus_seed=2, noisy=False, steps=4_600, seed=1, rate=8e-4),
)


@dataclass(frozen=True, kw_only=True)
class PretrainPlan:
    """How long each part trains; the defaults made the committed weights."""

    seed: int = 0
    """Added to every seed below."""
    autoencoder_steps: int = 3000
    autoencoder_batch: int = 16
    phases: tuple[Phase, ...] = PHASES

    def shortened(self, steps: int) -> PretrainPlan:
        """The same plan with at most `steps` steps, and as many pictures, in every part."""
        phases = tuple(replace(p, steps=min(p.steps, steps), corpus=min(p.corpus, 64 * steps)) for p in self.phases)
        return replace(self, autoencoder_steps=min(self.autoencoder_steps, steps), phases=phases)


def pretrain_shapes(folder: Path, plan: PretrainPlan, log: Log, *, autoencoder: Path | None = None) -> None:
    """Train both parts and write the pipeline folder.

    Args:
        autoencoder: a folder with an already trained autoencoder to reuse.
    """
    vae = _autoencoder(plan, log, autoencoder)
    with tempfile.TemporaryDirectory() as scratch:
        teacher = new_teacher(Path(scratch), seed=plan.seed)
        for phase in plan.phases:
            corpus = new_corpus(
                vae,
                teacher.tokenizer,
                count=phase.corpus,
                seed=plan.seed + phase.corpus_seed,
                noisy=phase.noisy,
                log=log,
            )
            train_teacher(
                teacher,
                corpus,
                steps=phase.steps,
                batch=phase.batch,
                peak=phase.rate,
                seed=plan.seed + phase.seed,
                log=log,
            )
        save_pipeline(teacher, vae, folder)


def _autoencoder(plan: PretrainPlan, log: Log, folder: Path | None) -> Any:
    if folder is None:
        return train_autoencoder(steps=plan.autoencoder_steps, batch=plan.autoencoder_batch, seed=plan.seed, log=log)
    from diffusers import AutoencoderKL

    return AutoencoderKL.from_pretrained(folder, use_safetensors=True).eval()
