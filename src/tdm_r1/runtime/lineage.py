"""From a generator or a sample back to everything it was made of: a graph of records, every digest compared."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import pyarrow.compute as pc

from tdm_r1.artifacts.manifest import Manifest, sha256_of
from tdm_r1.artifacts.records import PromptSet, Rewards, Rollout
from tdm_r1.artifacts.repository import load, load_table, read_manifest
from tdm_r1.artifacts.seal import canonical_json
from tdm_r1.artifacts.tombstone import read_tombstone
from tdm_r1.errors import ArtifactError, ConfigError
from tdm_r1.models.sources import source_folder
from tdm_r1.rewards.aggregate import aggregate
from tdm_r1.runtime.archive import Archive, newest_generator
from tdm_r1.runtime.layout import RUN_FILE, Task, check, generator_after, shard_tasks
from tdm_r1.runtime.run_file import digest_of, stored_values


@dataclass(frozen=True)
class Node:
    """One committed record."""

    location: str
    manifest: Manifest
    digest: str
    pruned: tuple[str, ...]
    """Files that a tombstone names."""

    @property
    def rows(self) -> int:
        """Of the largest table."""
        return max((entry.rows or 0 for entry in self.manifest.files.values()), default=0)

    @property
    def size(self) -> int:
        """Bytes, as committed."""
        return sum(entry.size for entry in self.manifest.files.values())


@dataclass(frozen=True)
class Edge:
    """A parent that a manifest names."""

    child: str
    parent: str
    digest: str
    """As the child's manifest has it."""
    found: str | None
    """Of the manifest that stands at the parent; None when there is none, or none that can be read."""

    @property
    def verified(self) -> bool:
        return self.digest == self.found


@dataclass(frozen=True)
class Weights:
    """The base as it lies on this machine now. No manifest names its digest, so nothing is compared."""

    source: str
    files: dict[str, str]
    """SHA-256 of each safetensors file by its path; empty when the base is not here."""

    @property
    def digest(self) -> str | None:
        """Of all files together; None when there is none."""
        return hashlib.sha256(canonical_json(self.files)).hexdigest() if self.files else None


@dataclass(frozen=True)
class Sample:
    """One trajectory of a rollout."""

    sample_id: str
    location: str
    """Of its verdict, or of its rollout when it was not scored."""
    prompt_id: str
    text: str
    group: int
    reward: float | None
    correct: bool | None
    error: str | None


@dataclass(frozen=True)
class Released:
    """A file that left a run, and what it says of itself."""

    path: str
    kind: Literal["image", "lora"]
    root: str | None
    """Of its run, where it says so."""
    iteration: int | None
    record: str | None
    """Digest of the generator's manifest."""
    config: str | None
    """Digest of the configuration."""
    about: tuple[str, ...]
    """Lines for people: prompts and seed, or tensors."""
    faults: tuple[str, ...] = ()
    """Where its content is not what it says."""


@dataclass(frozen=True)
class Lineage:
    """All ancestors of one record, the record itself included."""

    root: str
    head: str
    sample: Sample | None
    config_digest: str
    """Of run.json as it is now."""
    nodes: tuple[Node, ...]
    """Every parent before its children; the head is last."""
    edges: tuple[Edge, ...]
    weights: Weights
    faults: tuple[str, ...]
    """What is not as a manifest says, for people."""
    released: Released | None = None
    """The file that the question was about, if it was one."""


def trace(run: Archive, *, iteration: int | None = None, sample_id: str | None = None) -> Lineage:
    """Follow the manifests from a record to the prompts and the base.

    Args:
        iteration: whose generator, None for the newest; with `sample_id` the only iteration to look at.
        sample_id: of a rollout's sample, instead of a generator.

    Raises:
        ConfigError: for an iteration or a sample that the run does not have.
        MissingParentError: when the generator was never committed.
    """
    if iteration is not None:
        check(Task("evaluation", iteration), run.config)
    sample = None if sample_id is None else find_sample(run, sample_id, iteration)
    if sample is not None:
        head = sample.location
    else:
        task = generator_after(newest_generator(run) if iteration is None else iteration)
        run.manifest(task)  # raises when there is none
        head = task.location
    nodes, problems = ancestors(run, head)
    edges = tuple(
        Edge(node.location, parent, digest, nodes[parent].digest if parent in nodes else None)
        for node in nodes.values()
        for parent, digest in sorted(node.manifest.parents.items())
    )
    config_digest = digest_of_run_file(run)
    faults = (*problems, *_wrong_edges(edges), *_wrong_configurations(config_digest, nodes))
    return Lineage(run.root, head, sample, config_digest, tuple(nodes.values()), edges, base_weights(run), faults)


