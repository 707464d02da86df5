"""The command `evaluate`: judge one generator outside of any run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tdm_r1.config import EvaluationConfig
from tdm_r1.rewards.judges import Judges
from tdm_r1.rng import Keys
from tdm_r1.runtime.generators import Generator
from tdm_r1.runtime.results import rows_of
from tdm_r1.stages.encode_prompts import encode_prompts
from tdm_r1.stages.evaluation import evaluation
from tdm_r1.worlds.world import open_world


def measure(
    generator: Generator, section: EvaluationConfig, *, seed: int, with_teacher: bool, page: Path | None
) -> dict[str, Any]:
    """Sample, score, and take intervals, as the stage `evaluation` does.

    Args:
        section: how many prompts of which split, and images of each.
        seed: of the noise; a run's own seed repeats the run's evaluation.
        with_teacher: judge the base as well.
        page: HTML to write, with the images.

    Returns:
        The content of a `result.json`.
    """
    config = generator.config.model_copy(update={"evaluation": section})
    prompts = encode_prompts(open_world(config.world), backbone=generator.backbone)
    record = evaluation(
        prompts,
        generator.role,
        name=generator.name,
        with_teacher=with_teacher,
        surrogate=None,
        judges=Judges(config.reward),
        backbone=generator.backbone,
        config=config,
        keys=Keys(seed, 0),
    )
    if page is not None:
        page.write_text(record.report, encoding="utf-8")
    return {
        "suite": config.world,
        "generator": generator.origin,
        "split": section.split,
        "seed": seed,
        "prompts": record.metrics.to_pylist()[0]["count"],
        "rows": rows_of(record),
    }


def write_json(content: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
