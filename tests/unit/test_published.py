"""The published configurations hold the published values, and their plan is made without a network or weights."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from tdm_r1.models.sources import COMMIT
from tdm_r1.presets import resolve
from tdm_r1.published import PUBLISHED
from tdm_r1.runtime.dry_run import plan
from tdm_r1.runtime.dry_run_view import size
from tests.support import TINY, tdm_r1

TABLE = {
    # preset: β, rl_cfg, t_min of the generator, t_min of the surrogate, clip, trunc, prompts per iteration
    "sd35_medium_ocr": (10, 4.5, 0.300, 0.300, 1e-3, 4, 48),
    "sd35_medium_geneval": (1, 2.5, 0.250, 0.550, 1e-3, 4, 48),
    "sd35_medium_imagereward": (1, 3.5, 0.400, 0.550, 2e-3, 2, 24),
    "sd35_medium_hps": (10, 3.5, 0.400, 0.550, 2e-3, 2, 24),
}
NAMES = [function.__name__ for function in PUBLISHED]


@pytest.mark.parametrize("name", TABLE)
def test_a_preset_of_the_paper_has_the_values_of_its_table(name: str) -> None:
    config = resolve(name, {})
    surrogate, generator = config.surrogate, config.generator
    assert TABLE[name] == (
        surrogate.beta, generator.surrogate_guidance, generator.t_min, surrogate.t_min, surrogate.ppo_clip,
        generator.trunc_steps, config.rollout.groups,
    )  # fmt: skip
    assert (generator.cfg_share, generator.guidance, generator.steps_per_trajectory) == (0.3, 4.5, 2)
    assert config.model.resolution == 512


@pytest.mark.parametrize("name", NAMES)
def test_every_published_preset_shares_the_recipe(name: str) -> None:
    config = resolve(name, {})
    rates = [
        o.learning_rate
        for o in (config.generator.fake.optimizer, config.surrogate.optimizer, config.generator.optimizer)
    ]
    assert rates == [3e-4, 3e-4, 7.5e-5]
    moments = [
        o.betas for o in (config.generator.fake.optimizer, config.surrogate.optimizer, config.generator.optimizer)
    ]
    assert moments == [(0.0, 0.999), (0.9, 0.999), (0.0, 0.999)]
    for optimizer in (config.generator.fake.optimizer, config.surrogate.optimizer, config.generator.optimizer):
        assert (optimizer.weight_decay, optimizer.epsilon, optimizer.clip_norm) == (1e-4, 1e-8, 1.0)
    assert (config.model.adapter.kind, config.model.adapter.rank, config.model.adapter.alpha) == ("lora", 32, 64.0)
    assert (config.rollout.group_size, config.sampler.steps, config.sampler.shift) == (24, 4, 3.0)
    assert (config.surrogate.beta_kl, config.surrogate.drift_gate, config.surrogate.advantage_clip) == (1e-3, 0.05, 5.0)
    assert (config.surrogate.reference, config.generator.fake.teacher_weight) == ("frozen", 0.02)
    assert config.generator.minibatch == config.rollout.groups * config.rollout.group_size
    assert (config.surrogate.minibatch_groups, config.surrogate.updates, config.generator.updates) == (
        config.rollout.groups,
        1,
        1,
    )
    assert COMMIT.fullmatch(config.model.revision)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a plan must not open a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_the_plan_of_sd35_medium_knows_its_sizes_without_network_or_weights(
    no_network: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    found = plan(resolve("sd35_medium_ocr", {}))
    assert found.parameters["base"] == 2_243_171_520
    assert found.stored["rollout"] == 144 * (5 * 16 * 64 * 64 * 4 + 512 * 512 * 3)
    blocks, width = 24, 1536  # the last block has no add_q_proj and to_add_out of its own kind: it is counted below
    layers = 8 * (blocks - 1) + 7
    assert found.parameters["surrogate"] == layers * 32 * 2 * width
    assert found.optimizer_steps == {"fake score": 980, "generator": 980, "surrogate": 480}
    assert found.images["rollout"] == 480 * 1152
    assert tdm_r1("run", "--dry-run", "--preset", "sd35_medium_ocr") == 0
    shown = capsys.readouterr().out
    assert "b940f670f0eda2d07fbb75229e779da1ad11eb80, about 16.3 GB" in shown
    assert not list(tmp_path.iterdir())


def test_the_plan_of_z_image_counts_its_parameters(no_network: None) -> None:
    found = plan(resolve("z_image_turbo_hpsv3", {}))
    assert found.parameters["base"] == 6_154_908_736  # 6.15 B as published
    assert found.parameters["surrogate"] == (30 + 2 + 2) * 4 * 32 * 2 * 3840


def test_what_the_plan_says_is_stored_is_what_a_run_stores(finished: Path) -> None:
    found = plan(resolve("plane", TINY))
    files: dict[str, Any] = {
        "encode_prompts": ["prompts/embeddings.safetensors"],
        "distill_base": ["base/state.safetensors", "base/optimizer.safetensors"],
        "generator_update": [f"iter-00002/generator_update/{name}.safetensors" for name in ("state", "optimizer")],
        "surrogate_update": [f"iter-00002/surrogate_update/{name}.safetensors" for name in ("state", "optimizer")],
    }
    for stage, names in files.items():
        stored = sum((finished / name).stat().st_size for name in names)
        assert 0 <= stored - found.stored[stage] < 20_000, stage  # names and shapes are stored too
    assert found.tasks == {
        "encode_prompts": 1, "distill_base": 1, "rollout": 4, "reward_scoring": 4, "surrogate_update": 2,
        "generator_update": 2, "evaluation": 3,
    }  # fmt: skip
    assert len(list(finished.rglob("manifest.json"))) == sum(found.tasks.values())
    assert found.download == 0


def test_a_plan_of_an_unpinned_or_unknown_base_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for knob in ("model.revision=main", "model.source=hub:acme/none"):
        assert tdm_r1("run", "--dry-run", "--preset", "sd35_medium_ocr", "--set", knob) == 2
        assert "hint:" in capsys.readouterr().err
    assert tdm_r1("run", "--dry-run") == 2
    assert tdm_r1("run", "--preset", "plane") == 2


def test_sizes_are_printed_with_three_digits() -> None:
    assert [size(n) for n in (0, 999, 1000, 123_456, 5 * 10**12)] == ["0 B", "999 B", "1 kB", "123 kB", "5 TB"]
