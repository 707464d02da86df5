"""Ranks for a test: the sharded optimizer beside the whole one, unbroken and stopped in the middle."""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from torch import Tensor

from tdm_r1.config import AdamConfig, DistributedConfig
from tdm_r1.models.optimizer import RoleOptimizer
from tdm_r1.models.optimizers import open_optimizer
from tdm_r1.models.world import ALONE
from tdm_r1.runtime.distributed import TorchWorld

ADAM = AdamConfig(learning_rate=0.01, betas=(0.9, 0.99), weight_decay=0.01, clip_norm=1.0)
PARTS = 3
"""Of a step's loss: with two ranks one of them has fewer."""


def start() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {"b": torch.randn(3, generator=generator), "a": torch.randn(7, 5, generator=generator)}


def part(params: dict[str, Tensor], step: int, number: int) -> Tensor:
    x = torch.randn(5, generator=torch.Generator().manual_seed(10 * step + number))
    return (params["a"].float() @ x).square().sum() + (params["b"].float() * (number + 1) - 1).square().sum()


def train(optimizer: RoleOptimizer, steps: range, rank: int, size: int) -> list[float]:
    norms = []
    for step in steps:
        optimizer.expect(-(-PARTS // size))
        for number in range(rank, PARTS, size):
            optimizer.backward(part(dict(optimizer.params), step, number))
        norms.append(optimizer.step(step))
    return norms


def compare(sharding: DistributedConfig, tolerance: float) -> None:
    world = TorchWorld()
    whole, unbroken = RoleOptimizer("r", start(), ADAM, {}), open_optimizer("r", start(), ADAM, {}, world, sharding)
    assert unbroken.state() == {}
    held = torch.bfloat16 if sharding.dtype == "bfloat16" else torch.float32
    assert {tensor.dtype for tensor in unbroken.params.values()} == {held}, "a wider copy of a whole base has no room"
    norms = [train(whole, range(4), 0, ALONE.size), train(unbroken, range(4), world.rank, world.size)]
    torch.testing.assert_close(norms[1], norms[0], rtol=max(tolerance, 1e-6), atol=tolerance)
    torch.testing.assert_close(unbroken.tensors(), whole.tensors(), rtol=0, atol=tolerance)
    torch.testing.assert_close(unbroken.state(), whole.state(), rtol=tolerance, atol=tolerance)

    before = open_optimizer("r", start(), ADAM, {}, world, sharding)
    train(before, range(2), world.rank, world.size)
    tensors, state = before.tensors(), before.state()
    after = open_optimizer("r", tensors, ADAM, state, world, sharding)
    train(after, range(2, 4), world.rank, world.size)
    torch.testing.assert_close(after.tensors(), unbroken.tensors(), rtol=0, atol=0)
    torch.testing.assert_close(after.state(), unbroken.state(), rtol=0, atol=0)

    alone = RoleOptimizer("r", tensors, ADAM, state)
    train(alone, range(2, 4), 0, ALONE.size)
    torch.testing.assert_close(alone.tensors(), whole.tensors(), rtol=0, atol=tolerance)


def sum_many(sharding: DistributedConfig) -> None:
    """One backward pass of slope 1 and 256 of 2⁻⁹, half of what bfloat16 can add to 1: the gradient is 1.5."""
    world, most = TorchWorld(), ADAM.model_copy(update={"clip_norm": 1e9})
    optimizer = open_optimizer("r", start(), most, {}, world, sharding)
    optimizer.expect(257)
    for number in range(257):
        slope = (2.0**-9 if number else 1.0) / world.size
        optimizer.backward(torch.stack([(leaf.float() * slope).sum() for leaf in optimizer.params.values()]).sum())
    torch.testing.assert_close(optimizer.step(0), 1.5 * 38**0.5, rtol=1e-6, atol=0)


def main() -> None:
    dist.init_process_group("gloo")
    for zero, offload, dtype, tolerance in (
        (1, False, "float32", 1e-6),
        (2, True, "float32", 1e-6),
        (1, False, "bfloat16", 0.03),
        (1, True, "bfloat16", 0.03),
        (2, False, "bfloat16", 0.03),
        (2, True, "bfloat16", 0.03),
        (3, False, "float32", 1e-6),
        (3, True, "float32", 1e-6),
        (3, False, "bfloat16", 0.03),
    ):
        given = {"engine": "deepspeed", "zero_stage": zero, "offload": offload, "dtype": dtype}
        compare(DistributedConfig.model_validate(given), tolerance)
        if dtype == "bfloat16":
            sum_many(DistributedConfig.model_validate(given))
        print(f"rank {dist.get_rank()}: {given} as one process", file=sys.stderr)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
