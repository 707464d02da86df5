"""The model card of an exported generator: where it comes from, what it reached, and code that samples from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, StrictUndefined

_CARD = Environment(autoescape=False, undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True)


@dataclass(frozen=True, kw_only=True)
class Card:
    """What the card says."""

    name: str
    """`tdm` for stage 0's generator, `tdm-r1` for a reinforced one."""
    source: str
    """Address of the base as the configuration gives it."""
    revision: str
    """Of the base: a commit, or the digest of its folder."""
    licence: str
    """Of the base, as its own card says; the adapter is bound by it too."""
    base_python: str
    """Python expression of the base's folder."""
    base_digests: Mapping[str, str]
    """SHA-256 by file, of the base's transformer."""
    adapter: str
    """The exported folder, as it was asked for."""
    rank: int
    preset: str
    seed: int
    iteration: int
    location: str
    """Of the generator's record, below the run's root."""
    digest: str
    """Of its manifest."""
    code_version: str
    prompt: str
    """An example."""
    steps: int
    shift: float
    sigmas: Sequence[float]
    """What the pipeline is given, before the scheduler's shift."""
    grid: Sequence[float]
    """The K+1 levels that come of it."""
    pipeline: str
    """Class of the base in diffusers."""
    absent: Sequence[str]
    """Its parts that the base comes without."""
    call: Mapping[str, Any]
    """What the pipeline is called with beside prompt, steps and sigmas."""
    row: Mapping[str, Any] | None
    """Its line of the result table; None when it was not evaluated."""
    suite: str
    judged: int
    """Prompts behind the row."""
    split: str
    """Of their prompts, `test` or `train`."""
    remarks: Sequence[str]
    """What the row does not say: the gain over the generator before any reward, prompt by prompt."""


def model_card(card: Card) -> str:
    """README.md, in the form that model hubs read."""
    return _CARD.from_string(_TEMPLATE).render(c=card, title=card.name.upper())


_TEMPLATE = """\
---
library_name: diffusers
pipeline_tag: text-to-image
tags: [lora, few-step, tdm-r1]
---
# {{ title }}: {{ c.steps }}-step generator, LoRA of rank {{ c.rank }}

{% if c.iteration %}
A few-step text-to-image generator after {{ c.iteration }} iterations of TDM-R1 reinforcement (arXiv 2603.07700).
{% else %}
A few-step text-to-image generator distilled by TDM (arXiv 2503.06674), before any reward.
{% endif %}
It is a LoRA on a frozen base and samples in {{ c.steps }} network evaluations, without guidance.
The factor alpha/rank is already multiplied into `lora_B`, so it loads with scale 1.

## Use

Needs `diffusers`, `transformers` and `peft`.

```python
{% if "files(" in c.base_python %}
from importlib.resources import files  # the base lies in the package tdm-r1

{% endif %}
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, {{ c.pipeline }}

base = {{ c.base_python }}
adapter = {{ "%r" % c.adapter }}  # this folder
pipe = {{ c.pipeline }}.from_pretrained(base{% for part in c.absent %}, {{ part }}=None{% endfor %})
pipe.scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(adapter, subfolder="scheduler")
pipe.load_lora_weights(adapter)
image = pipe(
    {{ "%r" % c.prompt }},
    num_inference_steps={{ c.steps }},
    sigmas={{ c.sigmas }},
{% for name, value in c.call.items() %}
    {{ name }}={{ value }},
{% endfor %}
    generator=torch.Generator().manual_seed(0),
).images[0]
image.save("image.png")
```

The scheduler shifts these sigmas by {{ c.shift }} to the levels it was trained at: {{ c.grid | join(", ") }}.
Other step counts, other sigmas or any guidance were never trained.
{% if "text_encoder_3" in c.absent %}
`max_sequence_length=0` matters: the base has no T5, and without it the pipeline appends 256 zero tokens.
{% endif %}

## Result

{% if c.row %}
Share of correct images for {{ c.judged }} {{ "held-out" if c.split == "test" else "training" }} prompts \
of the suite `{{ c.suite }}`, one seed:

| | NFE | overall | 95% interval |{% for tag in c.row.tags %} {{ tag }} |{% endfor %}

|---|---|---|---|{% for tag in c.row.tags %}---|{% endfor %}

| {{ c.row.name }} | {{ c.row.nfe }} | {{ "%.3f" | format(c.row.overall) }} | {{ "%.3f–%.3f" | format(*c.row.ci95) }} |
{%- for value in c.row.tags.values() %} {{ "%.3f" | format(value) }} |{% endfor %}


{% for remark in c.remarks %}
- {{ remark }}
{% endfor %}

Intervals are a bootstrap over prompts; they say nothing about other training seeds.
{% else %}
This iteration was not evaluated.
{% endif %}

## Origin

| | |
|---|---|
| base | `{{ c.source }}` |
| its revision | `{{ c.revision }}` |
| its licence | {{ c.licence }} |
{% for file, digest in c.base_digests.items() %}
| sha256 of its `{{ file }}` | `{{ digest }}` |
{% endfor %}
| preset, seed | `{{ c.preset }}`, {{ c.seed }} |
| iteration | {{ c.iteration }} |
| record | `{{ c.location }}`, role `generator_ema` |
| manifest digest | `{{ c.digest }}` |
| code | tdm-r1 {{ c.code_version }} |
"""
