"""What Argo, etcd and Linux take of a pipeline: the planner counts towards it, checker and driver refuse beyond it."""

from __future__ import annotations

from typing import Final

MAX_FILE: Final = 400_000
"""Bytes of a compiled pipeline; a limit of our own."""
MAX_STORED: Final = 1 << 20
"""Bytes of a workflow with its compressed status, in Argo."""
MAX_RETRYABLE: Final = 3 << 19
"""Bytes of the same object with its status as it is, which KFP's retry writes, in etcd."""
MAX_ARGUMENT: Final = 1 << 17
"""Bytes of one argument, in Linux; `{{$}}` is one."""
NODE_STORED: Final = 180
"""Bytes of a node of the status after compression, from a user's report (kubeflow/pipelines#12131)."""
_DIGEST: Final = 72
"""Bytes of one digest in the list that a fan-in hands on."""
_BESIDE: Final = 4_000
"""Bytes of `{{$}}` beside that list."""
MAX_FAN_IN: Final = (MAX_ARGUMENT - _BESIDE) // _DIGEST
"""Digests that fit into one argument."""


def argument_bytes(fan_in: int) -> int:
    """Bytes of a `{{$}}` with a list of so many digests."""
    return _BESIDE + _DIGEST * fan_in
