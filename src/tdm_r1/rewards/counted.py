"""Which votes count: a person who says the same thing twice is counted once, and one who says both is not at all.

Opinions of different people differ, and that is information. Of one person only the last word stands, where it is
known which was the last. Votes without a rater cannot be told apart, so all of them count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

COUNTED, REPEATED, REVISED, CONTRADICTED, UNDONE = "counted", "repeated", "revised", "contradicted", "undone"
FATES: Final = (COUNTED, REPEATED, REVISED, CONTRADICTED, UNDONE)
"""Counted; the same as an earlier one; followed by another opinion; said and unsaid at times that do not tell which
was last; taken back by its rater."""

Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


def fates(votes: pa.Table) -> npt.NDArray[np.int64]:
    """[V] index into `FATES` of every vote, in the order of the table.

    One opinion is what one rater says of one sample, of two samples, or of one sample in one impression. Of equal
    votes the first counts. Of different ones those of the latest time count, if all have a time and those agree.
    """
    found = np.zeros(votes.num_rows, dtype=np.int64)
    named = np.flatnonzero(pc.is_valid(votes["rater"]).to_numpy(zero_copy_only=False))
    if not len(named):
        return found
    own = votes.take(pa.array(named))
    first, second = codes([own["sample_id"], own["other_id"]])
    low, high = np.minimum(first, second), np.maximum(first, second)
    pair = pc.equal(own["kind"], "pair").to_numpy(zero_copy_only=False)
    verdict = own["verdict"].to_numpy(zero_copy_only=False)
    value = np.where(pair, first <= second, verdict).astype(np.int64)
    key = _combined([_code(own["kind"]), _code(own["rater"]), _code(own["impression"]), low, high])
    known = pc.is_valid(own["time"]).to_numpy(zero_copy_only=False)
    time = pc.fill_null(own["time"].cast(pa.int64()), 0).to_numpy()
    found[named] = _judge(key, value, time, known)
    return found


def _judge(key: Ints, value: Ints, time: Ints, known: Flags) -> Ints:
    """Fates of votes with these keys, values 0 or 1, and times; equal keys are one opinion."""
    order = np.lexsort((np.arange(len(key)), time, key))
    key, value, time, known = key[order], value[order], time[order], known[order]
    starts = np.flatnonzero(np.r_[True, key[1:] != key[:-1]])
    sizes = np.diff(np.r_[starts, len(key)])
    same = np.maximum.reduceat(value, starts) == np.minimum.reduceat(value, starts)
    last = time == np.repeat(np.maximum.reduceat(time, starts), sizes)
    final = np.maximum.reduceat(np.where(last, value, 0), starts)
    agreed = final == np.minimum.reduceat(np.where(last, value, 1), starts)
    clear = same | (np.logical_and.reduceat(known, starts) & agreed)
    standing = np.flatnonzero(np.repeat(same, sizes) | last)
    fate = np.full(len(key), FATES.index(REPEATED))
    fate[value != np.repeat(final, sizes)] = FATES.index(REVISED)
    fate[standing[np.r_[True, key[standing][1:] != key[standing][:-1]]]] = FATES.index(COUNTED)
    fate[~np.repeat(clear, sizes)] = FATES.index(CONTRADICTED)
    result = np.empty_like(fate)
    result[order] = fate
    return result


def tally(fate: Sequence[str]) -> dict[str, int]:
    """How many votes had each fate, those that none had left out."""
    count = Counter(fate)
    return {name: count[name] for name in FATES if count[name]}


def _combined(parts: Sequence[Ints]) -> Ints:
    """One number per row: the same where all parts are the same."""
    key = parts[0]
    for part in parts[1:]:
        key = np.unique(key * (int(part.max()) + 2) + part + 1, return_inverse=True)[1].astype(np.int64)
    return key


def _code(column: pa.ChunkedArray) -> Ints:
    return codes([column])[0]


def codes(columns: Sequence[pa.ChunkedArray]) -> list[Ints]:
    """Numbers for strings, the same string the same number in all columns; null is −1."""
    joined = pa.concat_arrays([chunk for column in columns for chunk in column.chunks])
    numbers = pc.fill_null(joined.dictionary_encode().indices, -1).to_numpy(zero_copy_only=False).astype(np.int64)
    return np.split(numbers, np.cumsum([len(column) for column in columns])[:-1])
