"""The command `metrics`: numbers of a run, read from its storage; nothing else has to run for it."""

from __future__ import annotations

import signal
import threading
from typing import Annotated

import typer

from tdm_r1 import console
from tdm_r1.errors import ConfigError
from tdm_r1.telemetry.options import MetricsPort, PushgatewayUrl


def metrics(
    root: Annotated[str, typer.Option(help="Run directory: a local folder, or s3://bucket/prefix.")],
    metrics_port: MetricsPort = "",
    pushgateway: PushgatewayUrl = "",
    every: Annotated[float, typer.Option(min=1, help="Seconds between two looks at the storage.")] = 30,
    forget: Annotated[bool, typer.Option("--forget", help="Delete what the Pushgateway holds of this run.")] = False,
) -> None:
    """Print a run's metrics as Prometheus reads them; with a port, serve them until told to end."""
    from prometheus_client import CollectorRegistry, generate_latest

    from tdm_r1.artifacts.store import open_store
    from tdm_r1.runtime.observe import Observer
    from tdm_r1.runtime.run_file import read_config
    from tdm_r1.runtime.watch import Watch
    from tdm_r1.telemetry.outlets import Outlets

    store = open_store(root)
    config = read_config(store)
    if forget:
        forget_run(root, pushgateway)
        return
    observer = Observer(root, Outlets(metrics_port), console.warn)
    watch = Watch(observer, store, config, console.warn, records=True)
    if metrics_port:
        over = threading.Event()
        signal.signal(signal.SIGTERM, lambda _number, _frame: over.set())
        with observer.serving(), watch.kept(every):
            over.wait()
        return
    watch.look()
    registry = CollectorRegistry()
    registry.register(observer.board)
    print(generate_latest(registry).decode(), end="")


def forget_run(root: str, url: str) -> None:
    """Delete every group that a run can have pushed.

    Raises:
        ConfigError: without an address.
        TemporaryError: when the Pushgateway does not answer.
    """
    from tdm_r1.artifacts.store import open_store
    from tdm_r1.errors import TemporaryError
    from tdm_r1.runtime.layout import FEEDBACK, SHARDED, STAGES, VARIANTS, Task
    from tdm_r1.runtime.record_samples import VARIANT_STAGES, run_label, where_of
    from tdm_r1.runtime.run_file import read_config
    from tdm_r1.telemetry.outlets import RUN_JOB, STAGE_JOB, Pushgateway

    if not url:
        raise ConfigError("--forget needs the address of a Pushgateway", hint="write --pushgateway http://host:9091")
    shards, run = read_config(open_store(root)).rollout.shards, run_label(root)
    stages = (*STAGES, FEEDBACK)
    variants = {stage: ("", VARIANTS) if stage in VARIANT_STAGES else ("",) for stage in stages}
    tasks = [
        Task(stage, 0, shard, variant)
        for stage in stages
        for variant in variants[stage]
        for shard in range(shards if stage in SHARDED else 1)
    ]
    gateway = Pushgateway(url, console.warn)
    groups = [(RUN_JOB, {"run": run}), *((STAGE_JOB, where_of(run, task)) for task in tasks)]
    if not all(gateway.forget(job, group) for job, group in groups):
        raise TemporaryError("the Pushgateway did not forget the run", hint="look whether it can be reached")
    console.OUT.print(f"{len(groups)} groups of {run} are gone", soft_wrap=True)
