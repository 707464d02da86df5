"""Claims about the model of memory and work: it is what a CPU allocates, and what the formulas of the field say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from tdm_r1.config import AdapterConfig, ModelConfig, SamplerConfig
from tdm_r1.errors import ConfigError
from tdm_r1.models.adapters import Adapter
from tdm_r1.models.backbone import Condition
from tdm_r1.models.open import pipeline_backbone
from tdm_r1.models.sampler import path
from tdm_r1.models.shapes import prompt_shapes
from tdm_r1.plan.document import page
from tdm_r1.plan.fit import fitted
from tdm_r1.plan.memory import GB, StageMemory, memory_plan
from tdm_r1.plan.passes import _measured, pass_cost, path_bytes
from tdm_r1.presets import resolve
from tdm_r1.rng import Keys
from tdm_r1.runtime.dealing import _parts, require_fit
from tdm_r1.runtime.layout import Task
from tests.tiny import TINY_PIPELINES

LORA = {"sd3": ("attn.to_q", "attn.to_out.0"), "z_image": ("to_q", "to_out.0"), "flux": ("attn.to_q", "attn.to_out.0")}
ROWS = 24


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: make(tmp_path_factory.mktemp(name)) for name, make in TINY_PIPELINES.items()}


def configured(folder: Path, name: str, **more: object) -> ModelConfig:
    return ModelConfig.model_validate(
        {"backbone": name, "source": str(folder), "resolution": 32, "max_tokens": 48, **more}
    )


def allocated(prof: profile) -> int:
    """Most bytes at once, from what the allocator of the CPU reported."""
    recorded: Any = prof.profiler
    events = recorded.kineto_results.events()
    live = peak = 0
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", list(TINY_PIPELINES))
def test_the_predicted_peak_of_a_trained_pass_is_what_the_cpu_allocates(
    name: str, checkpointing: bool, folders: dict[str, Path]
) -> None:
    config = configured(folders[name], name, checkpointing=checkpointing)
    adapter = AdapterConfig(rank=4, application="factored", targets=LORA[name])
    predicted = pass_cost(config, adapter)
    backbone = pipeline_backbone(name)(folders[name], config)
    role = {k: t.requires_grad_() for k, t in Adapter(backbone.base(), adapter).new(Keys(0, 0), "a").items()}
    tokens, width, pooled = prompt_shapes(config)
    condition = Condition(torch.randn(ROWS, tokens, width), torch.full((ROWS, pooled), float(tokens)))
    x, sigma = torch.randn(ROWS, *backbone.latent_shape), torch.full((ROWS,), 0.5)

    def trained() -> Tensor:
        answer = backbone.velocity(x, sigma, condition, Adapter(backbone.base(), adapter).apply(role))
        loss = answer.square().mean()
        torch.autograd.backward(loss)
        return loss

    trained()  # tables of positions are made once
    for leaf in role.values():
        leaf.grad = None
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        trained()
    assert allocated(prof) == pytest.approx(ROWS * predicted.trained, rel=0.1)
    with FlopCounterMode(display=False) as counter, torch.no_grad(), torch.nn.attention.sdpa_kernel([_math()]):
        backbone.velocity(x, sigma, condition, Adapter(backbone.base(), adapter).apply(role))
    assert counter.get_total_flops() == pytest.approx(ROWS * predicted.flops_asked, rel=0.02)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_predicted_peak_of_a_whole_path_is_what_the_cpu_allocates(
    checkpointing: bool, folders: dict[str, Path]
) -> None:
    config = configured(folders["sd3"], "sd3", checkpointing=checkpointing)
    adapter = AdapterConfig(rank=4, application="factored", targets=LORA["sd3"])
    backbone, sampler = pipeline_backbone("sd3")(folders["sd3"], config), SamplerConfig()
    role = {k: t.requires_grad_() for k, t in Adapter(backbone.base(), adapter).new(Keys(0, 0), "a").items()}
    tokens, width, pooled = prompt_shapes(config)
    condition = Condition(torch.randn(ROWS, tokens, width), torch.randn(ROWS, pooled))
    noise = torch.randn(ROWS, *backbone.latent_shape)

    def trained() -> None:
        image = path(backbone, noise, condition, Adapter(backbone.base(), adapter).apply(role), sampler)[-1]
        torch.autograd.backward(image.square().mean())

    trained()
    for leaf in role.values():
        leaf.grad = None
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        trained()
    first, later = (pass_cost(config, adapter, chained=chained) for chained in (False, True))
    assert allocated(prof) == pytest.approx(ROWS * path_bytes(first, later, sampler.steps, 0), rel=0.1)
    assert allocated(prof) > 1.5 * ROWS * first.waiting(0)


def test_the_generator_s_memory_and_work_count_every_step_of_the_path(folders: dict[str, Path]) -> None:
    values = {"model.source": str(folders["sd3"]), "model.resolution": 32, "generator.steps_per_trajectory": 1}
    values |= {"model.adapter": {"rank": 4, "application": "factored", "targets": LORA["sd3"]}}
    by_step, whole = (
        next(s for s in memory_plan(resolve("shapes_smoke", values | more)).stages if s.stage == "generator_update")
        for more in ({}, {"generator.path": "trajectory"})
    )
    model = resolve("shapes_smoke", values).model
    cost = pass_cost(model, model.adapter)
    assert whole.activations - by_step.activations >= 8 * 3 * cost.held
    assert whole.flops - by_step.flops == pytest.approx(16 * 3 * cost.flops_trained)


def test_what_is_trained_is_counted_in_the_precision_and_by_the_parts_that_hold_it(folders: dict[str, Path]) -> None:
    values = {"model.source": str(folders["sd3"]), "model.resolution": 32, "model.adapter": {"kind": "full"}}

    def update(processes: int, **more: object) -> StageMemory:
        plan = memory_plan(resolve("shapes_smoke", values | more), processes)
        return next(stage for stage in plan.stages if stage.stage == "surrogate_update")

    whole, eight = update(1), update(1, **{"surrogate.optimizer.kind": "adamw8bit"})
    count = whole.host / 16
    assert count > 1000
    assert eight.host / count == pytest.approx(8 + 2 * (1 + 4 / 256))
    narrow = {"distributed.engine": "deepspeed", "distributed.dtype": "bfloat16"}
    stages = [update(4, **narrow, **{"distributed.zero_stage": zero}) for zero in (1, 2, 3)]
    assert [stage.trained / count for stage in stages] == pytest.approx([2 + 4 + 12 / 4, 2 + (4 + 12) / 4, 18 / 4])
    assert [stage.host / count for stage in stages] == [12, 12, 12]  # the record, whole in each process
    moved = update(4, **narrow, **{"distributed.offload": True})
    assert (moved.trained / count, moved.host / count) == (2 + 4 / 4, 12 + 12 / 4)


def _math() -> torch.nn.attention.SDPBackend:
    return torch.nn.attention.SDPBackend.MATH


def test_blocks_that_were_left_out_are_carried_rightly(folders: dict[str, Path]) -> None:
    config = configured(folders["sd3"], "sd3")
    adapter = AdapterConfig(rank=4, application="factored", targets=LORA["sd3"])
    small, more, most = (_measured(config, adapter, {"dual": 1, "single": n}, True) for n in (1, 2, 4))
    for key in small:
        assert small[key] + 3 * (more[key] - small[key]) == pytest.approx(most[key], rel=0.01), key


def test_what_has_no_blocks_is_refused() -> None:
    with pytest.raises(ConfigError, match="the plane has no blocks"):
        memory_plan(resolve("plane", {}))


def test_microbatches_that_are_chosen_fit_and_one_more_row_would_not(folders: dict[str, Path]) -> None:
    values = {
        "model.source": str(folders["sd3"]),
        "model.resolution": 32,
        "model.adapter": {"rank": 4, "application": "factored", "targets": LORA["sd3"]},
        "distill.batch": 8,
    }
    config = resolve("shapes_smoke", values)
    generator = next(s for s in memory_plan(config).stages if s.stage == "generator_update")
    budget = (generator.fixed + 1.1 * generator.row(6)) / GB
    found = fitted(config, budget)
    assert found.generator.microbatch == 6
    assert found == fitted(found, budget)
    assert found.generator.minibatch == config.generator.minibatch
    plan = {stage.stage: stage for stage in memory_plan(found).stages}
    for stage in plan.values():
        assert stage.peak <= budget * GB, stage.stage
    generator = plan["generator_update"]
    assert generator.rows == 6
    assert generator.fixed + 1.1 * generator.row(generator.rows + 1) > budget * GB
    with pytest.raises(ConfigError, match="does not fit"):
        fitted(config, 2.0)


@pytest.mark.parametrize("preset", ["sd35_medium_geneval", "sd35_medium_hps"])
def test_microbatches_for_eight_processes_can_be_dealt_to_eight_with_equal_work(preset: str) -> None:
    """The largest that fit 80 GB would be five parts of a step of the second preset, which eight processes refuse."""
    config = resolve(preset, {"model.checkpointing": True})
    alone, found = fitted(config, 80), fitted(config, 80, processes=8)
    parts = {}
    for stage in ("surrogate_update", "generator_update"):
        require_fit(Task(stage, 1), found, 8)
        parts[stage] = _parts(Task(stage, 1), found)[0]
    assert all(count % 8 == 0 for count in parts.values()), parts
    assert found.surrogate.microbatch_groups <= alone.surrogate.microbatch_groups
    assert found.generator.microbatch <= alone.generator.microbatch
    if preset == "sd35_medium_hps":
        with pytest.raises(ConfigError, match="expected at most 5"):
            require_fit(Task("surrogate_update", 1), alone, 8)


def test_the_tables_in_the_documentation_are_what_the_command_prints() -> None:
    stored = (Path(__file__).parents[2] / "docs" / "memory_tables.md").read_text(encoding="utf-8")
    assert stored == page(), "make golden writes it again"
