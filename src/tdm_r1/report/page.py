"""A self-contained HTML page of one evaluation: the table and a grid of samples per tag."""

from __future__ import annotations

import base64
import io
from typing import Any

import pyarrow as pa
from jinja2 import Environment
from PIL import Image
from torch import Tensor

PER_TAG = 6
"""Samples shown per row and tag."""

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:1100px;padding:0 1rem;color:#1b1f24}
table{border-collapse:collapse;margin:1rem 0}td,th{padding:.3rem .7rem;border-bottom:1px solid #d0d7de;text-align:right}
td:first-child,th:first-child{text-align:left}small{color:#57606a}
figure{display:inline-block;margin:.3rem;width:104px;vertical-align:top}figcaption{font-size:11px;line-height:1.25}
img{width:96px;height:96px;image-rendering:pixelated;border:3px solid #cf222e}img.good{border-color:#1a7f37}
"""

_PAGE = Environment(autoescape=True).from_string(
    """<!doctype html><html lang="en"><meta charset="utf-8"><title>{{ title }}</title><style>{{ style }}</style>
<h1>{{ title }}</h1>
<table><tr><th>row</th><th>NFE</th>{% for tag in tags %}<th>{{ tag }}</th>{% endfor %}</tr>
{% for row in rows %}<tr><td>{{ row.name }}</td><td>{{ row.nfe }}</td>{% for tag in tags %}{% set c = row.cells[tag] %}
<td>{{ "%.3f"|format(c.value) }}<br><small>{{ "%.3f"|format(c.low) }}–{{ "%.3f"|format(c.high) }}</small></td>
{% endfor %}</tr>{% endfor %}</table>
<p><small>Share of correct images; intervals are 95% bootstrap; overall is the unweighted mean of the tags.</small></p>
{% for row in rows %}<h2>{{ row.name }}</h2>{% for s in row.samples %}<figure>
<img class="{{ 'good' if s.correct else 'bad' }}" alt="{{ s.text }}" src="data:image/png;base64,{{ s.png }}">
<figcaption>{{ s.text }}</figcaption></figure>{% endfor %}{% endfor %}</html>
"""
)


def png(image: Tensor) -> bytes:
    """[height, width, 3] uint8 to PNG bytes."""
    buffer = io.BytesIO()
    Image.fromarray(image.numpy()).save(buffer, format="PNG")
    return buffer.getvalue()


def _pick(samples: list[dict[str, Any]], name: str) -> list[tuple[int, dict[str, Any]]]:
    """The first few samples of each tag of one row."""
    taken: dict[str, int] = {}
    picked = []
    for position, sample in enumerate(samples):
        if sample["name"] == name and taken.setdefault(sample["tag"], 0) < PER_TAG:
            taken[sample["tag"]] += 1
            picked.append((position, sample))
    return picked


def evaluation_page(metrics: pa.Table, samples: pa.Table, images: Tensor, *, title: str) -> str:
    """Render the page.

    Args:
        images: [S, height, width, 3] uint8, in the order of `samples`.
    """
    cells, drawn = metrics.to_pylist(), samples.to_pylist()
    names = list(dict.fromkeys(cell["name"] for cell in cells))
    rows = [
        {
            "name": name,
            "nfe": next(cell["nfe"] for cell in cells if cell["name"] == name),
            "cells": {cell["tag"]: cell for cell in cells if cell["name"] == name},
            "samples": [
                {**sample, "png": base64.b64encode(png(images[position])).decode()}
                for position, sample in _pick(drawn, name)
            ],
        }
        for name in names
    ]
    tags = list(dict.fromkeys(cell["tag"] for cell in cells))
    return _PAGE.render(title=title, style=_STYLE, rows=rows, tags=tags)
