"""What a call would allocate and compute, counted on tensors without data: the meta device runs the network itself."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

_FLASH: Final = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_FLASH_BACKWARD: Final = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True)
class Use:
    """Of one call."""

    held: int
    """Bytes that are still allocated when it returns: what autograd saved, and the answer."""
    peak: int
    """Most bytes at once, backward pass included where there was one."""
    flops: int
    """Floating point operations, a multiply-add being two; matrix products, convolutions and attention."""


@dataclass
class Ledger(TorchDispatchMode):
    """Inside, every storage is counted from the operation that made it until nothing refers to it."""

    known: Iterable[Tensor] = ()
    """Tensors that were there before, such as the weights: never counted."""
    live: int = 0
    peak: int = 0
    flops: int = 0
    _sizes: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._sizes = {tensor.untyped_storage()._cdata: 0 for tensor in self.known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        found = func(*args, **(kwargs or {}))
        for tensor in tree_iter(found):
            if isinstance(tensor, Tensor):
                self._enter(tensor.untyped_storage())
        self.flops += self._flops(func, args, kwargs or {}, found)
        return found

    def _enter(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        self.live += self._sizes[key]
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._leave, key).atexit = False

    def _leave(self, key: int) -> None:
        self.live -= self._sizes.pop(key)

    @staticmethod
    def _flops(func: Any, args: Any, kwargs: Any, found: Any) -> int:
        packet = func._overloadpacket
        if packet is _FLASH:
            return int(sdpa_flop_count(*(tensor.shape for tensor in args[:3])))
        if packet is _FLASH_BACKWARD:
            return int(sdpa_backward_flop_count(*(tensor.shape for tensor in args[:4])))
        formula = flop_registry.get(packet)
        return int(formula(*args, **kwargs, out_val=found)) if formula else 0


class _Masks(TorchFunctionMode):
    """Inside, a write by a mask of booleans to a meta tensor is left out: it allocates nothing, and needs data."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        if func is torch.Tensor.__setitem__ and args[0].is_meta and isinstance(args[1], Tensor):
            return None
        return func(*args, **(kwargs or {}))


def _flash(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **more: Any) -> Tensor:
    """Attention that never forms its matrix; what it keeps is the same on every device."""
    mask = None if attn_mask is None else attn_mask.to(query.dtype)
    found: Tensor = _FLASH(query, key, value, 0.0, False, attn_mask=mask, scale=more.get("scale"))[0]
    return found


@contextmanager
def flash_attention() -> Iterator[None]:
    """Inside, networks attend so on the meta device, which otherwise forms the whole matrix.

    A function mode would not do: it is away in a backward pass that runs blocks again.
    """
    place: Any = torch.nn.functional
    whole = place.scaled_dot_product_attention
    place.scaled_dot_product_attention = _flash
    try:
        yield
    finally:
        place.scaled_dot_product_attention = whole


def counted(call: Callable[[], Tensor], known: Sequence[Tensor], *, train: bool, flash: bool = True) -> Use:
    """What one call uses; with `train` also its backward pass, whose gradients are sent away as they come.

    Args:
        call: on meta tensors; its answer is reduced to one number first.
        known: what is there before, leaves included.
    """
    leaves = [tensor for tensor in known if tensor.requires_grad]
    ledger = Ledger(known)
    handles = [leaf.register_post_accumulate_grad_hook(_send_away) for leaf in leaves]
    try:
        with torch.set_grad_enabled(train), flash_attention() if flash else nullcontext(), _Masks(), ledger:
            answer = call()
            held = ledger.live
            if train:
                torch.autograd.backward(answer.square().mean())
            return Use(held=held, peak=ledger.peak, flops=ledger.flops)
    finally:
        for handle in handles:
            handle.remove()


def _send_away(leaf: Tensor) -> None:
    leaf.grad = None
