"""The scorers that are a CLIP and a formula: `clipscore`, `pickscore`, `hpsv2` and `aesthetic`.

Values are raw; peers divide PickScore by 26 and 100 · cosine by 30, which is `scale` in the configuration of a reward.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import ClassVar, Literal

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from tdm_r1.config import Positive, Section
from tdm_r1.rewards import clip_colors, clip_model
from tdm_r1.rewards.clip_model import Clip, Precision
from tdm_r1.rewards.images import as_image
from tdm_r1.rewards.protocol import BaseScorer, Image, Metadata, Score, ScorerInfo, golden


class ClipOptions(Section):
    weights: str = ""
    """Folder of the CLIP in transformers' format, with its tokenizer."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where it is computed; the scoring pool starts one process per core, so set `reward.workers` for a GPU."""
    precision: Precision = "float32"
    """In which it is held and computed; another one gives other values."""
    batch: Positive = 1
    """Images per network call; above 1 the last bits depend on which images come together."""
    golden: str = ""
    """Picture for the self-test, which must have `golden_value`; without one, only its range is known."""
    golden_prompt: str = ""
    """Prompt of that picture."""
    golden_value: float = 0.0
    """Its value, to 1%."""


class ClipScorer(BaseScorer):
    """A value from what CLIP makes of each picture and of its own prompt."""

    Options = ClipOptions
    code: ClassVar[tuple[ModuleType, ...]] = (clip_model, clip_colors)
    options: ClipOptions

    def __init__(self, **options: object) -> None:
        super().__init__(**options)
        shown = self.options
        self.clip = Clip(Path(shown.weights), device=shown.device, precision=shown.precision)

    def describe(self) -> ScorerInfo:
        shown = self.options
        return replace(self.about, batch=shown.batch, device=shown.device, deterministic=shown.batch == 1)

    def files(self) -> Sequence[Path]:
        return self.clip.files()

    def libraries(self) -> Sequence[str]:
        return ("transformers", "pillow")

    def load(self, threads: int) -> None:
        del threads  # a process of the pool has set them; in the stage's own they are the run's
        self.clip.load()

    @abstractmethod
    def values(self, images: Sequence[Image], prompts: Sequence[str]) -> Tensor:
        """[N] float32."""

    def score(self, images: Sequence[Image], prompts: Sequence[str], metadata: Sequence[Metadata]) -> Sequence[Score]:
        del metadata
        return [Score(value) for value in self.values(images, prompts).tolist()]

    def selftest(self) -> None:
        shown = self.options
        ramp = np.broadcast_to(np.arange(64, dtype=np.uint8)[:, None, None], (64, 64, 3))
        (score,) = self.score([np.ascontiguousarray(ramp)], ["a photo of a dog"], [{}])
        if not self.about.low <= (score.value or 0.0) <= self.about.high:
            raise ValueError(f"a grey ramp scored {score.value}, expected {self.about.low} to {self.about.high}")
        if shown.golden:
            picture = as_image(Path(shown.golden).read_bytes())
            tolerance = abs(shown.golden_value) / 100
            golden(self, picture, shown.golden_value, prompt=shown.golden_prompt, tolerance=tolerance)


class ClipScoreOptions(ClipOptions):
    kind: Literal["clipscore", "percent", "cosine"] = "clipscore"
    """2.5 · max(cosine, 0) as in the paper; 100 · max(cosine, 0); or the cosine."""
    prefix: str = ""
    """Before each prompt; the paper's is `A photo depicts `, peers that train on CLIPScore have none."""


class ClipScore(ClipScorer):
    """Agreement of a picture with its prompt by any CLIP (arXiv 2104.08718)."""

    about = ScorerInfo(
        name="clipscore",
        version="1",
        licence="Apache-2.0 (code), the weights' own",
        needs=("image", "prompt"),
        low=-1.0,
        high=100.0,
        cpu_seconds=1.5,
        memory_mb=2500,
        extra="preference",
        weights="any CLIP, e.g. openai/clip-vit-large-patch14 (`weights`)",
    )
    Options = ClipScoreOptions
    options: ClipScoreOptions

    def values(self, images: Sequence[Image], prompts: Sequence[str]) -> Tensor:
        cosines = self.clip.cosines(images, [self.options.prefix + prompt for prompt in prompts])
        kinds = {"clipscore": 2.5 * cosines.clamp(min=0), "percent": 100 * cosines.clamp(min=0), "cosine": cosines}
        return kinds[self.options.kind]


class PickScore(ClipScorer):
    """Preference of people for a picture, exp(logit_scale) · cosine, about 17 to 24 (arXiv 2305.01569)."""

    about = ScorerInfo(
        name="pickscore",
        version="1",
        licence="Apache-2.0 (code), the weights' own",
        needs=("image", "prompt"),
        low=-100.0,
        high=100.0,
        extra="preference",
        weights="yuvalkirstain/PickScore_v1 with the tokenizer of laion/CLIP-ViT-H-14-laion2B-s32B-b79K (`weights`)",
        cpu_seconds=1.5,
        memory_mb=5000,
    )

    def values(self, images: Sequence[Image], prompts: Sequence[str]) -> Tensor:
        return self.clip.scale * self.clip.cosines(images, prompts)


class HpsV2(ClipScorer):
    """HPSv2 or v2.1, preference of people as a cosine, about 0.2 to 0.35 (arXiv 2306.09341)."""

    about = ScorerInfo(
        name="hpsv2",
        version="1",
        licence="Apache-2.0 (code), the weights' own",
        needs=("image", "prompt"),
        low=-1.0,
        high=1.0,
        extra="preference",
        weights="xswu/HPSv2 HPS_v2.1_compressed.pt, by `tdm-r1 scorer convert hpsv2` (`weights`)",
        cpu_seconds=1.5,
        memory_mb=5000,
    )

    def values(self, images: Sequence[Image], prompts: Sequence[str]) -> Tensor:
        return self.clip.cosines(images, prompts)


class AestheticOptions(ClipOptions):
    head: str = ""
    """File of the affine head: `tdm-r1 scorer convert aesthetic` writes its 769 numbers."""


class Aesthetic(ClipScorer):
    """LAION's aesthetic predictor, w · embedding + b of the picture alone, about 1 to 10."""

    about = ScorerInfo(
        name="aesthetic",
        version="1",
        licence="Apache-2.0 (code and head), the CLIP's own",
        needs=("image",),
        cpu_seconds=1.2,
        memory_mb=2500,
        extra="preference",
        weights="openai/clip-vit-large-patch14 (`weights`) and sac+logos+ava1-l14-linearMSE.pth, converted (`head`)",
    )
    Options = AestheticOptions
    options: AestheticOptions

    def files(self) -> Sequence[Path]:
        head = Path(self.options.head)
        return [*super().files(), *([head] if head.is_file() else [])]

    def load(self, threads: int) -> None:
        if not Path(self.options.head).is_file():
            raise FileNotFoundError(f"`{self.options.head}` is no file; the option `head` names the affine head")
        super().load(threads)
        head = load_file(self.options.head)
        self._weight, self._bias = head["weight"].float(), head["bias"].float()

    def values(self, images: Sequence[Image], prompts: Sequence[str]) -> Tensor:
        del prompts
        values: Tensor = torch.mv(self.clip.images(images), self._weight) + self._bias
        return values
