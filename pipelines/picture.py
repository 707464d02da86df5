"""A picture of a compiled pipeline: containers as boxes, DAGs as frames around what they hold, loops marked as such."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import drawsvg
import networkx as nx

Node = Mapping[str, Any]

BOX: Final = (150, 30)
GAP: Final = (28, 14)
PAD: Final = 12
TITLE: Final = 20
FOLDED: Final = 2
"""So many iterations of an unrolled block are drawn; the others look the same."""
COLOURS: Final = {"container": "#dbeafe", "dag": "#ffffff", "more": "#f1f5f9"}


@dataclass(frozen=True)
class Block:
    """A rectangle with a title; a frame has others inside, each at its place."""

    title: str
    width: float
    height: float
    kind: str
    inside: tuple[tuple[float, float, "Block"], ...] = ()
    arrows: tuple[tuple[int, int], ...] = ()
    """Pairs of positions in `inside`, from the task that is waited for."""


def picture(ir: Node) -> str:
    """Return SVG. The same pipeline gives the same bytes."""
    title = str(ir["pipelineInfo"]["name"])
    block = _frame(title, ir["root"], ir)
    drawing = drawsvg.Drawing(block.width + 2, block.height + 2, id_prefix="d")
    head = drawsvg.Marker(-0.1, -0.5, 0.9, 0.5, scale=6, orient="auto")
    head.append(drawsvg.Lines(-0.1, 0.5, -0.1, -0.5, 0.9, 0, fill="#475569", close=True))
    _draw(drawing, head, block, 1, 1)
    return str(drawing.as_svg()) + "\n"


def _frame(title: str, component: Node, ir: Node) -> Block:
    """Lay tasks out from left to right: each column waits for those before it."""
    tasks = _folded(component["dag"]["tasks"])
    graph: nx.DiGraph[str] = nx.DiGraph()
    graph.add_nodes_from(sorted(tasks))
    waits = ((up, name) for name, task in tasks.items() for up in task.get("dependentTasks", []))
    graph.add_edges_from((up, name) for up, name in waits if up in tasks)
    graph = nx.transitive_reduction(graph)
    columns = [sorted(generation) for generation in nx.topological_generations(graph)]
    placed: dict[str, tuple[float, float, Block]] = {}
    x, tallest = float(PAD), 0.0
    for column in columns:
        y, widest = float(TITLE + PAD), 0.0
        for name in column:
            block = _block(name, tasks[name], ir)
            placed[name] = (x, y, block)
            y, widest = y + block.height + GAP[1], max(widest, block.width)
        x, tallest = x + widest + GAP[0], max(tallest, y)
    order = list(placed)
    arrows = tuple(sorted((order.index(a), order.index(b)) for a, b in graph.edges))
    return Block(title, x - GAP[0] + PAD, tallest - GAP[1] + PAD, "dag", tuple(placed.values()), arrows)


def _folded(tasks: Node) -> dict[str, Any]:
    """The tasks, of many guarded iterations only the first, and one for the rest."""
    numbered = [name for name in tasks if name.startswith("tdm-r1-guarded-iteration")]
    dropped = sorted(numbered, key=lambda name: (len(name), name))[FOLDED - 1 :] if len(numbered) > FOLDED else []
    kept = {name: task for name, task in tasks.items() if name not in dropped}
    if dropped:
        first = tasks[dropped[0]]
        more = f"{len(dropped)} more iterations"
        kept[more] = {"dependentTasks": first.get("dependentTasks", []), "componentRef": {"name": ""}, "more": True}
    return kept


def _block(name: str, task: Node, ir: Node) -> Block:
    if "more" in task:
        return Block(f"… {name}", *BOX, "more")
    component = ir["components"][task["componentRef"]["name"]]
    shown = str(task.get("taskInfo", {}).get("name", name))
    if "dag" not in component:
        return Block(shown, *BOX, "container")
    return _frame(shown + _mark(task), component, ir)


def _mark(task: Node) -> str:
    """How often a frame runs."""
    if "parameterIterator" in task:
        limit = task.get("iteratorPolicy", {}).get("parallelismLimit")
        return " – for each, one at a time" if limit == 1 else f" – for each, {limit} at once"
    return " – one of these" if "condition-branches" in task["componentRef"]["name"] else ""


def _draw(drawing: Any, head: Any, block: Block, x: float, y: float) -> None:
    corner = 3 if block.kind == "container" else 6
    drawing.append(
        drawsvg.Rectangle(
            x, y, block.width, block.height, rx=corner, fill=COLOURS[block.kind], stroke="#475569", stroke_width=1
        )
    )
    middle = block.kind != "dag"
    place = (x + block.width / 2, y + block.height / 2) if middle else (x + PAD, y + TITLE * 0.75)
    style = {"text_anchor": "middle", "dominant_baseline": "middle"} if middle else {"font_style": "italic"}
    drawing.append(drawsvg.Text(block.title, 12, *place, font_family="sans-serif", fill="#0f172a", **style))
    for left, top, inner in block.inside:
        _draw(drawing, head, inner, x + left, y + top)
    for start, end in block.arrows:
        (ax, ay, a), (bx, by, b) = block.inside[start], block.inside[end]
        heights = (y + ay + min(a.height, b.height) / 2, y + by + min(a.height, b.height) / 2)
        drawing.append(
            drawsvg.Line(
                x + ax + a.width, heights[0], x + bx - 5, heights[1], stroke="#475569", stroke_width=1, marker_end=head
            )
        )
