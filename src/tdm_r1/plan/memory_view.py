"""`tdm-r1 plan --memory`: the model of memory as a table, for people and for the documentation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from tdm_r1.config import RunConfig
from tdm_r1.plan.memory import GB, GPUS, USED, MemoryPlan, StageMemory, memory_plan, require_countable
from tdm_r1.presets import replace

HEADS = (
    "stage", "rows", "weights", "trained", "copies", "activations", "decode", "peak", "host", "TFLOP",
    *(f"{name}: fits" for name in GPUS), *(f"{name}: s" for name in GPUS),
)  # fmt: skip


def planned(config: RunConfig, processes: int) -> list[MemoryPlan]:
    """The run as configured, and with gradient checkpointing the other way round."""
    require_countable(config)
    other = replace(config.model, {"checkpointing": not config.model.checkpointing})
    both = [config, config.model_copy(update={"model": other})]
    return [memory_plan(one, processes) for one in sorted(both, key=lambda c: c.model.checkpointing)]


def as_json(config: RunConfig, processes: int) -> list[dict[str, Any]]:
    """Both plans in bytes and operations."""
    found = []
    for plan, kept in zip(planned(config, processes), (False, True), strict=True):
        stages = [
            {
                **{key: value for key, value in asdict(stage).items() if key != "row"},
                "activations": stage.activations,
                "peak": stage.peak,
                "fits": {name: stage.fitting(gpu.memory_gb * GB) for name, gpu in GPUS.items()},
            }
            for stage in plan.stages
        ]
        found.append({**asdict(plan), "checkpointing": kept, "stages": stages})
    return found


def markdown(config: RunConfig, processes: int) -> str:
    """Tables of a run: GB of 10⁹ bytes per process."""
    plain, kept = planned(config, processes)
    roles = ", ".join(f"{role} {count / 1e6:.1f} M" for role, count in plain.roles.items())
    model, section = config.model, config.distributed
    lines = [
        f"`{config.preset}`: base {plain.base_parameters / 1e9:.2f} G parameters in {model.dtype}, {roles}; "
        f"{plain.prompt_bytes / 1e6:.1f} MB of embeddings per prompt; "
        f"engine `{section.engine}`, {processes} process{'es' * (processes > 1)}.",
    ]
    for title, plan in (("Without gradient checkpointing", plain), ("With gradient checkpointing", kept)):
        lines += ["", f"{title}:", "", table(plan.stages)]
    return "\n".join(lines)


def table(stages: Sequence[StageMemory]) -> str:
    """A row per stage."""
    rows = [f"| {' | '.join(cells(stage))} |" for stage in stages]
    return "\n".join([f"| {' | '.join(HEADS)} |", "|---|" + "---:|" * (len(HEADS) - 1), *rows])


def cells(stage: StageMemory) -> list[str]:
    """Of one stage; seconds are of one optimizer step of each role, or of a shard's rollout."""
    bytes_ = (stage.weights, stage.trained, stage.copies, stage.activations, stage.decode, stage.peak, stage.host)
    fits = [_fits(stage, gpu.memory_gb * GB) for gpu in GPUS.values()]
    seconds = [f"{stage.flops / (USED * gpu.tflops * 1e12):.3g}" for gpu in GPUS.values()]
    shown = [f"{value / GB:.2f}" for value in bytes_]
    return [stage.stage, str(stage.rows), *shown, f"{stage.flops / 1e12:,.0f}", *fits, *seconds]


def _fits(stage: StageMemory, budget: float) -> str:
    found = stage.fitting(budget)
    return f"{found:,}" if found else "none"
