"""The arguments of `tdm-r1 plan`; nothing heavy is imported before they are read."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer


class Orchestrators(StrEnum):
    kfp = "kfp"
    argo = "argo"


def plan(
    name: Annotated[str | None, typer.Argument(metavar="PRESET", help="The same as --preset.")] = None,
    preset: Annotated[str, typer.Option(help="Preset that will run.")] = "shapes_cpu",
    set_: Annotated[list[str] | None, typer.Option("--set", help="Set a knob, as for `run`: a.b=VALUE.")] = None,
    profile: Annotated[str, typer.Option(help="Cluster: a name, or a .toml file that extends one.")] = "smoke",
    costs: Annotated[str | None, typer.Option(help="Run whose manifests say what stages cost.")] = None,
    orchestrator: Annotated[Orchestrators, typer.Option(help="Argo starts failed pods again.")] = Orchestrators.kfp,
    rollout_pods: Annotated[int | None, typer.Option(help="At once; the profile's shards_at_once by default.")] = None,
    scoring_pods: Annotated[int | None, typer.Option(help="At once, up to 10,000; likewise.")] = None,
    block: Annotated[int, typer.Option(min=1, help="Iterations per block.")] = 5,
    pod_start: Annotated[float, typer.Option(min=0, help="Seconds to start a pod whose image is there.")] = 3.0,
    driver_start: Annotated[float, typer.Option(min=0, help="Seconds of a KFP driver pod.")] = 7.0,
    failure: Annotated[float, typer.Option(min=0, max=0.5, help="Probability that a pod fails.")] = 0.0,
    taken_per_hour: Annotated[float, typer.Option(min=0, help="How often a spot machine is taken back.")] = 0.05,
    gpu_speed: Annotated[float, typer.Option(min=0.001, help="Rollouts and updates: times faster than measured.")] = 1,
    cpu_speed: Annotated[float, typer.Option(min=0.001, help="Scoring: times faster than measured.")] = 1,
    seed: Annotated[int, typer.Option(help="Of the simulation.")] = 0,
    memory: Annotated[bool, typer.Option("--memory", help="Memory and FLOPs per stage, and what fits.")] = False,
    processes: Annotated[int, typer.Option(min=1, help="With --memory: over which DeepSpeed shards.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of tables.")] = False,
) -> None:
    """Plan a run: seconds, bytes, pods, cost and limits; exit code 1 when a limit would be broken."""
    from tdm_r1.plan.command import plan_memory, plan_run
    from tdm_r1.plan.planner import Setting
    from tdm_r1.presets import parse_overrides

    if memory:
        plan_memory(name or preset, parse_overrides(set_), processes, as_json=as_json)
        return
    setting = Setting(
        orchestrator=orchestrator.value,
        rollout_pods=rollout_pods,
        scoring_pods=scoring_pods,
        block=block,
        pod_start=pod_start,
        driver_start=driver_start,
        failure=failure,
        taken_per_hour=taken_per_hour,
        gpu_speed=gpu_speed,
        cpu_speed=cpu_speed,
        seed=seed,
    )
    if not plan_run(name or preset, parse_overrides(set_), profile, costs, setting, as_json=as_json):
        raise typer.Exit(1)
