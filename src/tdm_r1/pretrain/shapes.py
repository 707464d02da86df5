"""`tdm-r1 pretrain --world shapes`: autoencoder and teacher from scratch, seeded, as a stock pipeline folder."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tdm_r1.pretrain.autoencoder import Log, train_autoencoder
from tdm_r1.pretrain.teacher import new_corpus, new_teacher, save_pipeline, train_teacher


@dataclass(frozen=True, kw_only=True)
class PretrainPlan:
    """How long each part trains; the defaults made the committed weights."""

    seed: int = 0
    autoencoder_steps: int = 3000
    autoencoder_batch: int = 16
    corpus: int = 20_000
    """Rendered pictures."""
    teacher_steps: int = 6_000
    teacher_batch: int = 64
    teacher_rate: float = 1e-3
    """Peak learning rate."""


def pretrain_shapes(folder: Path, plan: PretrainPlan, log: Log, *, autoencoder: Path | None = None) -> None:
    """Train both parts and write the pipeline folder.

    Args:
        autoencoder: a folder with an already trained autoencoder to reuse.
    """
    vae = _autoencoder(plan, log, autoencoder)
    with tempfile.TemporaryDirectory() as scratch:
        teacher = new_teacher(Path(scratch), seed=plan.seed)
        corpus = new_corpus(vae, teacher.tokenizer, count=plan.corpus, seed=plan.seed + 1, log=log)
        train_teacher(
            teacher,
            corpus,
            steps=plan.teacher_steps,
            batch=plan.teacher_batch,
            peak=plan.teacher_rate,
            seed=plan.seed,
            log=log,
        )
        save_pipeline(teacher, vae, folder)


def _autoencoder(plan: PretrainPlan, log: Log, folder: Path | None) -> Any:
    if folder is None:
        return train_autoencoder(steps=plan.autoencoder_steps, batch=plan.autoencoder_batch, seed=plan.seed, log=log)
    from diffusers import AutoencoderKL

    return AutoencoderKL.from_pretrained(folder, use_safetensors=True).eval()
