"""What one pass of a base costs for one row: counted on the meta device, on networks of few blocks, and carried to all.

Blocks of one kind cost the same, so a network of all of them follows from one with one block of each kind and from one
more of each. Rows cost the same, too, but for the copies of a role's tensors, which are made once per call.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import torch
from torch import Tensor

from tdm_r1.config import AdapterConfig, ModelConfig
from tdm_r1.models.adapters import Adapter, RoleTensors
from tdm_r1.models.backbone import Condition
from tdm_r1.models.ledger import Use, counted
from tdm_r1.models.open import pipeline_backbone
from tdm_r1.models.shapes import Shapes, decoder_of, network_of, prompt_shapes, shapes_of, stated_network

BYTES: Final = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class PassCost:
    """Of one row, beside the base's weights. Bytes, and floating point operations."""

    asked: float
    """Most bytes at once of a pass without gradient."""
    held: float
    """What a pass with gradient leaves for its backward pass."""
    trained: float
    """Most bytes at once of both passes."""
    copies: float
    """Of a role's tensors where the network computes, once per call; in `held` and `trained` not included."""
    flops_asked: float
    flops_trained: float
    buffers: float
    """Of the network, beside its parameters; no row has a part in them."""

    def waiting(self, asked: int) -> float:
        """Most bytes at once of a pass with gradient that waits while `asked` frozen queries are answered together."""
        return max(self.trained, self.held + asked * self.asked)


def pass_cost(config: ModelConfig, adapter: AdapterConfig, *, chained: bool = False) -> PassCost:
    """Of a role that is applied so.

    Args:
        chained: whether the latent has a gradient, too: a later step of a path that is trained as a whole.
    """
    return _pass_cost(config, adapter, True, chained)


def path_bytes(first: PassCost, later: PassCost, steps: int, asked: int) -> float:
    """Most bytes at once of one row of a path with gradient, whose end waits for frozen queries."""
    if steps == 1:
        return first.waiting(asked)
    return first.held + (steps - 2) * later.held + later.waiting(asked)


@cache
def _pass_cost(config: ModelConfig, adapter: AdapterConfig, flash: bool, chained: bool) -> PassCost:
    whole = _depths(config)
    small = {kind: min(1, count) for kind, count in whole.items()}
    first = _measured(config, adapter, small, flash, chained=chained)
    total = dict(first)
    for kind, count in whole.items():
        if count > small[kind]:
            more = _measured(config, adapter, {**small, kind: small[kind] + 1}, flash, chained=chained)
            total = {name: total[name] + (count - small[kind]) * (more[name] - first[name]) for name in total}
    return PassCost(**total)


def _depths(config: ModelConfig) -> dict[str, int]:
    """Blocks of a base by kind."""
    stated = network_of(config, stated_network(config)).config
    if config.backbone == "sd3":
        dual = len(stated["dual_attention_layers"])
        return {"dual": dual, "single": stated["num_layers"] - dual}
    if config.backbone == "flux":
        return {"joint": stated["num_layers"], "single": stated["num_single_layers"]}
    return {"layers": stated["n_layers"]}


def _shortened(config: ModelConfig, depths: Mapping[str, int]) -> dict[str, Any]:
    """`transformer/config.json` of the same base with so many blocks."""
    stated = stated_network(config)
    if config.backbone == "sd3":
        layers = depths["dual"] + depths["single"]
        return {**stated, "num_layers": layers, "dual_attention_layers": tuple(range(depths["dual"]))}
    if config.backbone == "flux":
        return {**stated, "num_layers": depths["joint"], "num_single_layers": depths["single"]}
    return {**stated, "n_layers": depths["layers"]}


