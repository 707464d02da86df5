"""A lineage as a tree for people, and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from typing import Any

from rich.text import Text
from rich.tree import Tree

from tdm_r1.config import RunConfig
from tdm_r1.console import printable
from tdm_r1.runtime.layout import all_tasks
from tdm_r1.runtime.lineage import Edge, Lineage, Node

SHORT = 12
"""Digits of a digest that are shown."""


def as_json(lineage: Lineage) -> dict[str, Any]:
    """The complete graph."""
    return {
        "root": lineage.root,
        "head": lineage.head,
        "sample": asdict(lineage.sample) if lineage.sample else None,
        "released": asdict(lineage.released) if lineage.released else None,
        "config_digest": lineage.config_digest,
        "weights": {"source": lineage.weights.source, "digest": lineage.weights.digest, "files": lineage.weights.files},
        "nodes": [_node(node) for node in lineage.nodes],
        "edges": [{**asdict(edge), "verified": edge.verified} for edge in lineage.edges],
        "faults": list(lineage.faults),
    }


def _node(node: Node) -> dict[str, Any]:
    origin = node.manifest.provenance
    return {
        "location": node.location,
        "kind": node.manifest.kind,
        "digest": node.digest,
        "rows": node.rows,
        "bytes": node.size,
        "seconds": origin.seconds,
        "code_version": origin.code_version,
        "image_digest": origin.image_digest,
        "config_digest": node.manifest.config_digest,
        "started": origin.started.isoformat(),
        "finished": origin.finished.isoformat(),
        "pruned": list(node.pruned),
    }


def as_tree(lineage: Lineage, config: RunConfig, *, full: bool) -> Tree:
    """The newest iteration first. Sound iterations between the first and the last are one line unless `full`."""
    tree = Tree(Text(f"{lineage.root}/{lineage.head}", "bold"))
    if lineage.sample is not None:
        tree.add(_sample(lineage))
    if lineage.released is not None:
        branch = tree.add(Text(printable(f"{lineage.released.kind} {lineage.released.path}")))
        for line in lineage.released.about:
            branch.add(Text(printable(line)))
    number = {task.location: task.iteration for task in all_tasks(config)}
    wrong = {edge.child for edge in lineage.edges if not edge.verified}
    chain: list[tuple[int, list[Node]]] = []
    by_iteration = sorted(lineage.nodes, key=lambda node: -number.get(node.location, 0))
    layers = [(n, list(nodes)) for n, nodes in groupby(by_iteration, lambda node: number.get(node.location, 0))]
    iterations = [n for n, _ in layers if n]
    for n, nodes in layers:
        sound = not any(node.location in wrong for node in nodes)
        if not full and sound and n and n not in (iterations[0], iterations[-1]):
            chain.append((n, nodes))
            continue
        _add_chain(tree, chain, lineage, full=full)
        _add_layer(tree, n, nodes, lineage, full=full)
    _add_origin(tree, lineage, config)
    return tree


def _sample(lineage: Lineage) -> Text:
    sample = lineage.sample
    assert sample is not None
    verdict = "not scored" if sample.reward is None else f"reward {sample.reward:.4g}, correct {sample.correct}"
    return Text(f"sample {sample.sample_id}: {verdict}, prompt {sample.prompt_id} {sample.text!r}")


def _add_chain(tree: Tree, chain: list[tuple[int, list[Node]]], lineage: Lineage, *, full: bool) -> None:
    """A chain of one iteration is shown as itself; the chain is empty afterwards."""
    if len(chain) == 1:
        _add_layer(tree, *chain[0], lineage, full=full)
    elif chain:
        nodes = [node for _, layer in chain for node in layer]
        size, seconds = sum(node.size for node in nodes), sum(node.manifest.provenance.seconds for node in nodes)
        pruned = sum(bool(node.pruned) for node in nodes)
        tree.add(
            Text(
                f"iterations {chain[0][0]}…{chain[-1][0]}: {len(chain)} iterations, {len(nodes)} records, "
                f"{size:,} bytes, {seconds:.1f} s, every parent verified" + (f", {pruned} pruned" if pruned else "")
            )
        )
    chain.clear()


def _add_layer(tree: Tree, number: int, nodes: Sequence[Node], lineage: Lineage, *, full: bool) -> None:
    branch = tree.add(Text(f"iteration {number}", "bold")) if number else tree
    for node in reversed(nodes):  # children above their parents
        own = [edge for edge in lineage.edges if edge.child == node.location]
        leaf = branch.add(_line(node, own))
        for edge in own:
            if full or not edge.verified:
                leaf.add(_edge(edge))


def _line(node: Node, edges: Sequence[Edge]) -> Text:
    origin = node.manifest.provenance
    rows = f"{node.rows:,} rows, " if node.rows else ""
    line = f"{node.location}  {node.digest[:SHORT]}  {rows}{node.size:,} bytes, {origin.seconds:.2f} s"
    if edges:
        line += f", {sum(edge.verified for edge in edges)} of {len(edges)} parents verified"
    return Text(line + (f", pruned: {', '.join(node.pruned)}" if node.pruned else ""))


def _edge(edge: Edge) -> Text:
    parent = printable(edge.parent)
    if edge.verified:
        return Text(f"from {parent}  {edge.digest[:SHORT]}", "dim")
    found = edge.found[:SHORT] if edge.found else "no manifest that can be read"
    return Text(f"from {parent}  {edge.digest[:SHORT]}, but there stands {found}", "bold red")


def _add_origin(tree: Tree, lineage: Lineage, config: RunConfig) -> None:
    weights = lineage.weights
    here = f"{len(weights.files)} files, as they are here now" if weights.files else "not on this machine"
    branch = tree.add(Text(f"base weights {weights.source}: {here}"))
    for name, digest in weights.files.items():
        branch.add(Text(f"{name}  {digest[:SHORT]}"))
    tree.add(Text(f"configuration {lineage.config_digest[:SHORT]}: {config.preset}, seed {config.seed}"))
    versions = sorted({node.manifest.provenance.code_version for node in lineage.nodes})
    tree.add(Text(f"code tdm-r1 {', '.join(versions)}"))
    if lineage.faults:
        branch = tree.add(Text(f"{len(lineage.faults)} faults", "bold red"))
        for fault in lineage.faults:
            branch.add(Text(printable(fault), "red"))
