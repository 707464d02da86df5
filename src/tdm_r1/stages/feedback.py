"""Stage `feedback`: what people said of an iteration's samples, all of it, and what of it counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tdm_r1.artifacts.picture import picture_digest
from tdm_r1.artifacts.records import Feedback, Rollout
from tdm_r1.errors import SchemaError
from tdm_r1.rewards.counted import COUNTED, FATES, UNDONE, codes, fates


def feedback(rollouts: Sequence[Rollout], votes: pa.Table, undone: npt.NDArray[np.bool_]) -> Feedback:
    """The votes with their fates, and the samples with the hashes of their pixels.

    Args:
        votes: with the columns of `VOTES`, in any order that is the same for the same votes.
        undone: [V] those that their rater took back.

    Raises:
        SchemaError: for a vote on what is no sample of these rollouts, or when no vote counts.
    """
    samples = samples_of(rollouts)
    for reason, rows in faults(votes, samples).items():
        if len(rows):
            first = votes.slice(int(rows[0]), 1).to_pylist()[0]
            raise SchemaError(f"{len(rows)} votes {reason}; the first is on {first['sample_id']!r:.80}", hint=_HINT)
    found = np.full(votes.num_rows, FATES.index(UNDONE))
    found[~undone] = fates(votes.filter(pa.array(~undone)))
    fate = pa.array(np.array(FATES, dtype=object)[found], pa.string())
    if not pc.any(pc.equal(fate, COUNTED)).as_py():
        raise SchemaError(f"none of {votes.num_rows} votes counts", hint="judge some groups, or import a file of votes")
    return Feedback(votes=votes.append_column("fate", fate), samples=samples)


_HINT = "nothing is lost: `tdm-r1 feedback show` tells which file or rater it was"


def samples_of(rollouts: Sequence[Rollout]) -> pa.Table:
    """Every sample of an iteration with the SHA-256 of its pixels."""
    index = pa.concat_tables([rollout.index for rollout in rollouts])
    pictures = [picture_digest(image) for rollout in rollouts for image in rollout.images.numpy()]
    return index.append_column("picture", pa.array(pictures, pa.string())).combine_chunks()


def faults(votes: pa.Table, samples: pa.Table) -> Mapping[str, npt.NDArray[np.int64]]:
    """Rows of the votes that cannot be on these samples, by what is wrong with them."""
    known, one, other = codes([samples["sample_id"], votes["sample_id"], votes["other_id"]])
    strange = (one >= len(known)) | (other >= len(known))
    paired = (other >= 0) & ~strange
    group = np.asarray(samples["group"].to_numpy(), dtype=np.int64)
    pictures, seen = codes([samples["picture"], votes["picture"]])
    left, right = np.where(strange, 0, one), np.where(paired, other, 0)
    wrong = {
        "name an unknown sample": strange,
        "set a sample against itself": paired & (one == other),
        "set samples of two groups against each other": paired & (group[left] != group[right]),
        "are on other pixels": ~strange & (seen >= 0) & (pictures[left] != seen),
    }
    return {reason: np.flatnonzero(rows) for reason, rows in wrong.items()}
