"""Claims about the configuration: what is refused, what is documented, and that no knob is read by nothing."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

import tdm_r1
from tdm_r1 import config as config_module
from tdm_r1 import presets
from tdm_r1.config import RolloutConfig, RunConfig, Section
from tdm_r1.errors import ConfigError
from tdm_r1.rewards.geneval import GenEvalScorer
from tdm_r1.rewards.shapes import ShapesScorer
from tests.support import tdm_r1 as command

PACKAGE = Path(tdm_r1.__file__).parent
SECTIONS = [
    found
    for found in vars(config_module).values()
    if isinstance(found, type) and issubclass(found, Section) and found is not Section
]
OPTIONS: list[type[Section]] = [GenEvalScorer.Options, ShapesScorer.Options]
KNOBS = [(section, name) for section in (*SECTIONS, *OPTIONS) for name in section.model_fields]


@cache
def attributes_read() -> frozenset[str]:
    """Every name that the package reads as an attribute, outside of the configuration itself."""
    trees = [
        ast.parse(path.read_text(encoding="utf-8"))
        for path in PACKAGE.rglob("*.py")
        if path.name != "presets.py" and path.parent != PACKAGE / "config"
    ]
    loads = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    return frozenset(node.attr for node in loads if isinstance(node.ctx, ast.Load))


def sections_of(config: Section) -> Iterator[Section]:
    yield config
    for name in type(config).model_fields:
        value = getattr(config, name)
        for part in value.values() if isinstance(value, dict) else [value]:
            if isinstance(part, Section):
                yield from sections_of(part)


@pytest.mark.parametrize(("section", "knob"), KNOBS, ids=lambda value: getattr(value, "__name__", value))
def test_every_knob_is_read_by_something(section: type[Section], knob: str) -> None:
    assert knob in attributes_read(), f"{section.__name__}.{knob} is read by nothing"


@pytest.mark.parametrize(("section", "knob"), KNOBS, ids=lambda value: getattr(value, "__name__", value))
def test_every_knob_is_documented_under_its_field(section: type[Section], knob: str) -> None:
    text = section.model_fields[knob].description
    assert text
    assert text.rstrip().endswith((".", "]"))


@pytest.mark.parametrize("section", SECTIONS)
def test_a_misspelt_key_is_refused_in_every_section(section: type[Section]) -> None:
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        section.model_validate({"learning_rte": 1})


@pytest.mark.parametrize("name", presets.PRESETS)
def test_every_preset_resolves_to_itself_under_its_own_name(name: str) -> None:
    config = presets.resolve(name, {})
    assert config == presets.PRESETS[name]()
    assert config.preset == name
    assert set(map(type, sections_of(config))) == set(SECTIONS)


@pytest.mark.parametrize("name", presets.PRESETS)
def test_what_config_show_prints_is_the_configuration(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("config", "show", name, "--set", "seed=7") == 0
    shown = capsys.readouterr().out
    assert RunConfig.model_validate_json(shown) == presets.resolve(name, {"seed": 7})


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        presets.resolve("plane", {}).seed = 1


def test_an_override_changes_its_knob_and_no_other() -> None:
    changed = presets.resolve("plane", {"surrogate.optimizer.learning_rate": 0.5}).model_dump()
    plain = presets.resolve("plane", {}).model_dump()
    assert changed["surrogate"]["optimizer"].pop("learning_rate") == 0.5
    plain["surrogate"]["optimizer"].pop("learning_rate")
    assert changed == plain


@pytest.mark.parametrize(
    ("key", "value", "message", "hint"),
    [
        ("surrogate.bta", 1, "`surrogate.bta` is no knob", "beta_kl"),
        ("bta", 1, "`bta` is no knob", "surrogate"),
        ("surogate.beta", 1, "there is no section `surogate`", "surrogate"),
        ("surrogate.beta.x", 1, "there is no section `surrogate.beta`", "beta_kl"),
        ("surrogate.beta", "ten", "`surrogate.beta` is 'ten'", "config show"),
        ("surrogate.beta", float("inf"), "`surrogate.beta` is inf", "config show"),
        ("surrogate.beta", float("nan"), "`surrogate.beta` is nan", "config show"),
        ("rollout.group_size", 1, "`rollout.group_size` is 1", "config show"),
        ("surrogate.reference", "none", "`surrogate.reference` is 'none'", "config show"),
        ("rollout.shards", 7, "groups=16 is not a multiple of shards=7", "config show"),
        ("rollout.shards", 64, "shards=64 is above groups=16; a group is never split", "config show"),
        ("sampler.steps", 1, "generator.steps_per_trajectory=2 but sampler.steps=1", "config show"),
        ("generator.path", "trajectory", "it needs generator.steps_per_trajectory=1", "config show"),
        ("generator.start", 61, "generator.start=61 but iterations=60", "config show"),
    ],
)
def test_a_refused_override_names_its_key_and_says_what_to_do(key: str, value: Any, message: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        presets.resolve("plane", {key: value})
    assert message in caught.value.message
    assert hint in (caught.value.hint or "")


@pytest.mark.parametrize("optimizer", ["distill.generator", "distill.fake.optimizer", "surrogate.optimizer"])
def test_moments_of_eight_bits_are_not_sharded(optimizer: str) -> None:
    eight = {f"{optimizer}.kind": "adamw8bit"}
    assert presets.resolve("plane", eight) != presets.resolve("plane", {})
    with pytest.raises(ConfigError, match="deepspeed shards moments in float32"):
        presets.resolve("plane", {**eight, "distributed.engine": "deepspeed"})


def test_an_unknown_preset_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match="there is no preset `shapes_gpu`") as caught:
        presets.resolve("shapes_gpu", {})
    assert all(name in (caught.value.hint or "") for name in presets.PRESETS)


def test_an_override_is_json_or_a_bare_word() -> None:
    pairs = ["a=1", "b=2.5", "c=true", "d=sd3", "e=[1, 2]", "f=x=y", "g="]
    expected = {"a": 1, "b": 2.5, "c": True, "d": "sd3", "e": [1, 2], "f": "x=y", "g": ""}
    assert presets.parse_overrides(pairs) == expected


def test_an_override_without_a_value_is_refused() -> None:
    with pytest.raises(ConfigError, match="has no `=`") as caught:
        presets.parse_overrides(["surrogate.beta"])
    assert caught.value.hint


@pytest.mark.parametrize(("groups", "shards", "fits"), [(48, 1, True), (48, 16, True), (48, 32, False), (2, 4, False)])
def test_a_group_is_never_split_over_shards(groups: int, shards: int, fits: bool) -> None:
    if fits:
        assert RolloutConfig(groups=groups, shards=shards).shards == shards
    else:
        with pytest.raises(ValidationError, match="a group is never split"):
            RolloutConfig(groups=groups, shards=shards)
