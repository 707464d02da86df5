"""Pretrain the teacher of the world `plane`, in seconds, on labels that lie.

With probability `LABEL_NOISE` a point comes from any of the eight modes instead of one of its
class's two, as `CAPTION_NOISE` does for pictures: the teacher knows the ring and obeys half-heartedly.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import save_file
from torch import Tensor

from tdm_r1.models.plane import CONFIG_FILE, WEIGHTS_FILE, PlaneShape, mlp_velocity, new_parameters
from tdm_r1.worlds.plane import DEVIATION, MODES, centre, right_modes

LABEL_NOISE: Final = 0.65
"""Share of points drawn from all modes alike: 0.35 + 0.65 · 2/8 = .51 of the training points are right."""
SHAPE: Final = PlaneShape()
LABEL_DROPOUT: Final = 0.1
SHIFT: Final = 3.0
EMA_DECAY: Final = 0.999


@dataclass(frozen=True, kw_only=True)
class PlanePlan:
    """How long the teacher trains; the defaults made the committed weights."""

    seed: int = 0
    steps: int = 4000
    batch: int = 512
    rate: float = 5e-3
    """Peak learning rate; falls by a cosine to zero."""


def draw_points(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Points [count, 2] with their lying class codes [count, 8]; a tenth of the codes is empty."""
    classes = torch.randint(MODES, (count,), generator=generator)
    own = torch.tensor([right_modes(number) for number in range(MODES)])
    right = own[classes, torch.randint(2, (count,), generator=generator)]
    lies = torch.rand(count, generator=generator) < LABEL_NOISE
    mode = torch.where(lies, torch.randint(MODES, (count,), generator=generator), right)
    centres = torch.tensor([centre(number) for number in range(MODES)])
    points = centres[mode] + DEVIATION * torch.randn(count, 2, generator=generator)
    kept = torch.rand(count, 1, generator=generator) >= LABEL_DROPOUT
    return points, torch.eye(MODES)[classes] * kept


def flow_loss(parameters: dict[str, Tensor], count: int, generator: torch.Generator) -> Tensor:
    """Rectified-flow loss with logit-normal levels under shift 3 (arXiv 2403.03206)."""
    points, codes = draw_points(count, generator)
    u = torch.sigmoid(torch.randn(count, generator=generator))
    sigma = SHIFT * u / (1 + (SHIFT - 1) * u)
    noise = torch.randn(count, 2, generator=generator)
    x = (1 - sigma[:, None]) * points + sigma[:, None] * noise
    return (mlp_velocity(SHAPE, parameters, x, sigma, codes) - (noise - points)).square().mean()


def train_plane(plan: PlanePlan, log: Callable[[str], None]) -> dict[str, Tensor]:
    """The weights' exponential moving average over the last thousand steps."""
    generator = torch.Generator().manual_seed(plan.seed)
    parameters = new_parameters(SHAPE, generator)
    leaves = [parameter.requires_grad_(True) for parameter in parameters.values()]
    average = [leaf.detach().clone() for leaf in leaves]
    optimizer = torch.optim.AdamW(leaves, lr=plan.rate, weight_decay=0.0)
    start = time.monotonic()
    for step in range(plan.steps):
        optimizer.param_groups[0]["lr"] = plan.rate * 0.5 * (1 + math.cos(math.pi * step / plan.steps))
        loss = flow_loss(parameters, plan.batch, generator)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
        decay = min(EMA_DECAY, (1 + step) / (10 + step))
        torch._foreach_lerp_(average, [leaf.detach() for leaf in leaves], 1 - decay)
        if step % 1000 == 999:
            log(f"teacher step {step + 1} of {plan.steps} loss {loss.item():.4f} {time.monotonic() - start:.0f} s")
    return dict(zip(parameters, average, strict=True))


def pretrain_plane(folder: Path, plan: PlanePlan, log: Callable[[str], None]) -> None:
    """Train and write `model.safetensors` and `config.json`."""
    weights = train_plane(plan, log)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / WEIGHTS_FILE)
    (folder / CONFIG_FILE).write_text(json.dumps(asdict(SHAPE), indent=2) + "\n")