def digest_of_run_file(run: Archive) -> str:
    """SHA-256 of run.json's content as it stands there: a later version's new knobs are not in it."""
    return digest_of(stored_values(run.store.read_bytes(RUN_FILE)))


def ancestors(run: Archive, head: str) -> tuple[dict[str, Node], list[str]]:
    """All records that `head` was made from, parents first, and what could not be read.

    A stack instead of recursion: a chain of iterations is as long as the run.
    """
    seen: dict[str, Node | None] = {}
    ordered: dict[str, Node] = {}
    problems: list[str] = []
    stack = [(head, False)]
    while stack:
        location, done = stack.pop()
        node = seen.get(location)
        if done and node is not None:
            ordered[location] = node
        if done or location in seen:
            continue
        node = seen[location] = _read(run, location, problems)
        if node is not None:
            stack.append((location, True))
            stack += [(parent, False) for parent in sorted(node.manifest.parents, reverse=True)]
    return ordered, problems


def _read(run: Archive, location: str, problems: list[str]) -> Node | None:
    try:
        manifest = read_manifest(run.store, location)
        stone = read_tombstone(run.store, location)
    except ArtifactError as error:
        problems.append(error.message)
        return None
    if manifest is None:
        return None
    return Node(location, manifest, manifest.digest, tuple(sorted(stone.files)) if stone else ())


def _wrong_edges(edges: tuple[Edge, ...]) -> Iterator[str]:
    for edge in edges:
        if not edge.verified:
            stands = f"what stands there is {edge.found}" if edge.found else "no manifest can be read there"
            yield f"{edge.child} was made from {edge.parent} with digest {edge.digest}, but {stands}"


def _wrong_configurations(expected: str, nodes: dict[str, Node]) -> Iterator[str]:
    for node in nodes.values():
        if node.manifest.config_digest != expected:
            yield (
                f"{node.location} was made with configuration {node.manifest.config_digest}, "
                f"but run.json hashes to {expected}"
            )


def base_weights(run: Archive) -> Weights:
    """Hash the safetensors of the pipeline that the run starts from, where it is here."""
    try:
        folder = source_folder(run.config.model, fetch=False)
    except ConfigError:
        return Weights(run.config.model.source, {})
    files = sorted(folder.rglob("*.safetensors"))
    return Weights(run.config.model.source, {file.relative_to(folder).as_posix(): sha256_of(file) for file in files})


def find_sample(run: Archive, sample_id: str, iteration: int | None) -> Sample:
    """The sample with this ID, from its verdict where it was scored, verified when it is read.

    Raises:
        ConfigError: when no committed record holds it.
    """
    iterations = range(1, run.config.iterations + 1) if iteration is None else [iteration]
    for number in iterations:
        for rolled in shard_tasks("rollout", number, run.config):
            if (found := _look(run, rolled, sample_id)) is not None:
                return found
    where = "this run" if iteration is None else f"iteration {iteration}"
    raise ConfigError(
        f"no committed rollout of {where} holds sample `{sample_id}`",
        hint=f"list them with `tdm-r1 query --root {run.root} 'SELECT sample_id FROM rewards'`",
    )


def _look(run: Archive, rolled: Task, sample_id: str) -> Sample | None:
    scored = Task("reward_scoring", rolled.iteration, rolled.shard)
    if read_manifest(run.store, scored.location) is not None:
        task, table = scored, aggregate(load(run.store, scored.location, Rewards)[0], run.config.reward)
    elif read_manifest(run.store, rolled.location) is not None:
        task, table = rolled, load_table(run.store, rolled.location, Rollout, "index")[0]
    else:
        return None
    for row in table.filter(pc.equal(table["sample_id"], sample_id)).to_pylist():
        prompts, _ = load_table(run.store, Task("encode_prompts").location, PromptSet, "prompts")
        (text,) = prompts.filter(pc.equal(prompts["prompt_id"], row["prompt_id"]))["text"].to_pylist()
        verdict = {name: row.get(name) for name in ("reward", "correct", "error")}
        return Sample(sample_id, task.location, row["prompt_id"], text, row["group"], **verdict)
    return None
