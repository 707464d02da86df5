"""The commands `stage`, `run`, `report` and `audit --replay`."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Final

from tdm_r1 import console
from tdm_r1.artifacts.records import Evaluation
from tdm_r1.artifacts.store import open_store
from tdm_r1.config import RunConfig
from tdm_r1.errors import ConfigError
from tdm_r1.kfp_outputs import parse_executor_input, write_outputs
from tdm_r1.runtime import audit_report
from tdm_r1.runtime.distributed import claim_device, joined, leads
from tdm_r1.runtime.dry_run_view import show_plan
from tdm_r1.runtime.execute import execute
from tdm_r1.runtime.history import write_report
from tdm_r1.runtime.layout import RESULT_FILE, Task, all_tasks, evaluation_due
from tdm_r1.runtime.loop import in_process, isolated, loop
from tdm_r1.runtime.observe import Observer
from tdm_r1.runtime.replay import replay
from tdm_r1.runtime.results import remarks, rows_of, write_result
from tdm_r1.runtime.run import Run, create_run, open_run
from tdm_r1.runtime.run_file import read_config
from tdm_r1.runtime.stage_view import View, pointer_of, view_of
from tdm_r1.runtime.variants import open_variant
from tdm_r1.runtime.watch import Watch
from tdm_r1.telemetry.outlets import Outlets

LOOKS: Final = 30.0
"""Seconds between two looks at the storage, for the metrics of the run as a whole."""


def run_stage(
    name: str, root: str, *, iteration: int, shard: int, variant: str, executor_input: str, outlets: Outlets
) -> None:
    """Execute one task; tell KFP when it asked to be told, and Prometheus."""
    asked = parse_executor_input(executor_input) if executor_input else None
    claim_device()
    task = Task(name, iteration, shard, variant)
    observer = Observer(root, outlets if leads() else Outlets(), console.warn)
    with observer.serving():
        with observer.watching(task):
            run = open_variant(open_run(root), variant)
            due = name != "evaluation" or evaluation_due(iteration, run.config)
            with joined(task, run.config) as world:
                progress = observer.steps(task)
                manifest = execute(run, task, progress=progress, world=world, resumable=True) if due else None
        if world.rank:
            return
        if manifest is not None:
            observer.committed(run.store, run.config, task, manifest, run.judges.tallies)
    for tally in run.judges.tallies:
        console.ERR.print(str(tally), soft_wrap=True)
    if asked is not None:
        stop = run.stopped or iteration >= run.config.iterations
        parameters = {"done": manifest.digest if manifest else "not-due", "stop": "true" if stop else "false"}
        view = view_of(run, task) if manifest else View({}, "<p>This iteration is not evaluated.</p>")
        record = (manifest.to_bytes(), pointer_of(run, task, manifest)) if manifest else None
        write_outputs(asked, parameters=parameters, metrics=view.metrics, html=view.html, record=record)


def dry_run(root: str | None, config: RunConfig | None) -> None:
    """Print the plan of a new run, or of the one that stands at the root."""
    if config is None and root is None:
        raise ConfigError("there is nothing to plan", hint="write --preset NAME, or --root RUN")
    show_plan(config or read_config(open_store(root or "")))


def run_loop(root: str, config: RunConfig | None, *, isolate: bool, outlets: Outlets) -> None:
    """Run or resume, with a progress line; print the table at the end."""
    run = create_run(root, config, check_model=not isolate) if config is not None else open_run(root)
    if adapter := run.config.distill.adapter:
        console.OUT.print(f"starts from the generator `{adapter}`, which an earlier run distilled", soft_wrap=True)
    observer = Observer(root, outlets, console.warn)
    watch = Watch(observer, run.store, run.config, console.warn, records=False) if outlets.any else None
    with observer.serving(), watch.kept(LOOKS) if watch else nullcontext(), console.bar() as progress:
        line = progress.add_task(run.config.preset, total=len(all_tasks(run.config)))
        executor = observer.executing(isolated if isolate else in_process)
        for done in loop(run, executor, console.track(progress)):
            progress.update(line, completed=done.position, description=_describe(run, done.task))
    outcome = write_result(run)
    title = f"{outcome['prompts']} held-out prompts, iteration {outcome['iterations']}, seed {outcome['seed']}"
    console.OUT.print(console.result_table(outcome["rows"], title))
    for remark in remarks(run.config, outcome["gain"]):
        console.OUT.print(remark, soft_wrap=True)
    console.OUT.print(f"result  {run.root}/{RESULT_FILE}", soft_wrap=True)
    report_run(root, None, None, run=run)


def report_run(root: str, out: Path | None, picture: Path | None, *, run: Run | None = None) -> None:
    """Write the page of a whole run; without `out` it becomes `report.html` in the root."""
    page = write_report(run or open_run(root), out, picture)
    console.OUT.print(f"report  {page}" + (f"\npicture {picture}" if picture else ""), soft_wrap=True)


def _describe(run: Run, task: Task) -> str:
    if task.stage != "evaluation":
        return f"iteration {task.iteration}/{run.config.iterations}"
    record, _ = run.load(task, Evaluation)
    for row in rows_of(record):
        low, high = row["ci95"]
        console.ERR.print(
            f"iteration {task.iteration}: {row['name']} overall {row['overall']:.3f} "
            f"({low:.3f}–{high:.3f}), {row['nfe']} NFE"
        )
    return f"iteration {task.iteration}/{run.config.iterations}"


def replay_run(root: str, text: str, *, as_json: bool) -> bool:
    """Print how each replayed record compares; True when all are identical."""
    if as_json:
        found = replay(root, text)
        print(audit_report.replays_as_json(found))
    else:
        with console.bar() as progress:
            found = replay(root, text, progress=console.track(progress))
        audit_report.show_replays(found)
    return all(record.identical for record in found)
