"""Pretrain the teacher of an embedded world: a small SD3 transformer and its text encoders, from scratch."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from tdm_r1.pretrain.autoencoder import LATENT_CHANNELS, to_pixels
from tdm_r1.pretrain.resume import Checkpoints, Trained
from tdm_r1.pretrain.scenes import Log, Scenes
from tdm_r1.pretrain.text import MAX_TOKENS, WIDTHS, new_text_encoders, new_tokenizer

SHIFT: Final = 3.0
CAPTION_DROPOUT: Final = 0.1
EMA_DECAY: Final = 0.999


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Latents and token ids of the pretraining pictures."""

    latents: Tensor
    """[N, C, 8, 8] float32, standardised."""
    tokens: Tensor
    """[N, 11] int64."""


@torch.no_grad()
def new_corpus(
    scenes: Scenes, vae: Any, tokenizer: Any, *, mix: Mapping[str, int], count: int, seed: int, log: Log
) -> Corpus:
    """Render, caption and encode `count` pictures of the training split.

    Args:
        mix: relative number of pictures by tag.
    """
    rng = np.random.default_rng(seed)
    tags = [tag for tag, share in mix.items() for _ in range(share)]
    latents, texts, pictures = [], [], []
    for index in range(count):
        text, picture = scenes.draw(tags[index % len(tags)], rng)
        texts.append(text)
        pictures.append(picture)
        if len(pictures) == 64 or index == count - 1:
            mean = vae.encode(to_pixels(np.stack(pictures))).latent_dist.mean
            latents.append((mean - vae.config.shift_factor) * vae.config.scaling_factor)
            pictures.clear()
            if index % 4096 == 4095:
                log(f"corpus {index + 1} of {count}")
    return Corpus(latents=torch.cat(latents).contiguous(), tokens=tokenize(tokenizer, texts))


def tokenize(tokenizer: Any, texts: list[str]) -> Tensor:
    """[N, 11] int64, padded as the pipeline pads."""
    batch = tokenizer(texts, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt")
    ids: Tensor = batch["input_ids"]
    return ids


def embed(encoders: torch.nn.ModuleList, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """What `StableDiffusion3Pipeline.encode_prompt` gives for these tokens: [N, 11, 96] and [N, 96]."""
    outputs = [encoder(tokens, output_hidden_states=True) for encoder in encoders]
    sequence = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
    return sequence, torch.cat([output[0] for output in outputs], dim=-1)


def new_transformer() -> Any:
    """An untrained `diffusers.SD3Transformer2DModel` of 3.7 M parameters."""
    from diffusers import SD3Transformer2DModel

    return SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=4,
        attention_head_dim=32,
        num_attention_heads=5,
        joint_attention_dim=sum(WIDTHS),
        caption_projection_dim=160,
        pooled_projection_dim=sum(WIDTHS),
        pos_embed_max_size=8,
    )


def _learning_rate(step: int, steps: int, peak: float) -> float:
    """Warm up, hold, then fall linearly over the last third."""
    return peak * min(1.0, (step + 1) / 200, max(0.02, 3 * (steps - step) / steps))


@dataclass
class Teacher:
    """Transformer and text encoders, trained together."""

    transformer: Any
    encoders: torch.nn.ModuleList
    tokenizer: Any

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """By name, the transformer's first."""
        parts = {"transformer": self.transformer, "encoders": self.encoders}
        return {f"{part}.{name}": p for part, module in parts.items() for name, p in module.named_parameters()}

    def loss(self, latents: Tensor, tokens: Tensor) -> Tensor:
        """Rectified-flow loss with logit-normal levels under shift 3 (arXiv 2403.03206)."""
        u = torch.sigmoid(torch.randn(len(latents)))
        sigma = SHIFT * u / (1 + (SHIFT - 1) * u)
        noise = torch.randn_like(latents)
        level = sigma.view(-1, 1, 1, 1)
        sequence, pooled = embed(self.encoders, tokens)
        velocity = self.transformer(
            (1 - level) * latents + level * noise, sequence, pooled, 1000 * sigma, return_dict=False
        )[0]
        error: Tensor = (velocity - (noise - latents)).square().mean()
        return error


def new_teacher(scenes: Scenes, folder: Path, *, seed: int) -> Teacher:
    """Untrained modules; the tokenizer's files are written below `folder`."""
    tokenizer = new_tokenizer(scenes, folder / "tokenizer")
    torch.manual_seed(seed)
    encoders = torch.nn.ModuleList(new_text_encoders(len(tokenizer)))
    return Teacher(transformer=new_transformer(), encoders=encoders, tokenizer=tokenizer)


def train_teacher(
    teacher: Teacher, corpus: Corpus, *, part: str, steps: int, batch: int, peak: float, seed: int, kept: Checkpoints
) -> None:
    """Train in place; the weights end as the exponential moving average of the last thousand steps.

    Args:
        part: name of its checkpoint.
    """
    torch.manual_seed(seed)
    named = teacher.parameters()
    parameters = list(named.values())
    optimizer = torch.optim.AdamW(parameters, lr=peak, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    average = [p.detach().clone() for p in parameters]
    trained = Trained(named, optimizer, dict(zip(named, average, strict=True)))
    done = kept.resume(part, trained)
    empty = tokenize(teacher.tokenizer, [""])
    start, running = time.monotonic(), math.nan
    for step in range(done, steps):
        optimizer.param_groups[0]["lr"] = _learning_rate(step, steps, peak)
        index = torch.randint(len(corpus.latents), (batch,))
        dropped = torch.rand(batch, 1) < CAPTION_DROPOUT
        loss = teacher.loss(corpus.latents[index], torch.where(dropped, empty, corpus.tokens[index]))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        decay = min(EMA_DECAY, (1 + step) / (10 + step))
        torch._foreach_lerp_(average, [p.detach() for p in parameters], 1 - decay)
        running = loss.item() if math.isnan(running) else 0.99 * running + 0.01 * loss.item()
        if step % 100 == 99:
            kept.log(f"{part} step {step + 1} of {steps} loss {running:.4f} {time.monotonic() - start:.0f} s")
        kept.keep(part, step + 1, steps, trained)
    with torch.no_grad():
        for parameter, mean in zip(parameters, average, strict=True):
            parameter.copy_(mean)


def save_pipeline(teacher: Teacher, vae: Any, folder: Path) -> None:
    """Write a stock `StableDiffusion3Pipeline` directory, safetensors only."""
    from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline

    pipeline = StableDiffusion3Pipeline(
        transformer=teacher.transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
        vae=vae,
        text_encoder=teacher.encoders[0].eval(),
        tokenizer=teacher.tokenizer,
        text_encoder_2=teacher.encoders[1].eval(),
        tokenizer_2=teacher.tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
