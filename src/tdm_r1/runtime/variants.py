"""Judge committed images by another reward, beside the run and without changing it.

A variant is a folder `variants/NAME` below the root: `reward.json`, written once, and records of the stages
`reward_scoring` and `evaluation`, whose parents are the run's own rollouts and evaluations. See ADR 0008.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final, TypeVar

from pydantic import ValidationError

from tdm_r1.artifacts.store import Store
from tdm_r1.config import RewardConfig, RunConfig
from tdm_r1.errors import ConfigError, RootMismatchError
from tdm_r1.presets import revise
from tdm_r1.runtime.archive import Archive, open_archive
from tdm_r1.runtime.layout import VARIANTS

AnyRun = TypeVar("AnyRun", bound=Archive)

REWARD_FILE: Final = "reward.json"
NAME: Final = re.compile(r"[a-z0-9]([a-z0-9_-]{0,61}[a-z0-9])?")


def reward_key(name: str) -> str:
    """Where the reward of a variant lies, below the root.

    Raises:
        ConfigError: when this can be no name.
    """
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"`{name}` cannot be the name of a variant",
            hint="use at most 63 of a-z, 0-9, _ and -, beginning and ending with a letter or a digit",
        )
    return f"{VARIANTS}/{name}/{REWARD_FILE}"


def create_variant(root: str, name: str, overrides: Mapping[str, Any]) -> str:
    """Write the variant's reward: the run's own with some knobs set. The same one again is free.

    Args:
        overrides: values by dotted key, all in the section `reward`.

    Returns:
        Address of the file.

    Raises:
        ConfigError: for another section, an unknown knob, or a reward that is the run's own.
        RootMismatchError: when the name is taken by another reward.
    """
    run, key = open_archive(root), reward_key(name)
    if strange := [knob for knob in overrides if not knob.startswith("reward.")]:
        raise ConfigError(f"`{strange[0]}` is no knob of the reward", hint="a variant differs by `reward.…` only")
    reward = revise(run.config, overrides).reward
    if reward == run.config.reward:
        raise ConfigError(
            "the variant's reward is that of the run, so its verdicts are already committed",
            hint="set a knob, such as `--set reward.scorers.shapes.weight=2`",
        )
    run.store.require_writable()
    if not run.store.write_bytes_if_absent(key, reward_bytes(reward)) and read_reward(run.store, name) != reward:
        raise RootMismatchError(
            f"`{root}/{key}` holds another reward", hint="a variant never changes: choose another --name"
        )
    return f"{root}/{key}"


def reward_bytes(reward: RewardConfig) -> bytes:
    """`reward.json`: indented, in the order of the fields."""
    return json.dumps(reward.model_dump(mode="json"), indent=2, ensure_ascii=False).encode() + b"\n"


def read_reward(store: Store, name: str) -> RewardConfig:
    """Parse a variant's reward.

    Raises:
        ConfigError: when there is none, or it is not valid.
    """
    key = reward_key(name)
    if not store.exists(key):
        raise ConfigError(
            f"`{store.root}/{key}` does not exist, so there is no variant `{name}`",
            hint=f"create it with `tdm-r1 variant --root {store.root} --name {name} --set reward.…=…`",
        )
    try:
        return RewardConfig.model_validate_json(store.read_bytes(key))
    except ValidationError as error:
        raise ConfigError(
            f"`{store.root}/{key}` is not a valid reward: {error}",
            hint="it was written by another version or by hand: create a variant of another name",
        ) from error


def variant_config(store: Store, config: RunConfig, name: str) -> RunConfig:
    """The run's configuration with the variant's reward: what the variant's records are made with."""
    return config.model_copy(update={"reward": read_reward(store, name)})


def open_variant(run: AnyRun, name: str) -> AnyRun:
    """The run as a variant sees it; an empty name is the run itself."""
    return type(run)(run.store, variant_config(run.store, run.config, name)) if name else run


def listed_variants(keys: Iterable[str]) -> list[str]:
    """Names of the variants among the keys of a root."""
    found = re.compile(rf"{VARIANTS}/({NAME.pattern})/{re.escape(REWARD_FILE)}")
    return sorted(match[1] for key in keys if (match := found.fullmatch(key)))
