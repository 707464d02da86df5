"""`torch.compile` of a network's blocks: one function for each kind of block, whatever weights and roles it is given.

Blocks of one kind share what was compiled for them; the role of a call is an input (`models/skeletons.py`), so that no
change of role or of weights compiles anew. What does compile anew: other shapes, other numbers of rows of the roles in
one pass, and whether gradients are wanted (ADR 0028).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import Any, Final

import torch
from torch import Tensor
from torch.func import functional_call

from tdm_r1.errors import ConfigError
from tdm_r1.models.factored import Factors, Share
from tdm_r1.models.skeletons import Layers, Part, bare, likeness, weights_of, with_factors

BACKEND: Final[Mapping[str, Any]] = {"backend": "inductor", "options": {"deterministic": True}}
"""Nothing is timed to choose a kernel: else two processes could choose differently."""
VARIANTS: Final = 4096
"""Shapes and modes of one function before the compiler gives up; its own number is 8."""


@dataclass(frozen=True)
class Block:
    """Its weights, and which function of them it is."""

    kind: Hashable
    weights: Mapping[str, Tensor]


@dataclass(frozen=True)
class Given:
    """What a block takes of the role of a call."""

    layers: Layers
    tensors: Mapping[str, Tensor]
    """By name inside the block; in place of its own weights, or factors."""


NOTHING: Final = Given((), {})


class CompiledBlocks:
    """Of one network, whose blocks call this from now on; `role` must be told before each call."""

    def __init__(self, network: torch.nn.Module) -> None:
        """
        Raises:
            ConfigError: when there is no compiler on this machine.
        """
        device = next(network.parameters()).device
        require_compiler(device.type)
        self._device = device
        self._blocks: dict[str, Block] = {}
        self._skeletons: dict[Hashable, torch.nn.Module] = {}
        self._functions: dict[tuple[Hashable, Layers], Callable[..., Any]] = {}
        self._given: Mapping[str, Given] = {}
        for name, block in blocks_of(network).items():
            kind = likeness(block)
            if kind not in self._skeletons:
                self._skeletons[kind] = bare(block)
            self._blocks[name] = Block(kind, weights_of(block))
        for name, block in blocks_of(network).items():
            object.__setattr__(block, "forward", partial(self._call, name))

    @property
    def prefixes(self) -> tuple[str, ...]:
        """How the names of all weights begin that are given to blocks here."""
        return tuple(f"{name}." for name in self._blocks)

    def role(self, weights: Mapping[str, Tensor], shares: Sequence[Share] | None) -> None:
        """What the next call runs with: weights in place of the base's, or roles beside it."""
        if shares is None:
            self._given = {name: Given((), own) for name, own in _by_block(weights).items()}
        else:
            self._given = dealt(shares, self._device)

    def bound(self, name: str) -> Callable[..., Any]:
        """A block with the role of this call, also when it runs again after the next call."""
        block, given = self._blocks[name], self._given.get(name, NOTHING)
        return partial(self._function(block.kind, given.layers), {**block.weights, **given.tensors})

    def _call(self, name: str, *args: Any, **options: Any) -> Any:
        return self.bound(name)(*args, **options)

    def _function(self, kind: Hashable, layers: Layers) -> Callable[..., Any]:
        if (kind, layers) not in self._functions:
            skeleton = self._skeletons[kind]
            self._functions[kind, layers] = _compiled(with_factors(skeleton, layers) if layers else skeleton)
        return self._functions[kind, layers]


def blocks_of(network: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """The repeated parts of a network, by name: what its lists of modules hold."""
    lists = [(name, part) for name, part in network.named_children() if isinstance(part, torch.nn.ModuleList)]
    return {f"{name}.{number}": block for name, part in lists for number, block in enumerate(part)}


def dealt(shares: Sequence[Share], device: torch.device) -> dict[str, Given]:
    """The roles of a call by block."""
    roles = list({id(share.role): share.role for share in shares if share.role}.values())
    tensors: dict[str, dict[str, Tensor]] = defaultdict(dict)
    layers: dict[str, dict[str, tuple[Part, ...]]] = defaultdict(dict)
    for slot, role in enumerate(roles):
        for block, own in _by_block(role).items():
            for name, tensor in own.items():
                tensors[block][f"{name}{slot}"] = tensor.to(device)
                layer = name.removesuffix(".lora_A")
                if layer != name:
                    layers[block][layer] = _parts(shares, roles, f"{block}.{name}")
    return {block: Given(tuple(sorted(layers[block].items())), tensors[block]) for block in tensors}


def _parts(shares: Sequence[Share], roles: Sequence[Factors], name: str) -> tuple[Part, ...]:
    """Of the layer whose factor has this name."""
    slots = {id(role): slot for slot, role in enumerate(roles) if name in role}
    return tuple(
        Part(share.count, slots[id(share.role)], share.role.scale)
        if share.role is not None and id(share.role) in slots
        else Part(share.count, None, 0.0)
        for share in shares
    )


def _by_block(weights: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """`LIST.NUMBER.REST` as `REST` of block `LIST.NUMBER`; what has another name is no part of a block."""
    found: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in weights.items():
        first, _, rest = name.partition(".")
        number, _, inner = rest.partition(".")
        if number.isdigit():
            found[f"{first}.{number}"][inner] = tensor
    return found


def _compiled(skeleton: torch.nn.Module) -> Callable[..., Any]:
    """A function of weights by name, and of what the block is called with; never a mixture of compiled and not."""

    def run(weights: dict[str, Tensor], *args: Any, **options: Any) -> Any:
        return functional_call(skeleton, weights, args, options, strict=True)

    compile_once: Any = torch.compile  # its declared overloads lack the last two
    found: Callable[..., Any] = compile_once(
        run, fullgraph=True, dynamic=False, **BACKEND, recompile_limit=VARIANTS, isolate_recompiles=True
    )
    return found


def require_compiler(device: str) -> None:
    """
    Raises:
        ConfigError: when nothing on this machine can compile for this device.
    """
    if "isolate_recompiles" not in signature(torch.compile).parameters:
        raise ConfigError(
            f"model.compile is true, but torch {torch.__version__} cannot keep one block's code from another's",
            hint="pip install 'torch>=2.13'; or begin a run with model.compile=false",
        )
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler
    from torch.utils._triton import has_triton

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise ConfigError(
            "model.compile is true, but this machine has no C++ compiler",
            hint="install g++, or name one in CXX; or begin a run with model.compile=false",
        ) from error
    if device == "cuda" and not has_triton():
        raise ConfigError(
            "model.compile is true, but this machine has no Triton, which compiles for CUDA",
            hint="pip install triton; or begin a run with model.compile=false",
        )
