"""The two options of every command that publishes; nothing heavy is imported before they are read."""

from __future__ import annotations

from typing import Annotated

import typer

MetricsPort = Annotated[
    str, typer.Option(envvar="TDM_R1_METRICS_PORT", help="Serve /metrics on PORT or HOST:PORT while it runs.")
]
PushgatewayUrl = Annotated[
    str, typer.Option(envvar="TDM_R1_PUSHGATEWAY", help="Push metrics here after each stage: http://host:9091.")
]
