"""Curves of a run as SVG, drawn without pyplot's global state; equal input, equal bytes."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Literal

from tdm_r1.report.history import History

BLUE, ORANGE, GREEN, RED, GRAY = "#0969da", "#bc4c00", "#1a7f37", "#cf222e", "#57606a"
STYLE: Final[Mapping[str, Any]] = MappingProxyType(
    {
        "font.family": "DejaVu Sans",
        "font.size": 9.5,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": "#eaeef2",
        "axes.edgecolor": "#8c959f",
        "axes.titlesize": 10.5,
        "axes.titlelocation": "left",
        "axes.titleweight": "bold",
        "axes.axisbelow": True,
        "svg.fonttype": "none",
        "svg.hashsalt": "tdm-r1",
    }
)


@dataclass(frozen=True)
class Panel:
    """One plot of the method's health."""

    title: str
    names: tuple[str, ...]
    level: float | None = None
    """A dashed line to compare with."""
    share: bool = False
    """Values are in 0..1."""
    log: bool = False


PANELS: Final = (
    Panel(
        "Pairs that the surrogate orders rightly", ("surrogate/pair_accuracy", "surrogate/held_out_accuracy"), 0.5, True
    ),
    Panel("Surrogate's drift from the base", ("surrogate/drift",)),
    Panel("Samples closed by a gate", ("surrogate/clipped_fraction", "surrogate/drifted_fraction"), share=True),
    Panel("Groups whose rewards are all alike", ("advantage/zero_variance_groups",), share=True),
    Panel(
        "Gradient norms before clipping",
        ("surrogate/gradient_norm", "generator/gradient_norm", "fake/gradient_norm"),
        log=True,
    ),
    Panel("Terms of the generator's loss", ("generator/kl", "generator/cfg", "generator/reward"), log=True),
)


def new_figure(width: float, height: float) -> Any:
    """A figure of its own, in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height))


def svg(figure: Any) -> str:
    """The figure's `<svg>` element, without date and without the ids that nothing refers to."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    return re.sub(r' id="[a-zA-Z0-9]+_[\d_]+"', "", text[text.index("<svg") :])


def draw_accuracy(axes: Any, history: History) -> None:
    """Held-out accuracy with its interval against the iteration; what the run started from as level lines."""
    points = history.measured
    iterations = [point.iteration for point in points]
    low, high = [point.low for point in points], [point.high for point in points]
    axes.fill_between(iterations, low, high, color=BLUE, alpha=0.18, linewidth=0)
    axes.plot(iterations, [point.value for point in points], color=BLUE, marker="o", markersize=3.5, linewidth=1.8)
    for model, color in (("tdm", ORANGE), *((m, GRAY) for m in history.models if m.startswith("teacher"))):
        if model in history.models:
            value = history.cell(model)["value"]
            axes.axhline(value, color=color, linewidth=1.1, linestyle=(0, (4, 3)))
            _label_line(axes, history.label(model), value, color, free_end(value, [point.value for point in points]))
    axes.set_ylim(0, 1)
    axes.set_xlim(0, max(1, history.iterations))
    axes.set_xlabel("iteration")
    axes.xaxis.get_major_locator().set_params(integer=True)


def free_end(level: float, curve: Sequence[float]) -> Literal["left", "right"]:
    """At which end of a level line a curve leaves more room for a name; right where both leave the same."""
    return "left" if curve and abs(curve[0] - level) > abs(curve[-1] - level) else "right"


def _label_line(axes: Any, text: str, value: float, color: str, end: Literal["left", "right"]) -> None:
    """Name a level line at one end, legible over whatever crosses it."""
    from matplotlib.patheffects import withStroke

    x, aside = (0, 4) if end == "left" else (1, -4)
    place = {"xycoords": ("axes fraction", "data"), "xytext": (aside, 3), "textcoords": "offset points"}
    halo = [withStroke(linewidth=3, foreground="white")]
    axes.annotate(text, (x, value), **place, ha=end, color=color, fontsize=8.5, path_effects=halo)


def progress_svg(history: History) -> str:
    """Held-out accuracy, and beside it what training earned."""
    from matplotlib import rc_context

    with rc_context(dict(STYLE)):
        figure = new_figure(10.5, 4.8)
        left, right = figure.subplots(1, 2)
        draw_accuracy(left, history)
        left.set_title(f"Accuracy on {history.prompts}, 95% interval")
        steps = [point.iteration for point in history.trained]
        right.plot(steps, [point.reward for point in history.trained], color=BLUE, linewidth=1.5, label="mean reward")
        correct = [point.correct for point in history.trained]
        right.plot(steps, correct, color=GREEN, linewidth=1.5, label="share correct")
        right.set_title("Rollouts on training prompts")
        right.set_xlabel("iteration")
        right.xaxis.get_major_locator().set_params(integer=True)
        if steps:
            right.legend(frameon=False, loc="best")
        figure.tight_layout()
        return svg(figure)


def health_svg(history: History) -> str:
    """The method's vital signs, one value per iteration."""
    from matplotlib import rc_context

    with rc_context(dict(STYLE)):
        figure = new_figure(10.5, 6.0)
        for axes, panel in zip(figure.subplots(2, 3).flat, PANELS, strict=True):
            _draw_panel(axes, panel, history)
        figure.tight_layout()
        return svg(figure)


def short_name(name: str, beside: Sequence[str]) -> str:
    """Of `role/metric` the part that tells it from those beside it."""
    role, _, metric = name.partition("/")
    alike = len({other.partition("/")[2] for other in beside}) == 1
    return role if alike else metric.replace("_", " ").removesuffix(" fraction")


def _draw_panel(axes: Any, panel: Panel, history: History) -> None:
    axes.set_title(panel.title, fontsize=9)
    drawn = [(name, history.health[name]) for name in panel.names if history.health.get(name)]
    names = [name for name, _ in drawn]
    for (name, series), color in zip(drawn, (BLUE, ORANGE, GREEN), strict=False):
        x, y = zip(*series, strict=True)
        axes.plot(x, y, color=color, linewidth=1.3, marker="." if len(x) < 12 else "", label=short_name(name, names))
    if panel.level is not None:
        axes.axhline(panel.level, color=GRAY, linewidth=1, linestyle=(0, (4, 3)))
    if panel.share:
        axes.set_ylim(-0.02, 1.02)
    if panel.log and any(value > 0 for _, series in drawn for _, value in series):
        axes.set_yscale("log")
        axes.margins(y=0.3)  # room for the legend
    if len(drawn) > 1:
        axes.legend(frameon=False, fontsize=8, loc="upper right", ncols=3, columnspacing=1, handlelength=1.2)
    if not drawn:
        axes.text(0.5, 0.5, "not recorded", transform=axes.transAxes, ha="center", va="center", color=GRAY)
    axes.xaxis.get_major_locator().set_params(integer=True)
