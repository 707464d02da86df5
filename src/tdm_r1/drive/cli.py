"""The arguments of `tdm-r1 drive`; nothing heavy is imported before they are read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tdm_r1.telemetry.options import MetricsPort, PushgatewayUrl


def drive(
    root: Annotated[str, typer.Option(help="Run directory as the pods see it: s3://bucket/prefix.")],
    endpoint: Annotated[str, typer.Option(envvar="KFP_ENDPOINT", help="KFP API or Argo server: http(s)://host:port.")],
    pipeline: Annotated[Path | None, typer.Option(help="Compiled block to submit whole, e.g. block.yaml.")] = None,
    pipeline_name: Annotated[str, typer.Option(help="A block that lies on the KFP server, instead.")] = "",
    pipeline_version: Annotated[str, typer.Option(help="Of --pipeline-name; the newest by default.")] = "",
    argo_template: Annotated[str, typer.Option(help="WorkflowTemplate of a block: drive Argo, not KFP.")] = "",
    namespace: Annotated[str, typer.Option(help="KFP profile, or namespace of the Argo template.")] = "",
    experiment: Annotated[str, typer.Option(help="KFP experiment; made if it is not there.")] = "tdm-r1",
    service_account: Annotated[str, typer.Option(help="Account of the pods; the server's default if empty.")] = "",
    token_file: Annotated[
        Path | None, typer.Option(envvar="KF_PIPELINES_SA_TOKEN_PATH", help="Read before each request.")
    ] = None,
    ca_file: Annotated[Path | None, typer.Option(help="Certificates of a private authority.")] = None,
    kubernetes: Annotated[str | None, typer.Option(help="Kubernetes API, to look for namespace and queues.")] = None,
    until: Annotated[int | None, typer.Option(min=1, help="Start no block after this iteration.")] = None,
    target: Annotated[float | None, typer.Option(help="Stop when the held-out score reaches this.")] = None,
    collapse: Annotated[
        float | None, typer.Option(min=0, max=1, help="Stop below this share of the best reward.")
    ] = None,
    max_drift: Annotated[float | None, typer.Option(min=0, help="Stop when surrogate/drift exceeds this.")] = None,
    max_kl: Annotated[float | None, typer.Option(min=0, help="Stop when generator/kl exceeds this.")] = None,
    budget: Annotated[float | None, typer.Option(min=0, help="Stop when this much is spent, by the prices.")] = None,
    profile: Annotated[str, typer.Option(help="Whose prices --budget counts with: a name or a .toml file.")] = "1xA100",
    retries: Annotated[int, typer.Option(min=0, help="Failed blocks in a row without a new iteration.")] = 3,
    poll: Annotated[float, typer.Option(min=0.01, help="Seconds between two looks at a block.")] = 15,
    outage: Annotated[float, typer.Option(min=0, help="Seconds for which the scheduler may be down.")] = 1800,
    stall: Annotated[float | None, typer.Option(min=0.1, help="Terminate a block so long without a record.")] = None,
    lease_seconds: Annotated[float, typer.Option(min=0.1, help="Silence after which another takes over.")] = 60,
    lease_wait: Annotated[float, typer.Option(min=0, help="Seconds to wait for a driver that is alive.")] = 0,
    webhook: Annotated[str | None, typer.Option(envvar="TDM_R1_WEBHOOK", help="Where events are POSTed.")] = None,
    metrics_port: MetricsPort = "",
    pushgateway: PushgatewayUrl = "",
    check: Annotated[bool, typer.Option("--check", help="Only find out whether blocks could be submitted.")] = False,
) -> None:
    """Submit block after block to KFP or Argo until the run is complete, stopped, or cannot go on."""
    from tdm_r1.drive.command import Target, drive_run, prices_of
    from tdm_r1.drive.driver import Limits
    from tdm_r1.drive.rules import Rules
    from tdm_r1.telemetry.outlets import Outlets

    prices = {} if budget is None else prices_of(profile)
    drive_run(
        root,
        Target(
            endpoint=endpoint,
            pipeline=pipeline,
            pipeline_name=pipeline_name,
            pipeline_version=pipeline_version,
            argo_template=argo_template,
            namespace=namespace,
            experiment=experiment,
            service_account=service_account,
            token_file=token_file,
            ca_file=ca_file,
            kubernetes=kubernetes,
        ),
        Rules(target=target, collapse=collapse, drift=max_drift, kl=max_kl, budget=budget, prices=prices),
        Limits(retries=retries, poll=poll, outage=outage, stall=stall, until=until),
        lease_seconds=lease_seconds,
        lease_wait=lease_wait,
        webhook=webhook,
        only_check=check,
        outlets=Outlets(metrics_port, pushgateway),
    )