def _measured(
    config: ModelConfig, adapter: AdapterConfig, depths: Mapping[str, int], flash: bool, *, chained: bool = False
) -> dict[str, float]:
    """Both passes of one row of a shortened network."""
    kind = getattr(torch, config.dtype)
    network = network_of(config, _shortened(config, depths)).requires_grad_(False).eval()
    for tensor in (*network.parameters(), *network.buffers()):
        tensor.data = tensor.data.to(kind)
    backbone = pipeline_backbone(config.backbone).around(network, config, "meta")
    fitted = Adapter(backbone.base(), adapter.model_copy(update={"application": application(config, adapter)}))
    role = {name: tensor.requires_grad_() for name, tensor in _role(fitted).items()}
    x, sigma, condition = _row(config)
    x.requires_grad_(chained)

    def call() -> Tensor:
        return backbone.velocity(x, sigma, condition, fitted.apply(role))

    inputs = [x, sigma, condition.sequence, condition.pooled]
    known = [*network.parameters(), *network.buffers(), *role.values(), *inputs]
    asked, trained = (counted(call, known, train=train, flash=flash) for train in (False, True))
    copies = copies_of(fitted, role, config)
    buffers = sum(buffer.nbytes for buffer in network.buffers())
    return {**_values(asked, trained, copies, whole=not fitted.factored), "buffers": float(buffers)}


def _values(asked: Use, trained: Use, copies: float, *, whole: bool) -> dict[str, float]:
    """Factors are copied layer by layer, and kept for a backward pass only; whole weights in every pass."""
    return {
        "asked": asked.peak - copies * whole,
        "held": trained.held - copies,
        "trained": trained.peak - copies,
        "copies": copies,
        "flops_asked": asked.flops,
        "flops_trained": trained.flops,
    }


@cache
def _facts(config: ModelConfig) -> tuple[Shapes, tuple[int, int, int]]:
    """Sizes of the whole base, and of its prompts."""
    return shapes_of(config), prompt_shapes(config)


def application(config: ModelConfig, adapter: AdapterConfig) -> str:
    """How a role of the whole base is applied; a shortened base could be below the limit of `auto`."""
    base = _facts(config)[0].base
    return "factored" if Adapter(base, adapter).factored else "merged"


def copies_of(adapter: Adapter, role: Mapping[str, Tensor], config: ModelConfig) -> float:
    """Bytes that a role takes in a call: its factors in the base's precision, or whole weights."""
    width = BYTES[config.dtype]
    if adapter.factored:
        return 0.0 if config.dtype == "float32" else float(width * sum(tensor.numel() for tensor in role.values()))
    if adapter.config.kind == "full":
        return 0.0 if config.dtype == "float32" else float(width * sum(tensor.numel() for tensor in role.values()))
    weights = sum(adapter.base[f"{name}.weight"].numel() for name in adapter.targets())
    return float(weights * (4 if config.dtype == "float32" else 4 + width))


def _role(adapter: Adapter) -> RoleTensors:
    """A role's tensors on the meta device."""
    if adapter.config.kind == "full":
        return {name: torch.empty(tensor.shape, device="meta") for name, tensor in adapter.base.items()}
    rank, found = adapter.config.rank, {}
    for name in adapter.targets():
        outputs, inputs = adapter.base[f"{name}.weight"].shape
        found[f"{name}.lora_A"] = torch.empty(rank, inputs, device="meta")
        found[f"{name}.lora_B"] = torch.empty(outputs, rank, device="meta")
    return found


def _row(config: ModelConfig) -> tuple[Tensor, Tensor, Condition]:
    """One latent, level and prompt of full length; the pooled embedding is real, for Z-Image reads its length."""
    shapes, (tokens, width, pooled) = _facts(config)
    condition = Condition(torch.empty(1, tokens, width, device="meta"), torch.full((1, pooled), float(tokens)))
    return torch.empty(1, *shapes.latent, device="meta"), torch.empty(1, device="meta"), condition


@cache
def decode_cost(config: ModelConfig) -> tuple[int, float, float]:
    """Parameters of the decoder, and for one image the most bytes at once and the operations."""
    kind = getattr(torch, config.dtype)
    autoencoder = decoder_of(config).requires_grad_(False).eval().to(kind)
    parameters = [*autoencoder.decoder.parameters()]
    latent = torch.empty(1, *_facts(config)[0].latent, device="meta", dtype=kind)
    known = [*autoencoder.parameters(), *autoencoder.buffers(), latent]
    use = counted(lambda: autoencoder.decode(latent, return_dict=False)[0], known, train=False)
    return sum(parameter.numel() for parameter in parameters), use.peak, use.flops
