"""Every knob of a run: frozen, unknown keys refused, documented under the field.

The resolved configuration is written once as `run.json`; a preset is a function in
`presets.py` that returns a complete `RunConfig`. Defaults are the published values where a
publication gives one; `[paper]` is arXiv 2603.07700, `[TDM]` arXiv 2503.06674, `[DGPO]`
arXiv 2510.08425, `[ours]` was chosen here (see docs/log.md).
"""

from __future__ import annotations

from tdm_r1.config.base import Count, NonNegative, Positive, Rate, Section, Share
from tdm_r1.config.model import AdapterConfig, ModelConfig, NumericsConfig, SamplerConfig
from tdm_r1.config.reward import RewardConfig, ScorerConfig
from tdm_r1.config.run import MOST_ITERATIONS, WORLDS, RunConfig
from tdm_r1.config.training import AdamConfig, DistillConfig, FakeScoreConfig, GeneratorConfig, SurrogateConfig
from tdm_r1.config.work import DistributedConfig, EvaluationConfig, RolloutConfig

__all__ = [
    "MOST_ITERATIONS",
    "WORLDS",
    "AdamConfig",
    "AdapterConfig",
    "Count",
    "DistillConfig",
    "DistributedConfig",
    "EvaluationConfig",
    "FakeScoreConfig",
    "GeneratorConfig",
    "ModelConfig",
    "NonNegative",
    "NumericsConfig",
    "Positive",
    "Rate",
    "RewardConfig",
    "RolloutConfig",
    "RunConfig",
    "SamplerConfig",
    "ScorerConfig",
    "Section",
    "Share",
    "SurrogateConfig",
]
