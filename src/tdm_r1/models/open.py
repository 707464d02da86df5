"""From `model` to a backbone."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

from tdm_r1.config import ModelConfig
from tdm_r1.models.backbone import Backbone
from tdm_r1.models.sources import open_source

if TYPE_CHECKING:
    from tdm_r1.models.pipeline import PipelineBackbone

BACKBONES: Final = {"sd3": "SD3Backbone", "z_image": "ZImageBackbone", "flux": "FluxBackbone"}
"""Class by the name of its file in this folder."""


def pipeline_backbone(name: str) -> type[PipelineBackbone]:
    """The class that runs diffusers pipelines of a kind."""
    found: type[PipelineBackbone] = getattr(import_module(f"tdm_r1.models.{name}"), BACKBONES[name])
    return found


def open_backbone(config: ModelConfig, device: str = "cpu") -> Backbone:
    """Load the frozen base, after checking that it is the one that is pinned."""
    folder = open_source(config).folder
    if config.backbone == "plane":
        from tdm_r1.models.plane import PlaneBackbone

        return PlaneBackbone.open(folder)
    return pipeline_backbone(config.backbone)(folder, config, device)
