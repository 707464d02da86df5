"""What `model.compile` gains and costs: `python benchmarks/compiled.py [--source embedded:shapes]`.

One LoRA role on the embedded base, asked without gradient and trained for a step, compiled and not, by turns in one
process. Seconds of the processor, of this process alone; the compiler's own processes count by the clock only, in the
first call of each kind, which is not part of the medians.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from tdm_r1.config import AdapterConfig, ModelConfig
from tdm_r1.models.adapters import Adapter
from tdm_r1.models.open import open_backbone
from tdm_r1.rng import Keys

KEYS = Keys(0, 0)


def ways_of(config: ModelConfig, adapter: AdapterConfig, batch: int) -> dict[str, Callable[[], object]]:
    """A pass without gradient, and a step of training."""
    backbone = open_backbone(config)
    fitted = Adapter(backbone.base(), adapter)
    torch.manual_seed(0)
    role = {name: tensor + 0.02 * torch.randn_like(tensor) for name, tensor in fitted.new(KEYS, "a").items()}
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in role.items()}
    condition = backbone.encode_prompts(["a red circle and two blue squares"] * batch)
    x, sigma = torch.randn(batch, *backbone.latent_shape), torch.linspace(0.1, 1, batch)

    def asked() -> object:
        with torch.no_grad():
            return backbone.velocity(x, sigma, condition, fitted.apply(role))

    def trained() -> object:
        loss = backbone.velocity(x, sigma, condition, fitted.apply(leaves)).square().mean()
        return torch.autograd.grad(loss, list(leaves.values()))

    return {"pass without gradient": asked, "step of training": trained}


def seconds_of(way: Callable[[], object]) -> float:
    start = time.process_time()
    way()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="embedded:shapes")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print(f"{given.source}, batch {given.batch}, {given.threads} threads, medians of {given.repeats}, by turns")
    print("| role | what | eager, s | compiled, s | faster | first call, s by the clock |\n|---|---|---|---|---|---|")
    for application in ("merged", "factored"):
        adapter = AdapterConfig.model_validate({"application": application})
        eager, compiled = (
            ways_of(ModelConfig(source=given.source, compile=flag), adapter, given.batch) for flag in (False, True)
        )
        for name in eager:
            start = time.perf_counter()
            compiled[name]()
            first = time.perf_counter() - start
            eager[name]()
            pairs = [(seconds_of(eager[name]), seconds_of(compiled[name])) for _ in range(given.repeats)]
            plain, fast = (statistics.median(column) for column in zip(*pairs, strict=True))
            figures = f"{plain:.3f} | {fast:.3f} | {plain / fast:.2f} × | {first:.0f}"
            print(f"| {application} | {name} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
