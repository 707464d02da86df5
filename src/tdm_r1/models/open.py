"""From `model.source` to a backbone."""

from __future__ import annotations

from pathlib import Path

from tdm_r1.config import ModelConfig
from tdm_r1.errors import ConfigError
from tdm_r1.models.backbone import Backbone

ASSETS = Path(__file__).parents[1] / "assets"
"""Weights that ship with the package."""


def source_folder(config: ModelConfig) -> Path:
    """The pipeline folder that a configuration names.

    Raises:
        ConfigError: when there is no such folder.
    """
    kind, _, name = config.source.partition(":")
    folder = ASSETS / name if kind == "embedded" else Path(config.source)
    if not folder.is_dir():
        raise ConfigError(
            f"model.source is {config.source!r}, but `{folder}` is no folder",
            hint="give a local diffusers folder, or train the embedded one with `tdm-r1 pretrain --world shapes`",
        )
    return folder


def open_backbone(config: ModelConfig) -> Backbone:
    """Load the frozen base."""
    if config.backbone == "plane":
        from tdm_r1.models.plane import PlaneBackbone

        return PlaneBackbone.open(source_folder(config))
    from tdm_r1.models.sd3 import SD3Backbone

    return SD3Backbone(source_folder(config))
