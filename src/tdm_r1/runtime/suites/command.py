"""The commands `evaluate --suite` and `compare`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from rich import box
from rich.table import Table

from tdm_r1 import console
from tdm_r1.artifacts.store import open_store
from tdm_r1.errors import ConfigError
from tdm_r1.rewards.judges import Judges
from tdm_r1.runtime.generators import Generator, open_generator
from tdm_r1.runtime.layout import EVALUATIONS
from tdm_r1.runtime.suites import comparison, markdown
from tdm_r1.runtime.suites.evaluation import WHOLE, Asked, Share, carry_out, conclude, read_evaluation
from tdm_r1.runtime.suites.judging import judging, named_scorers, try_out
from tdm_r1.runtime.suites.parts import parts_of, write
from tdm_r1.runtime.suites.subject import open_model, subject_of
from tdm_r1.runtime.suites.suite import open_suite
from tdm_r1.statistics import OVERALL


@dataclass(frozen=True)
class Order:
    """What the command line asks for."""

    root: str | None
    lora: str | None
    iteration: int | None
    model: str | None
    revision: str
    suite: str
    file: Path | None
    count: int | None
    images: int | None
    steps: int | None
    guidance: float | None
    scorers: Sequence[str]
    workers: int | None
    overrides: Mapping[str, Any]
    seed: int
    out: str | None
    share: Share


def evaluate_suite(order: Order) -> None:
    """Draw, score, write and show; goes on where an earlier attempt stopped."""
    suite = open_suite(order.suite, order.file, count=order.count, images=order.images)
    generator = _generator(order)
    overrides = {} if order.model is not None else order.overrides
    subject = subject_of(generator, steps=order.steps, guidance=order.guidance, overrides=overrides)
    config = subject.generator.config
    named = named_scorers(order.scorers, config.reward.scorers)
    section, reward = judging(suite, config, named, order.workers)
    asked = Asked(suite, subject, order.seed)
    store, judges = open_store(_place(order, asked)), Judges(section)
    try_out(judges)
    with console.bar() as progress:
        samples = carry_out(store, asked, judges, console.track(progress), order.share)
    judges.close()
    if order.share != WHOLE:
        images = sum(len(part.images) for part in order.share.of(parts_of(suite)))
        done = f"shard {order.share.index}/{order.share.count}: {images} images are drawn and scored in {store.root}"
        console.OUT.print(
            f"{done}; after all shards, the same command without --shard writes the tables", soft_wrap=True
        )
        return
    content = conclude(store, asked, judges, samples, reward)
    console.OUT.print(_table(content))
    for line in content["remarks"]:
        console.OUT.print(line, soft_wrap=True)
    console.OUT.print(f"evaluation  {store.root}", soft_wrap=True)


def _generator(order: Order) -> Generator:
    if order.model is None:
        return open_generator(order.root, order.lora, order.iteration)
    if order.root or order.lora or order.iteration is not None:
        raise ConfigError("--model is another generator than --root or --lora names", hint="give one of them")
    if order.steps is None:
        raise ConfigError("a pipeline does not say how many steps it wants", hint="add --steps 40 --guidance 4.5")
    return open_model(order.model, order.revision, order.overrides)


def _place(order: Order, asked: Asked) -> str:
    """`--out`, or a folder beside the records of the run, named by what is asked."""
    if order.out is not None:
        return order.out
    if order.root is None:
        raise ConfigError("--out is missing", hint="give a folder; only a run has a place of its own")
    iteration = asked.subject.generator.iteration or 0
    return f"{order.root}/{EVALUATIONS}/{asked.suite.name}-iter-{iteration:05d}-{asked.digest()[:8]}"


def _plain(title: str, header: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for number, name in enumerate(header):
        table.add_column(name, justify="right" if number else "left", no_wrap=True)
    return table


def _table(content: Mapping[str, Any]) -> Table:
    """Overall by metric; the tags are in the Markdown."""
    prompts = content["prompts"]
    title = f"{content['suite']}: {content['title']}, {prompts['count']} prompts × {prompts['images_per_prompt']}"
    table = _plain(title, ("metric", "overall", "95% interval", "prompts", "errors"))
    for name, own in markdown.by_metric(content["metrics"]).items():
        whole, about = own[OVERALL], content["scorers"].get(name, {})
        values = (f"{whole['value']:.3f}", f"{whole['low']:.3f}–{whole['high']:.3f}", str(whole["count"]))
        table.add_row(f"{name} {markdown.arrow(content['better'][name])}", *values, str(about.get("errors", "")))
    return table


def compare_evaluations(addresses: Sequence[str], out: str | None) -> bool:
    """Print, and write if asked, the paired differences; True when a metric parts from the reward."""
    first, *others = (read_evaluation(open_store(address)) for address in addresses)
    content = comparison.compare(first, others)
    for one in content["against"]:
        console.OUT.print(_differences(content, one))
        for text in one["warnings"]:
            console.ERR.print(f"warning: {text}", soft_wrap=True)
        for text in one["remarks"]:
            console.OUT.print(text, soft_wrap=True)
    if out is not None:
        store = open_store(out)
        rows = [{"evaluation": one["address"], **row} for one in content["against"] for row in one["differences"]]
        write(store, "comparison.parquet", pa.Table.from_pylist(rows))
        store.overwrite("comparison.md", markdown.comparison_page(content).encode())
        store.overwrite("comparison.json", json.dumps(content, indent=2).encode() + b"\n")
        console.OUT.print(f"comparison  {store.root}", soft_wrap=True)
    return any(one["warnings"] for one in content["against"])


def _differences(content: Mapping[str, Any], one: Mapping[str, Any]) -> Table:
    title = f"{one['title']} over {content['title']}, prompt by prompt"
    table = _plain(title, ("metric", "before", "after", "difference", "95% interval", "prompts"))
    for name, own in markdown.by_metric(one["differences"]).items():
        whole = own[OVERALL]
        values = (f"{whole['before']:.3f}", f"{whole['after']:.3f}", f"{whole['value']:+.3f}")
        interval = f"{whole['low']:+.3f} to {whole['high']:+.3f}"
        table.add_row(f"{name} {markdown.arrow(content['better'][name])}", *values, interval, str(whole["count"]))
    return table
