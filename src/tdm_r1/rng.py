"""Counter-based randomness: every draw is a function of its key, never of the draws before it.

A key is (root, iteration, purpose, counters…): the same key gives the same draw in any stage, any process,
any order and any microbatch. That is what lets a run cut into stages equal the run in one process bit for bit.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import accumulate

import torch
from torch import Tensor

Counter = int | str


def encode_part(part: Counter) -> bytes:
    """Type, length and text of one part, so that 1 ≠ "1"."""
    if isinstance(part, str):
        text = part.encode()
        return b"s%d:%s" % (len(text), text)
    if isinstance(part, bool) or not isinstance(part, int):
        raise TypeError(f"a counter of a random key is an int or a str, found {part!r} ({type(part).__name__})")
    text = b"%d" % part
    return b"i%d:%s" % (len(text), text)


def encode(*parts: Counter) -> bytes:
    """An injective encoding of several parts: ("a", "bc") ≠ ("ab", "c")."""
    return b"".join(map(encode_part, parts))


@dataclass(frozen=True)
class Keys:
    """The source of all draws of one iteration of one run. Holds no state: equal keys, equal draws."""

    root: int
    """The run's seed."""
    iteration: int
    """The optimizer iteration n; use −1 or a purpose of its own for what is drawn once per run."""

    def at(self, iteration: int) -> Keys:
        """The keys of another iteration of the same run."""
        return replace(self, iteration=iteration)

    def seed(self, purpose: str, *counters: Counter) -> int:
        """63 bits of blake2b over (root, iteration, purpose, counters…)."""
        digest = blake2b(encode(self.root, self.iteration, purpose, *counters), digest_size=8).digest()
        return int.from_bytes(digest, "little") >> 1

    def normal(self, purpose: str, *counters: Counter, shape: Sequence[int]) -> Tensor:
        """ε ~ N(0, I) of `shape`, fp32 on the CPU.

        Limit: torch's CPU engine takes 32 bits of the seed, so two of n draws coincide with probability
        about n²/2³³: 1% within an iteration of 10,000 draws.
        """
        return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(self.seed(purpose, *counters)))

    def seeds(self, purpose: str, ids: Sequence[Counter], *counters: Counter) -> list[int]:
        """Entry i is `seed(purpose, ids[i], *counters)`; what the keys share is encoded once."""
        start, end = encode(self.root, self.iteration, purpose), encode(*counters)
        digests = [blake2b(start + encode_part(name) + end, digest_size=8).digest() for name in ids]
        return [int.from_bytes(digest, "little") >> 1 for digest in digests]

    def normals(self, purpose: str, ids: Sequence[Counter], *counters: Counter, shape: Sequence[int]) -> Tensor:
        """[N, *shape] fp32: row i is `normal(purpose, ids[i], *counters)`, whatever the other ids of the call are."""
        out_N, generator = torch.empty(len(ids), *shape), torch.Generator()
        for row, seed in zip(out_N, self.seeds(purpose, ids, *counters), strict=True):
            row.normal_(generator=generator.manual_seed(seed))
        return out_N

    def uniform(self, purpose: str, *counters: Counter) -> float:
        """One u ~ U[0, 1), a multiple of 2⁻⁵³."""
        return (self.seed(purpose, *counters) >> 10) * 2.0**-53

    def uniforms(self, purpose: str, ids: Sequence[Counter], *counters: Counter) -> Tensor:
        """[N] float64: entry i is `uniform(purpose, ids[i], *counters)`."""
        seeds = self.seeds(purpose, ids, *counters)
        return torch.tensor([(seed >> 10) * 2.0**-53 for seed in seeds], dtype=torch.float64)

    def permutation(self, purpose: str, *counters: Counter, count: int) -> list[int]:
        """A uniformly random order of 0..count−1: the indices sorted by a hash of each."""
        return sorted(range(count), key=lambda index: self.seed(purpose, *counters, index))

    def weighted_choice(self, purpose: str, *counters: Counter, weights: Sequence[float]) -> int:
        """An index drawn with P(i) = weights[i] / Σ weights."""
        if not weights or min(weights) < 0 or not 0 < math.fsum(weights) < math.inf:
            raise ValueError(f"weights must be finite, non-negative and not all zero, found {list(weights)}")
        edges = list(accumulate(weights))
        index = bisect_right(edges, self.uniform(purpose, *counters) * edges[-1])
        return min(index, max(i for i, weight in enumerate(weights) if weight > 0))
