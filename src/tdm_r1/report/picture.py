"""The picture of a run for a README: its curve, and the same prompts before and after reinforcement."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tdm_r1.report.figures import BLUE, GRAY, GREEN, RED, STYLE, draw_accuracy, new_figure
from tdm_r1.report.history import Drawn, History

WIDTH, DPI = 12.0, 200
"""Inches and dots per inch: 2400 pixels, made to be shown at 1200."""
COLUMNS, BANDS = 6, 2
"""Prompts side by side, and how many rows of prompts."""
SIDE, GAP, CAPTION, LEFT, TOP = 1.13, 0.06, 0.62, 4.75, 0.62
"""Inches: of a sample, between samples, of a caption's three lines, where the grid begins, above it."""
MODELS = ("tdm", "tdm-r1")


def bands(tags: Sequence[str], drawn: Sequence[Drawn]) -> list[list[Drawn]]:
    """Rows of prompts: the next prompts of every tag stand in each, as many as there is room for all tags."""
    by_tag = {tag: [one for one in drawn if one.tag == tag] for tag in tags}
    own = max(1, COLUMNS // max(1, len(by_tag)))
    slices = [slice(n * own, (n + 1) * own) for n in range(BANDS)]
    found = [[one for rows in by_tag.values() for one in rows[part]][:COLUMNS] for part in slices]
    return [row for row in found if row]


def save_picture(history: History, path: Path) -> None:
    """Write the PNG: left the curve of held-out accuracy, right the samples, framed green or red."""
    from matplotlib import rc_context

    models = [model for model in MODELS if model in history.models]
    rows = bands(history.tags, history.drawn)
    band = len(models) * (SIDE + GAP) + CAPTION
    height = max(3.0, TOP + len(rows) * band + 0.05)
    with rc_context(dict(STYLE)):
        figure = new_figure(WIDTH, height)
        axes = figure.add_axes((0.5 / WIDTH, 0.55 / height, (LEFT - 1.15) / WIDTH, 1 - (TOP + 0.55) / height))
        draw_accuracy(axes, history)
        figure.text(0.1 / WIDTH, 1 - 0.16 / height, _headline(history), fontsize=13, fontweight="bold", va="top")
        note = f"accuracy on {history.prompts}, band: 95% bootstrap"
        figure.text(0.1 / WIDTH, 1 - 0.40 / height, note, fontsize=9, color=GRAY, va="top")
        _legend(figure, height)
        for number, drawn in enumerate(rows):
            _draw_band(figure, history, drawn, models, top=height - TOP - number * band, height=height)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})


def _headline(history: History) -> str:
    values = [f"{history.cell(model)['value']:.2f}" for model in MODELS if model in history.models]
    return f"{' → '.join(values)} with {history.cell('tdm')['nfe']} network evaluations"


def _legend(figure: Any, height: float) -> None:
    parts = (("same prompts, same noise, none chosen;", GRAY), ("green: correct,", GREEN), ("red: wrong", RED))
    left = LEFT / WIDTH
    for (text, color), step in zip(parts, (0.0, 2.62, 3.62), strict=True):
        figure.text(left + step / WIDTH, 1 - 0.40 / height, text, fontsize=9, color=color, va="top")


def _draw_band(
    figure: Any, history: History, row: list[Drawn], models: list[str], *, top: float, height: float
) -> None:
    """One row of prompts, a line of samples per model, captions below."""
    for line, model in enumerate(models):
        bottom = top - (line + 1) * (SIDE + GAP) + GAP
        color = BLUE if model == "tdm-r1" else GRAY
        middle, weight = (bottom + SIDE / 2) / height, "bold" if model == "tdm-r1" else "normal"
        figure.text(
            (LEFT - 0.1) / WIDTH, middle, history.label(model), rotation=90, ha="right", va="center", color=color,
            fontsize=9, fontweight=weight,
        )  # fmt: skip
        for column, drawn in enumerate(row):
            _draw_sample(figure, drawn, model, LEFT + column * (SIDE + GAP), bottom, height)
    caption = top - len(models) * (SIDE + GAP)
    for column, drawn in enumerate(row):
        text = "\n".join(textwrap.wrap(drawn.text, 17)[:3])
        x = (LEFT + column * (SIDE + GAP) + SIDE / 2) / WIDTH
        figure.text(x, caption / height, text, ha="center", va="top", fontsize=8.5, linespacing=1.15)


def _draw_sample(figure: Any, drawn: Drawn, model: str, left: float, bottom: float, height: float) -> None:
    picture = drawn.pictures[model]
    axes = figure.add_axes((left / WIDTH, bottom / height, SIDE / WIDTH, SIDE / height))
    axes.imshow(picture.image.numpy(), interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set(visible=True, color=GREEN if picture.correct else RED, linewidth=2.6)
