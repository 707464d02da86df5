"""Checkpoints of open_clip and of LAION's aesthetic predictor in the formats that the scorers read."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from safetensors.torch import save_file
from torch import Tensor

from tdm_r1.artifacts.restricted import read_checkpoint
from tdm_r1.errors import ConfigError

WHOLE: Final = {
    "logit_scale": "logit_scale",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
}
NORMS: Final = {
    "visual.ln_pre": "vision_model.pre_layrnorm",
    "visual.ln_post": "vision_model.post_layernorm",
    "ln_final": "text_model.final_layer_norm",
}
TURNED: Final = {"visual.proj": "visual_projection.weight", "text_projection": "text_projection.weight"}
"""Matrices that open_clip multiplies from the other side."""
BLOCK: Final = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)\.(weight|bias)")
PARTS: Final = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
IGNORED: Final = frozenset({"attn_mask"})
LAYERS: Final = (0, 2, 4, 6, 7)
"""Linear layers of the aesthetic predictor; dropout lies between them, and no activation."""


def convert_open_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """open_clip's names to those of transformers' `CLIPModel`; queries, keys and values apart.

    Raises:
        ConfigError: for a weight that no CLIP has.
    """
    return {new: tensor for name, value in state.items() if name not in IGNORED for new, tensor in _named(name, value)}


def _named(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    stem, _, kind = name.rpartition(".")
    if name in WHOLE:
        yield WHOLE[name], tensor
    elif name in TURNED:
        yield TURNED[name], tensor.T.contiguous()
    elif stem in NORMS:
        yield f"{NORMS[stem]}.{kind}", tensor
    elif packed := re.fullmatch(r"(visual\.)?transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)", name):
        layer = _layer(packed[1], packed[2])
        for part, one in zip("qkv", tensor.chunk(3), strict=True):
            yield f"{layer}.self_attn.{part}_proj.{packed[3]}", one.clone()
    elif (found := BLOCK.fullmatch(name)) and found[3] in PARTS:
        yield f"{_layer(found[1], found[2])}.{PARTS[found[3]]}.{found[4]}", tensor
    else:
        raise ConfigError(f"`{name}` is no weight of open_clip's CLIP", hint="expected HPS_v2.1_compressed.pt")


def _layer(visual: str | None, number: str) -> str:
    return f"{'vision' if visual else 'text'}_model.encoder.layers.{number}"


def read_tensors(checkpoint: Path) -> dict[str, Tensor]:
    """The tensors of a `.pt` or `.pth`, perhaps below `state_dict`.

    Raises:
        ConfigError: when it holds anything else, or cannot be read.
    """
    loaded = read_checkpoint(checkpoint)
    state = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else loaded
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ConfigError(f"`{checkpoint}` holds no table of tensors")
    return state


def convert_hpsv2(checkpoint: Path, like: Path, out: Path) -> None:
    """Write a folder that `hpsv2` reads.

    Args:
        like: folder of laion/CLIP-ViT-H-14-laion2B-s32B-b79K: its configuration and tokenizer are taken.

    Raises:
        ConfigError: when the weights are not those of a CLIP of that configuration.
    """
    from transformers import AutoTokenizer, CLIPConfig, CLIPModel

    if not (like / "config.json").is_file():
        raise ConfigError(f"`{like}` holds no CLIP", hint="name a folder of laion/CLIP-ViT-H-14-laion2B-s32B-b79K")
    model: Any = CLIPModel(CLIPConfig.from_pretrained(like, local_files_only=True))
    try:
        model.load_state_dict(convert_open_clip(read_tensors(checkpoint)))
    except RuntimeError as error:
        raise ConfigError(f"the weights do not fit the configuration of `{like}`: {error}") from error
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(like, local_files_only=True).save_pretrained(out)


def fold_affine(state: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Weight [D] and bias [1] float64 of linear layers without activations between them."""
    first, *rest = [(state[f"layers.{n}.weight"].double(), state[f"layers.{n}.bias"].double()) for n in LAYERS]
    weight, bias = first
    for matrix, offset in rest:
        weight, bias = matrix @ weight, matrix @ bias + offset
    return weight[0], bias


def convert_aesthetic(checkpoint: Path, out: Path) -> None:
    """Write the 769 numbers of the head that `aesthetic` reads.

    Raises:
        ConfigError: when the checkpoint has other layers.
    """
    try:
        weight, bias = fold_affine(read_tensors(checkpoint))
    except (KeyError, RuntimeError) as error:
        raise ConfigError(f"`{checkpoint}` is no aesthetic predictor of five linear layers: {error}") from error
    save_file({"weight": weight.float().contiguous(), "bias": bias.float().contiguous()}, out)
