"""The scorer `imagereward`: BLIP reads the prompt while it looks at the picture, and an affine head gives one number.

value = (w · CLS + b − mean) / std. Source: ImageReward, arXiv 2304.05977; its head has no activations, so it is affine.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Final

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tdm_r1.errors import ConfigError
from tdm_r1.rewards import clip_colors, clip_scorers
from tdm_r1.rewards.clip_colors import clip_input
from tdm_r1.rewards.clip_convert import fold_affine, read_tensors
from tdm_r1.rewards.clip_scorers import ClipScorer
from tdm_r1.rewards.extras import need
from tdm_r1.rewards.protocol import Image, ScorerInfo

MEAN: Final = 0.16717790611
STD: Final = 1.0333394966
TOKENS: Final = 35
"""Of a prompt; longer ones are cut."""
HEAD: Final = "head.safetensors"
BLOCK: Final = re.compile(r"blocks\.(\d+)\.(norm1|attn\.qkv|attn\.proj|norm2|mlp\.fc1|mlp\.fc2)\.(weight|bias)")
PARTS: Final = {
    "norm1": "layer_norm1",
    "attn.qkv": "self_attn.qkv",
    "attn.proj": "self_attn.projection",
    "norm2": "layer_norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
WHOLE: Final = {
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj.weight": "embeddings.patch_embedding.weight",
    "patch_embed.proj.bias": "embeddings.patch_embedding.bias",
    "norm.weight": "post_layernorm.weight",
    "norm.bias": "post_layernorm.bias",
}
UNUSED: Final = re.compile(r"(vision_proj|text_proj|itm_head)\.")
"""Layers of transformers' class that a reward does not use; their weights are zero."""


class ImageReward(ClipScorer):
    """Preference of people for a picture of a prompt, mean 0 and deviation 1 on the authors' data, about −2 to 2."""

    about = ScorerInfo(
        name="imagereward",
        version="1",
        licence="Apache-2.0 (code and weights)",
        needs=("image", "prompt"),
        cpu_seconds=1.5,
        memory_mb=3000,
        extra="preference",
        weights="ImageReward-v1.0, by `tdm-r1 scorer convert imagereward` (`weights`)",
    )
    code: ClassVar[tuple[ModuleType, ...]] = (clip_scorers, clip_colors)

    def load(self, threads: int) -> None:
        del threads
        transformers = need("transformers", extra="preference")
        shown, folder = self.options, Path(self.options.weights)
        if not (folder / HEAD).is_file():
            raise FileNotFoundError(f"`{folder}` holds no {HEAD}; `tdm-r1 scorer convert imagereward` makes `weights`")
        self._dtype = torch.float32 if shown.precision == "float32" else torch.bfloat16
        model = transformers.BlipForImageTextRetrieval.from_pretrained(folder, local_files_only=True, dtype=self._dtype)
        self._model: Any = model.eval().to(shown.device)
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        head = load_file(folder / HEAD)
        self._weight, self._bias = head["weight"].float(), head["bias"].float()

    @torch.inference_mode()
    def values(self, images: Sequence[Image], prompts: Sequence[str]) -> Tensor:
        side, device = self._model.config.vision_config.image_size, self.options.device
        pixels = torch.cat([clip_input(image, side) for image in images]).to(device, self._dtype)
        tokens = self._tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt"
        ).to(device)
        seen = self._model.vision_model(pixel_values=pixels).last_hidden_state
        read = self._model.text_encoder(
            input_ids=tokens.input_ids,
            attention_mask=tokens.attention_mask,
            encoder_hidden_states=seen,
            encoder_attention_mask=torch.ones(seen.shape[:2], dtype=torch.int64, device=device),
        ).last_hidden_state
        raw: Tensor = torch.mv(read[:, 0].float().cpu(), self._weight) + self._bias
        return (raw - MEAN) / STD


def blip_large() -> Any:
    """Transformers' configuration of ImageReward's BLIP: ViT-L/16 at 224 pixels, BERT base with cross-attention."""
    from transformers import BlipConfig

    vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    text = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    return BlipConfig(
        vision_config={**vision, "image_size": 224, "patch_size": 16, "layer_norm_eps": 1e-6},
        text_config={**text, "vocab_size": 30524, "encoder_hidden_size": 1024},
    )


def convert_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """BLIP's names to those of transformers' `BlipForImageTextRetrieval`.

    Raises:
        ConfigError: for a weight that ImageReward has not.
    """
    return dict(pair for name, tensor in state.items() for pair in _named(name, tensor))


def _named(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    if name.startswith("mlp.") or name.endswith("position_ids"):
        return
    if name.startswith("blip.text_encoder."):
        yield name.removeprefix("blip."), tensor
        return
    inner = name.removeprefix("blip.visual_encoder.")
    if inner in WHOLE:
        yield f"vision_model.{WHOLE[inner]}", tensor
    elif found := BLOCK.fullmatch(inner):
        yield f"vision_model.encoder.layers.{found[1]}.{PARTS[found[2]]}.{found[3]}", tensor
    else:
        raise ConfigError(f"`{name}` is no weight of ImageReward", hint="expected ImageReward.pt of ImageReward-v1.0")


def convert_imagereward(checkpoint: Path, like: Path, out: Path, config: Any = None) -> None:
    """Write a folder that `imagereward` reads.

    Args:
        like: folder with the tokenizer, bert-base-uncased.
        config: of the network; none is ImageReward's own.

    Raises:
        ConfigError: when the weights are not those of such a network.
    """
    from transformers import AutoTokenizer, BlipForImageTextRetrieval

    state = read_tensors(checkpoint)
    model = BlipForImageTextRetrieval(config or blip_large())
    try:
        missing, extra = model.load_state_dict(convert_names(state), strict=False)
        weight, bias = fold_affine({name.removeprefix("mlp."): value for name, value in state.items()})
    except (RuntimeError, KeyError) as error:
        raise ConfigError(f"the weights do not fit ImageReward's network: {error}") from error
    if wrong := [name for name in [*missing, *extra] if not UNUSED.match(name)]:
        raise ConfigError(f"{len(wrong)} weights are missing or left over, the first is `{wrong[0]}`")
    for name, parameter in model.named_parameters():
        if UNUSED.match(name):
            torch.nn.init.zeros_(parameter)
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(like, local_files_only=True).save_pretrained(out)
    save_file({"weight": weight.float().contiguous(), "bias": bias.float().contiguous()}, out / HEAD)
