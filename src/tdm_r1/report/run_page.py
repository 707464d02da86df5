"""A self-contained HTML page of a whole run: result, curves, health and samples side by side."""

from __future__ import annotations

import base64

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from tdm_r1.report.figures import health_svg, progress_svg
from tdm_r1.report.history import OVERALL, History, title
from tdm_r1.report.page import png

_STYLE = """
:root{color-scheme:light}body{font:15px/1.55 system-ui,"Segoe UI","DejaVu Sans",sans-serif;margin:2rem auto;
max-width:1100px;padding:0 1rem;color:#1b1f24;background:#fff}h1{font-size:1.6rem;margin-bottom:.2rem}
h2{font-size:1.15rem;margin:2.2rem 0 .4rem}table{border-collapse:collapse;margin:.8rem 0}
.scroll{overflow-x:auto}td,th{padding:.3rem .7rem;border-bottom:1px solid #d0d7de;text-align:right;white-space:nowrap}
td:first-child,th:first-child{text-align:left}tr.ours td{background:#f0f6ff;font-weight:600}
small,.note{color:#57606a;font-weight:400}svg{width:100%;height:auto}h3{font-size:.95rem;margin:1.2rem 0 .2rem}
.pairs{display:flex;flex-wrap:wrap;gap:1rem 1.3rem}figure{margin:0}figcaption{font-size:12px;line-height:1.3;
margin-bottom:.25rem}.row{display:flex;gap:.3rem}.row div{font-size:11px;color:#57606a;text-align:center}
img{display:block;width:72px;height:72px;object-fit:contain;image-rendering:pixelated;border:3px solid #cf222e}
img.good{border-color:#1a7f37}
"""

_PAGE = Environment(autoescape=True, undefined=StrictUndefined).from_string(
    """<!doctype html><html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1"><title>{{ title }}</title>
<style>{{ style }}</style></head><body>
<h1>{{ title }}</h1>
<p class="note">Suite {{ h.suite }}, {{ count }} {{ h.prompts }} per row,
seed {{ h.seed }}, evaluated up to iteration {{ h.iterations }}.</p>
<div class="scroll"><table><tr><th>model</th><th>NFE</th><th>overall</th>
{% for tag in h.tags %}<th>{{ tag }}</th>{% endfor %}</tr>
{% for model in h.models %}<tr{% if model == "tdm-r1" %} class="ours"{% endif %}><td>{{ model }}</td>
<td>{{ h.cell(model).nfe }}</td>{% for tag in ["overall"] + h.tags|list %}{% set c = h.cell(model, tag) %}
<td>{{ "%.3f"|format(c.value) }}<br><small>{{ "%.3f"|format(c.low) }}–{{ "%.3f"|format(c.high) }}</small></td>
{% endfor %}</tr>{% endfor %}</table></div>
{% for remark in h.remarks %}<p>{{ remark }}</p>
{% endfor %}
<p class="note">Share of correct images with 95% bootstrap intervals over prompts; overall is the unweighted mean of the
tags. NFE counts network evaluations per image; guidance costs two per step. The intervals say nothing about other
training seeds.</p>
<h2>Progress</h2>
{{ progress }}
<p class="note">Dashed lines: what the run started from. The rollouts of iteration n are drawn by the generator that
iteration n−1 left, without averaging.</p>
<h2>Health of the method</h2>{{ health }}
<p class="note">Means over the optimizer steps of each iteration. A surrogate that orders half of the pairs rightly has
learned nothing; gates near 1 mean that it no longer learns.</p>
<h2>Same prompts, same noise</h2>
<p class="note">The first prompts of each tag, none chosen; network evaluations as in the table above.
Green frame: correct, red: wrong.</p>
{% for tag in h.tags %}<h3>{{ tag }}</h3><div class="pairs">
{% for d in h.drawn if d.tag == tag %}<figure><figcaption>{{ d.text }}</figcaption><div class="row">
{% for model, p in d.pictures.items() %}<div><img class="{{ 'good' if p.correct else 'bad' }}"
alt="{{ model }}: {{ d.text }}, {{ 'correct' if p.correct else 'wrong' }}"
src="data:image/png;base64,{{ encode(p.image) }}">
{{ label(model) }}</div>{% endfor %}
</div></figure>{% endfor %}</div>{% endfor %}
</body></html>
"""
)


def run_page(history: History) -> str:
    """Render the page; equal history, equal bytes."""
    return _PAGE.render(
        title=f"TDM-R1 run: {history.preset}",
        style=Markup(_STYLE),
        h=history,
        count=history.cell(history.models[0], OVERALL)["count"],
        progress=Markup(progress_svg(history)),
        health=Markup(health_svg(history)),
        label=title,
        encode=lambda image: base64.b64encode(png(image)).decode(),
    )
