"""What every backbone from a diffusers pipeline folder shares: lazy loading, role weights, decoding."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.func import functional_call

from tdm_r1.config import ModelConfig
from tdm_r1.errors import ConfigError
from tdm_r1.models.backbone import Condition, Weights
from tdm_r1.models.compiled import CompiledBlocks
from tdm_r1.models.factored import applied, shares_of
from tdm_r1.models.quiet import quiet_loading
from tdm_r1.models.recompute import Recompute
from tdm_r1.models.tiles import in_tiles, require_tile

ENCODE_BATCH = 64
"""Prompts per text encoder call."""
INDEX = "model_index.json"


def pipeline_index(folder: Path) -> dict[str, Any]:
    """`model_index.json`: which class each part of a pipeline folder has.

    Raises:
        ConfigError: when the folder has none.
    """
    if not (folder / INDEX).is_file():
        raise ConfigError(
            f"`{folder}` holds no {INDEX}, expected a diffusers pipeline folder", hint="check model.source"
        )
    found: dict[str, Any] = json.loads((folder / INDEX).read_text())
    return found


class PipelineBackbone(ABC):
    """Transformer, text encoders and autoencoder of one pipeline folder, all frozen; each is read when first asked for.

    Only `encode_prompts` and `decode` need more than the transformer, and a T5 alone is larger than it. The network is
    held in `model.dtype` on `device`; what goes in and comes out is float32 on the caller's device.
    """

    pipeline: ClassVar[str]
    """Its class in diffusers; likewise the next."""
    transformer: ClassVar[str]
    max_tokens: ClassVar[int]
    """Of a prompt, when `model.max_tokens` is 0: the default of the pipeline."""
    no_guidance: ClassVar[float] = 1.0
    """The pipeline's `guidance_scale` for w = 1."""

    def __init__(self, folder: Path, config: ModelConfig | None = None, device: str = "cpu") -> None:
        """
        Raises:
            ConfigError: when the folder holds no pipeline of this class.
        """
        self._folder, self._config = folder, config or ModelConfig(source=str(folder))
        self._device, self._dtype = torch.device(device), getattr(torch, self._config.dtype)
        found = pipeline_index(folder).get("_class_name")
        if found != self.pipeline:
            raise ConfigError(
                f"`{folder}` holds a {found}, but model.backbone is `{self._config.backbone}`, a {self.pipeline}",
                hint="set model.backbone to the one of this pipeline, or model.source to a pipeline of this backbone",
            )
        if self._config.decode_tile:  # refused now, not after the first samples
            about = json.loads((folder / "vae" / "config.json").read_text())
            require_tile(len(about["block_out_channels"]), self._config.decode_tile)
        self._hold(self._part(self.transformer, "transformer"), compiled=self._config.compile)

    @classmethod
    def around(cls, network: Any, config: ModelConfig, device: str) -> Self:
        """A backbone of a network without a folder: it has a velocity, which is not compiled, and nothing else."""
        found = cls.__new__(cls)
        found._config, found._device, found._dtype = config, torch.device(device), getattr(torch, config.dtype)
        found._hold(network)
        return found

    def _hold(self, transformer: Any, *, compiled: bool = False) -> None:
        self._transformer: torch.nn.Module = transformer
        self._base = {name: parameter.detach() for name, parameter in transformer.named_parameters()}
        self._compiled = CompiledBlocks(transformer) if compiled else None
        self._recompute = Recompute(transformer, self._compiled) if self._config.checkpointing else None

    @property
    def _loading(self) -> dict[str, Any]:
        """Safetensors and nothing else, from the folder and from nowhere else, without a copy in float32 on the way."""
        narrow = {} if self._dtype == torch.float32 else {"dtype": self._dtype}
        return {"use_safetensors": True, "local_files_only": True, **narrow}

    def _part(self, kind: str, subfolder: str) -> Any:
        """One frozen network of the folder, from safetensors and from nothing else."""
        with quiet_loading():
            import diffusers

            part = getattr(diffusers, kind).from_pretrained(self._folder, subfolder=subfolder, **self._loading)
            return part.requires_grad_(False).eval().to(self._device, self._dtype)

    @classmethod
    def absent(cls, folder: Path) -> list[str]:
        """Parts that diffusers must be told are not in a folder."""
        return [name for name, kind in pipeline_index(folder).items() if isinstance(kind, list) and kind[0] is None]

    @classmethod
    def stock_call(cls, folder: Path, config: ModelConfig) -> dict[str, Any]:
        """Arguments, beside prompt and steps, with which diffusers' own pipeline draws what this backbone draws."""
        del folder
        size = {"height": config.resolution, "width": config.resolution} if config.resolution else {}
        return {"guidance_scale": cls.no_guidance, "max_sequence_length": config.max_tokens or cls.max_tokens, **size}

    @cached_property
    def _vae(self) -> Any:
        whole = self._part("AutoencoderKL", "vae").to(memory_format=torch.channels_last)
        return in_tiles(whole, self._config.decode_tile)

    @cached_property
    def _text(self) -> Any:
        """The pipeline without its autoencoder; diffusers wants to be told which parts are absent."""
        with quiet_loading():
            import diffusers

            pipeline = getattr(diffusers, self.pipeline).from_pretrained(
                self._folder,
                **self._loading,
                transformer=self._transformer,  # SD3 without T5 asks it for a width
                **dict.fromkeys(["vae", *self.absent(self._folder)]),
            )
            return pipeline.to(self._device, self._dtype)

    @property
    def _tokens(self) -> int:
        return self._config.max_tokens or self.max_tokens

    @cached_property
    def _vae_scale(self) -> int:
        """Pixels per latent, along one side."""
        config = json.loads((self._folder / "vae" / "config.json").read_text())
        scale: int = 2 ** (len(config["block_out_channels"]) - 1)
        return scale

    def _side(self, native: int) -> int:
        """Latents along one side: of `model.resolution`, or the base's own.

        Raises:
            ConfigError: when the resolution is no multiple of two latents, the patch of all these networks.
        """
        pixels, unit = self._config.resolution, 2 * self._vae_scale
        if pixels % unit:
            raise ConfigError(
                f"model.resolution is {pixels}, expected a multiple of {unit}",
                hint=f"set model.resolution={pixels // unit * unit or unit}",
            )
        return pixels // self._vae_scale or native

    @property
    @abstractmethod
    def latent_shape(self) -> tuple[int, int, int]:
        """C, H, W of a latent."""

    @abstractmethod
    def _arguments(self, x: Tensor, sigma: Tensor, condition: Condition) -> dict[str, Any]:
        """What the transformer's `forward` is called with."""

    @abstractmethod
    def _velocity(self, output: Any, x: Tensor) -> Tensor:
        """V ≈ ε − x_0, [N, C, H, W], from what `forward` returned."""

    @abstractmethod
    def _encode(self, texts: list[str]) -> tuple[Sequence[Tensor], Tensor]:
        """Token embeddings of each text [T, D], and one vector for each [N, P]."""

    def base(self) -> dict[str, Tensor]:
        return dict(self._base)

    def velocity(self, x: Tensor, sigma: Tensor, condition: Condition, weights: Weights) -> Tensor:
        given = Condition(self._cast(condition.sequence), condition.pooled)
        call = self._arguments(self._cast(x), sigma.to(self._device), given)
        mixed = self._config.autocast == "bfloat16"
        with torch.autocast(self._device.type, torch.bfloat16) if mixed else nullcontext():
            return self._velocity(self._forward(call, weights, len(x)), x).to(x)

    def _forward(self, call: dict[str, Any], weights: Weights, count: int) -> Any:
        """What the transformer returns first, with a role in place of the base's weights or beside them."""
        shares = shares_of(weights, count)
        given = {} if shares is not None else {name: self._cast(weight) for name, weight in weights.items()}
        for blocks in (self._recompute, self._compiled):
            if blocks is not None:
                blocks.role(given, shares)
        within = self._compiled.prefixes if self._compiled is not None else ()
        given = {name: weight for name, weight in given.items() if not name.startswith(within)}
        if shares is not None:
            with applied(self._transformer, shares, without=within):
                return self._transformer(**call)[0]
        return functional_call(self._transformer, given, (), call)[0] if given else self._transformer(**call)[0]

    def _cast(self, value: Tensor) -> Tensor:
        return value.to(self._device, self._dtype)

    @torch.no_grad()
    def encode_prompts(self, texts: Sequence[str]) -> Condition:
        """Shorter sequences are padded with zeros to the longest."""
        rows = [self._encode(list(texts[start : start + ENCODE_BATCH])) for start in range(0, len(texts), ENCODE_BATCH)]
        sequences = [sequence.float().cpu() for part, _ in rows for sequence in part]
        padded = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True)
        return Condition(padded, torch.cat([pooled.float().cpu() for _, pooled in rows]))

    @torch.no_grad()
    def pixels(self, latents: Tensor) -> Tensor:
        """[N, C, H, W] latents to [N, 3, height, width] in [−1, 1], before any rounding."""
        config = self._vae.config
        scaled = self._cast(latents) / config.scaling_factor + config.shift_factor
        decode: Callable[..., tuple[Tensor]] = self._vae.decode
        parts = [
            decode(chunk.contiguous(memory_format=torch.channels_last), return_dict=False)[0].clamp(-1, 1)
            for chunk in scaled.split(self._config.decode_batch)
        ]
        return torch.cat(parts).to(latents)

    def decode(self, latents: Tensor) -> Tensor:
        return ((self.pixels(latents) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
