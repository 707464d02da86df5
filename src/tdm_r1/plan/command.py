"""What `tdm-r1 plan` does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tdm_r1 import presets
from tdm_r1.artifacts.store import open_store
from tdm_r1.errors import ConfigError
from tdm_r1.plan.costs import Costs, measured, shipped
from tdm_r1.plan.planner import Setting, make_plan
from tdm_r1.profiles import open_profile
from tdm_r1.runtime.run_file import read_config


def plan_run(
    preset: str, overrides: Mapping[str, Any], profile: str, costs: str | None, setting: Setting, *, as_json: bool
) -> bool:
    """Print a plan; True when it stays within every limit.

    Raises:
        ConfigError: for an unknown preset, profile or knob, and for costs that do not fit.
    """
    try:
        import simpy  # noqa: F401
    except ImportError as error:
        raise ConfigError("`plan` needs SimPy", hint="pip install 'tdm-r1[plan]'") from error
    from tdm_r1.plan.view import show

    config = presets.resolve(preset, overrides)
    plan = make_plan(config, open_profile(profile), costs_of(costs), setting)
    if as_json:
        print(json.dumps(plan.as_json(), indent=1))
    else:
        show(plan)
    return not plan.broken


def plan_memory(preset: str, overrides: Mapping[str, Any], processes: int, *, as_json: bool) -> None:
    """Print what the stages of a run need of memory, and what fits on which GPU, as Markdown or JSON.

    Raises:
        ConfigError: for an unknown preset or knob, and for a base whose shapes are not known here.
    """
    from tdm_r1.plan import memory_view

    config = presets.resolve(preset, overrides)
    if as_json:
        print(json.dumps(memory_view.as_json(config, processes), indent=1))
    else:
        print(memory_view.markdown(config, processes))


def costs_of(root: str | None) -> Costs:
    """Those of a run, or the shipped ones."""
    if root is None:
        return shipped()
    store = open_store(root)
    return measured(store, read_config(store))
