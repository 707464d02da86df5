"""`tdm-r1 pretrain --world words`: from the codec and the transformer of `shapes`, which already draw flat colours."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from tdm_r1.models.quiet import quiet_loading
from tdm_r1.models.sources import ASSETS
from tdm_r1.pretrain.autoencoder import polish_decoder, standardise
from tdm_r1.pretrain.resume import checkpoints_of
from tdm_r1.pretrain.scenes import WORDS, Log
from tdm_r1.pretrain.shapes import Phase, train_phase
from tdm_r1.pretrain.teacher import new_teacher, save_pipeline

START: Final = ASSETS / "shapes"
MIX: Final = MappingProxyType(dict(zip(WORDS.tags, (4, 1, 3), strict=True)))
"""About as many strings as each tag has."""


@dataclass(frozen=True, kw_only=True)
class WordsPlan:
    """How long each part trains; the defaults made the committed weights."""

    seed: int = 0
    decoder_steps: int = 500
    """Of the decoder alone: latents stay those of the codec of `shapes`."""
    batch: int = 16
    phases: tuple[Phase, ...] = (
        Phase(steps=800, rate=1e-3, mix=MIX, corpus=16_000),
        Phase(steps=400, rate=8e-4, mix=MIX, corpus=16_000),
    )
    """Of the teacher, one after the other; the folder is written after each. Few: it shall spell half-heartedly."""

    def shortened(self, steps: int) -> WordsPlan:
        """The same plan with at most `steps` steps in every part, and no more pictures than they can see."""
        phases = tuple(
            replace(p, steps=min(p.steps, steps), corpus=min(p.corpus, p.batch * steps)) for p in self.phases
        )
        return replace(self, decoder_steps=min(self.decoder_steps, steps), phases=phases)


def pretrain_words(folder: Path, plan: WordsPlan, log: Log, *, every: int = 250) -> None:
    """Train both parts and write the pipeline folder; go on where a killed pretraining of the same plan stopped.

    Args:
        every: steps between two checkpoints.
    """
    kept = checkpoints_of(folder, plan, log, every)
    vae = _part("AutoencoderKL", "vae")
    polish_decoder(WORDS, vae, steps=plan.decoder_steps, batch=plan.batch, seed=plan.seed, kept=kept)
    standardise(WORDS, vae, seed=plan.seed + 1)
    with tempfile.TemporaryDirectory() as scratch:
        teacher = new_teacher(WORDS, Path(scratch), seed=plan.seed)
        teacher.transformer = _part("SD3Transformer2DModel", "transformer")
        for number, phase in enumerate(plan.phases):
            train_phase(WORDS, teacher, vae, phase, number=number, seed=plan.seed + number, kept=kept)
            save_pipeline(teacher, vae, folder)
    kept.remove()


def _part(kind: str, name: str) -> Any:
    with quiet_loading():
        import diffusers

        return getattr(diffusers, kind).from_pretrained(START, subfolder=name, use_safetensors=True)
