"""What six roles cost in one pass over the base, against one pass each: `python benchmarks/roles.py`.

The network is an SD3 transformer with random weights on this machine's CPU. Three ways are timed by turns, with the six
queries of a generator step: effective weights (W + BA formed anew for each role), factors one role at a time, factors
of all six in one pass. Then one trained step, forwards and backwards, merged against factored.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import functional_call

from tdm_r1.config import AdapterConfig
from tdm_r1.models.adapters import Adapter
from tdm_r1.models.factored import Factors, Share, applied
from tdm_r1.rng import Keys

ROLES = (None, None, "fake", "surrogate", "surrogate", None)
"""Teacher with and without the prompt, fake, surrogate with and without, frozen reference."""
KEYS = Keys(0, 0)


def network(blocks: int, width: int) -> torch.nn.Module:
    """SD3.5-M's shape at a smaller size."""
    from diffusers import SD3Transformer2DModel

    torch.manual_seed(0)
    found: torch.nn.Module = SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=16, out_channels=16, num_layers=blocks, attention_head_dim=64,
        num_attention_heads=width // 64, joint_attention_dim=256, caption_projection_dim=width,
        pooled_projection_dim=128, pos_embed_max_size=16, qk_norm="rms_norm",
    )  # fmt: skip
    return found.requires_grad_(False).eval()


def inputs(count: int) -> dict[str, Tensor]:
    return {
        "hidden_states": torch.randn(count, 16, 16, 16),
        "encoder_hidden_states": torch.randn(count, 32, 256),
        "pooled_projections": torch.randn(count, 128),
        "timestep": torch.full((count,), 500.0),
    }


def timed(ways: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each, measured by turns after one turn to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, way in ways.items():
            start = time.process_time()
            way()
            if turn:
                seconds[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    base = network(given.blocks, given.width)
    weights = {name: parameter.detach() for name, parameter in base.named_parameters()}
    merged, factored = (
        Adapter(
            weights, AdapterConfig.model_validate({"rank": given.rank, "alpha": 2.0 * given.rank, "application": a})
        )
        for a in ("merged", "factored")
    )
    names = [role for role in dict.fromkeys(ROLES) if role]
    roles = {r: {n: 0.02 * torch.randn_like(t) for n, t in merged.new(KEYS, r).items()} for r in names}
    one, six = inputs(given.batch), inputs(given.batch * len(ROLES))

    @torch.no_grad()
    def separate_merged() -> None:
        for role in ROLES:
            functional_call(base, merged.apply(roles[role]) if role else {}, (), one)

    def factors(role: str | None) -> Factors | None:
        found = factored.apply(roles[role]) if role else None
        assert found is None or isinstance(found, Factors)
        return found

    @torch.no_grad()
    def separate_factored() -> None:
        for role in ROLES:
            with applied(base, [Share(given.batch, factors(role))]):
                base(**one)

    @torch.no_grad()
    def batched() -> None:
        with applied(base, [Share(given.batch, factors(role)) for role in ROLES]):
            base(**six)

    leaves = {name: tensor.clone().requires_grad_() for name, tensor in roles["fake"].items()}

    def trained_merged() -> None:
        functional_call(base, merged.apply(leaves), (), one).sample.sum().backward()

    def trained_factored() -> None:
        role = factored.apply(leaves)
        assert isinstance(role, Factors)
        with applied(base, [Share(given.batch, role)]):
            base(**one).sample.sum().backward()

    asked = timed({"merged": separate_merged, "factored": separate_factored, "batched": batched}, given.repeats)
    step = timed({"merged": trained_merged, "factored": trained_factored}, given.repeats)
    count = sum(tensor.numel() for tensor in weights.values())
    print(f"base of {count / 1e6:.1f} M parameters, batch {given.batch}, rank {given.rank}, one thread, CPU seconds")
    for name, seconds in asked.items():
        print(f"six queries, {name:9}{seconds:8.3f} s, {seconds / asked['merged']:.2f} of merged")
    for name, seconds in step.items():
        print(f"trained step, {name:8}{seconds:8.3f} s, {seconds / step['merged']:.2f} of merged")


if __name__ == "__main__":
    main()
