"""One training stage in the processes that `torchrun` started: who they are, what they send, how they fail together.

A rank that raises or dies takes the others with it within seconds: its sockets close, torchrun ends the rest, and a
rank that hangs is given up after `distributed.timeout_seconds`. Only rank 0 commits, so that nothing is left behind.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Final, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor

from tdm_r1 import console
from tdm_r1.config import RunConfig
from tdm_r1.errors import TdmR1Error, TemporaryError
from tdm_r1.models.world import ALONE, World
from tdm_r1.runtime.dealing import require_fit
from tdm_r1.runtime.layout import Task

BUCKET: Final = 1 << 26
"""Numbers that are sent at once."""


class PeerError(TemporaryError):
    """Another rank died, left or did not answer in time."""


class TorchWorld:
    """The ranks of the default process group."""

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def add(self, tensors: Sequence[Tensor]) -> None:
        with self._peers():
            for bucket in buckets(tensors, BUCKET):
                total = self._sum(torch.cat([tensor.detach().reshape(-1) for tensor in bucket]))
                for tensor, part in zip(bucket, total.split([tensor.numel() for tensor in bucket]), strict=True):
                    tensor.detach().copy_(part.view_as(tensor))

    def _sum(self, flat: Tensor) -> Tensor:
        """Each rank adds one slice of all ranks, in their order, then the slices are collected: [n] to [n]."""
        width = -(-len(flat) // self.size)
        sent = torch.nn.functional.pad(flat, (0, width * self.size - len(flat)))
        received, total = torch.empty_like(sent), torch.empty_like(sent)
        dist.all_to_all_single(received, sent)
        first, *others = received.view(self.size, width)
        for other in others:
            first += other
        dist.all_gather(list(total.view(self.size, width)), first)
        return total[: len(flat)]

    def gather(self, text: str) -> list[str]:
        data = text.encode()
        with self._peers():
            sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
            dist.all_gather(sizes, torch.tensor([len(data)]))
            lengths = [int(size) for size in sizes]
            padded = torch.frombuffer(bytearray(data.ljust(max(*lengths, 1), b"\0")), dtype=torch.uint8)
            found = [torch.empty_like(padded) for _ in range(self.size)]
            dist.all_gather(found, padded)
        return [bytes(part[:length].tolist()).decode() for part, length in zip(found, lengths, strict=True)]

    @contextmanager
    def _peers(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise lost(self.rank, self.size, error) from error


def lost(rank: int, size: int, error: Exception) -> PeerError:
    """What a rank says when it cannot reach the others."""
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return PeerError(
        f"rank {rank} of {size} on {socket.gethostname()} lost the others: {reason:.300}",
        hint="nothing was committed: look for the first rank that failed, and run the same command again",
    )


def buckets(tensors: Sequence[Tensor], limit: int) -> Iterator[list[Tensor]]:
    """Consecutive tensors of together at most `limit` numbers, or one larger one."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        if bucket and sum(t.numel() for t in bucket) + tensor.numel() > limit:
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


def processes() -> int:
    """How many processes torchrun started, or 1."""
    return int(os.environ["WORLD_SIZE"]) if dist.is_torchelastic_launched() else 1


def leads() -> bool:
    """Whether this is the process that commits and reports: the only one, or rank 0."""
    return processes() == 1 or os.environ["RANK"] == "0"


def claim_device() -> None:
    """Take the device that is this process's own on its machine."""
    if dist.is_torchelastic_launched() and torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))


@contextmanager
def joined(task: Task, config: RunConfig) -> Iterator[World]:
    """The world of this process while it does one stage.

    With several processes an error inside ends this one at once: with the error's own code if it is a refusal, else 75.
    """
    size = processes()
    if size > 1:
        require_fit(task, config, size)
    if size == 1 and (config.distributed.engine == "none" or not dist.is_torchelastic_launched()):
        yield ALONE
        return
    _leave_when_told()
    ours = not dist.is_initialized()
    try:
        if ours:
            _connect(config)
        yield TorchWorld()
        if ours:
            dist.destroy_process_group()
    except BaseException as error:  # a rank that stayed would keep the others waiting
        _leave(error)


def _connect(config: RunConfig) -> None:
    backend = "cpu:gloo,cuda:nccl" if config.numerics.device == "cuda" else "gloo"
    try:
        dist.init_process_group(backend, timeout=timedelta(seconds=config.distributed.timeout_seconds))
    except RuntimeError as error:
        raise lost(int(os.environ["RANK"]), processes(), error) from error


def _leave(error: BaseException) -> NoReturn:
    """Say why and end without waiting for threads that wait for other ranks."""
    if isinstance(error, TdmR1Error):
        console.fail(error)
        code = error.exit_code
    elif isinstance(error, KeyboardInterrupt):
        code = 130
    else:
        traceback.print_exception(error)
        code = TemporaryError.exit_code
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _leave_when_told() -> None:
    """End with 75 on SIGTERM, which torchrun sends when another rank failed, also from inside a collective.

    Python runs a handler in the main thread only, which may be waiting in C++ for a rank that is gone; so the signal
    wakes a thread.
    """
    woken, wake = socket.socketpair()
    wake.setblocking(False)
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)

    def wait() -> None:
        while woken.recv(1) != bytes([signal.SIGTERM]):
            pass
        os.write(2, b"told to stop: another rank failed, or the machine is wanted back; nothing was committed\n")
        wake.detach()
        os._exit(TemporaryError.exit_code)

    threading.Thread(target=wait, name="leave", daemon=True).start()
