"""Votes and the run: what may be judged, what is brought in files, and what was said so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tdm_r1.artifacts.records import Rollout
from tdm_r1.artifacts.repository import read_manifest
from tdm_r1.errors import ArtifactError, ConfigError, SchemaError
from tdm_r1.rewards.counted import FATES, UNDONE, fates, tally
from tdm_r1.rewards.preferences import cyclic, evidence, judged
from tdm_r1.rewards.votes import read_votes
from tdm_r1.runtime.ballots import Collected, bring, brought, collect, folder_of
from tdm_r1.runtime.layout import FEEDBACK, Task, check, shard_tasks
from tdm_r1.runtime.run import Run, open_run
from tdm_r1.runtime.variants import open_variant
from tdm_r1.stages.feedback import faults, samples_of


@dataclass(frozen=True)
class Election:
    """One iteration that people judge, for the run itself or for a variant."""

    run: Run
    iteration: int
    variant: str = ""

    @property
    def task(self) -> Task:
        return Task(FEEDBACK, self.iteration, 0, self.variant)

    @property
    def folder(self) -> str:
        return folder_of(self.iteration, self.variant)

    @property
    def rollouts(self) -> list[Task]:
        return shard_tasks("rollout", self.iteration, self.run.config)

    @property
    def arguments(self) -> str:
        """Of a command line, after the command."""
        variant = f" --variant {self.variant}" if self.variant else ""
        return f"--root {self.run.root} --iteration {self.iteration}{variant}"

    def require_open(self) -> None:
        """Refuse another vote once they are committed.

        Raises:
            ArtifactError: with the way to judge again.
        """
        if read_manifest(self.run.store, self.task.location) is not None:
            raise ArtifactError(
                f"the votes on iteration {self.iteration} are committed in `{self.run.root}/{self.task.location}`",
                hint="a record never changes: name a variant with `tdm-r1 variant` and judge for that",
            )

    def samples(self) -> pa.Table:
        """Everything that may be judged, with the hashes of the pixels."""
        return samples_of([self.run.load(task, Rollout)[0] for task in self.rollouts])

    def collected(self) -> Collected:
        """All votes so far."""
        return collect(
            self.run.store, self.variant, self.iteration, {self.run.manifest(task).digest for task in self.rollouts}
        )


def open_election(root: str, iteration: int | None, variant: str) -> Election:
    """An iteration that people may judge; by default the newest that is rolled out as a whole.

    Raises:
        ConfigError: when the reward asks no people, or nothing is rolled out.
    """
    run = open_variant(open_run(root), variant)
    if iteration is None:
        iteration = newest_rollout(run)
    election = Election(run, iteration, variant)
    check(election.task, run.config)
    for task in election.rollouts:
        run.manifest(task)  # raises when it was never committed
    return election


def newest_rollout(run: Run) -> int:
    """The last iteration of which every shard is rolled out.

    Raises:
        ConfigError: when there is none.
    """
    for number in range(run.config.iterations, 0, -1):
        if all(read_manifest(run.store, task.location) for task in shard_tasks("rollout", number, run.config)):
            return number
    raise ConfigError(
        f"`{run.root}` has no iteration that is rolled out", hint="run the stage `rollout`, or name --iteration"
    )


def import_votes(election: Election, path: Path, *, skip_unknown: bool = False) -> str:
    """Keep the votes of a file for an iteration; the same file again changes nothing.

    Args:
        skip_unknown: leave out votes on samples that this iteration does not have, instead of refusing the file.

    Returns:
        What was done, for people.

    Raises:
        SchemaError: for a file that is not as declared, or has votes that cannot be on these samples.
    """
    election.require_open()
    election.run.store.require_writable()
    file = read_votes(path)
    votes, samples = file.votes, election.samples()
    wrong = faults(votes, samples)
    kept = np.ones(votes.num_rows, dtype=np.bool_)
    for reason, rows in wrong.items():
        if len(rows) and not (skip_unknown and "unknown" in reason):
            raise SchemaError(_complaint(path, votes, reason, rows), hint=_UNKNOWN if "unknown" in reason else None)
        kept[rows] = False
    votes = votes.filter(pa.array(kept))
    if not votes.num_rows:
        raise SchemaError(
            f"`{path.name}` has no vote on iteration {election.iteration}: {file.blank} are blank,"
            f" {int((~kept).sum())} are on unknown samples"
        )
    name = bring(election.run.store, election.folder, votes)
    numbers = f"{votes.num_rows} votes ({file.kind}), {file.blank} blank, {int((~kept).sum())} on unknown samples"
    return f"{path.name}: {numbers}" + ("" if name else "; these votes were there already, so nothing was added")


_UNKNOWN = "is it another iteration's? `--skip-unknown` leaves these votes out and counts them"


def _complaint(path: Path, votes: pa.Table, reason: str, rows: npt.NDArray[np.int64]) -> str:
    first = votes.slice(int(rows[0]), 1).to_pylist()[0]
    names = ", ".join(f"{first[key]!r:.80}" for key in ("sample_id", "other_id") if first[key])
    return f"{len(rows)} of {votes.num_rows} votes of `{path.name}` {reason}; the first, vote {rows[0] + 1}: {names}"


def summary(election: Election) -> Mapping[str, int]:
    """What was said so far, in numbers; computed from the votes, not from the record."""
    collected = election.collected()
    votes, samples = collected.votes, election.samples()
    fate = np.full(votes.num_rows, FATES.index(UNDONE))
    fate[~collected.undone] = fates(votes.filter(pa.array(~collected.undone)))
    named = [FATES[number] for number in fate]
    said = evidence(votes.append_column("fate", pa.array(named, pa.string())), samples)
    groups = dict(zip(samples["group"].to_pylist(), samples["sample_id"].to_pylist(), strict=True))
    duels = {group: said[name]["duels"] for group, name in groups.items()}
    known = {group: judged([(w, lost, n) for w, lost, n in own]) for group, own in duels.items()}
    return {
        "votes": votes.num_rows,
        "files": sum(1 for _ in brought(election.run.store, election.folder)),
        "raters": len(set(votes["rater"].to_pylist()) - {None}),
        **tally(named),
        "samples": samples.num_rows,
        "judged": sum(len(own) for own in known.values()),
        "groups": len(groups),
        "groups with a choice": sum(len(own) > 1 for own in known.values()),
        "groups with a cycle": sum(cyclic([(w, lost, n) for w, lost, n in own]) for own in duels.values()),
    }
