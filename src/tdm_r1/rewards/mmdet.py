"""GenEval's own Mask2Former, from the names of mmdetection 2.x to those of transformers.

Its COCO weights (Apache-2.0) give the benchmark's scores; transformers' own Swin-S COCO weights are another training
and may not be used commercially. The names are those of mmdet's modules; no real checkpoint was at hand to compare
scores with, see docs/rewards.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from tdm_r1.artifacts.restricted import read_checkpoint
from tdm_r1.errors import ConfigError
from tdm_r1.worlds.geneval_prompts import CLASSES

_SWIN: Final = "model.pixel_level_module.encoder.swin."
_PIXELS: Final = "model.pixel_level_module.decoder."
_QUERIES: Final = "model.transformer_module."
_BLOCK: Final = rf"{_SWIN}encoder.layers.\1.blocks.\2."
_ENCODER: Final = rf"{_PIXELS}encoder.layers.\1."
_DECODER: Final = rf"{_QUERIES}decoder.layers.\1."

RULES: Final = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"backbone\.patch_embed\.projection", f"{_SWIN}embeddings.patch_embeddings.projection"),
        (r"backbone\.patch_embed\.norm", f"{_SWIN}embeddings.norm"),
        (r"backbone\.stages\.(\d+)\.blocks\.(\d+)\.norm1", f"{_BLOCK}layernorm_before"),
        (r"backbone\.stages\.(\d+)\.blocks\.(\d+)\.norm2", f"{_BLOCK}layernorm_after"),
        (r"backbone\.stages\.(\d+)\.blocks\.(\d+)\.attn\.w_msa\.qkv", f"{_BLOCK}attention.qkv"),
        (r"backbone\.stages\.(\d+)\.blocks\.(\d+)\.attn\.w_msa\.proj", f"{_BLOCK}attention.o_proj"),
        (
            r"backbone\.stages\.(\d+)\.blocks\.(\d+)\.attn\.w_msa\.relative_position_bias_table",
            f"{_BLOCK}attention.relative_position_bias.relative_position_bias_table",
        ),
        (r"backbone\.stages\.(\d+)\.blocks\.(\d+)\.ffn\.layers\.0\.0", f"{_BLOCK}mlp.fc1"),
        (r"backbone\.stages\.(\d+)\.blocks\.(\d+)\.ffn\.layers\.1", f"{_BLOCK}mlp.fc2"),
        (r"backbone\.stages\.(\d+)\.downsample", rf"{_SWIN}encoder.layers.\1.downsample"),
        (r"panoptic_head\.pixel_decoder\.input_convs\.(\d)\.conv", rf"{_PIXELS}input_projections.\1.0"),
        (r"panoptic_head\.pixel_decoder\.input_convs\.(\d)\.gn", rf"{_PIXELS}input_projections.\1.1"),
        (r"panoptic_head\.pixel_decoder\.encoder\.layers\.(\d+)\.attentions\.0", f"{_ENCODER}self_attn"),
        (r"panoptic_head\.pixel_decoder\.encoder\.layers\.(\d+)\.norms\.0", f"{_ENCODER}self_attn_layer_norm"),
        (r"panoptic_head\.pixel_decoder\.encoder\.layers\.(\d+)\.norms\.1", f"{_ENCODER}final_layer_norm"),
        (r"panoptic_head\.pixel_decoder\.encoder\.layers\.(\d+)\.ffns\.0\.layers\.0\.0", f"{_ENCODER}fc1"),
        (r"panoptic_head\.pixel_decoder\.encoder\.layers\.(\d+)\.ffns\.0\.layers\.1", f"{_ENCODER}fc2"),
        (r"panoptic_head\.pixel_decoder\.level_encoding\.weight", f"{_PIXELS}level_embed"),
        (r"panoptic_head\.pixel_decoder\.lateral_convs\.0\.conv", f"{_PIXELS}adapter_1.0"),
        (r"panoptic_head\.pixel_decoder\.lateral_convs\.0\.gn", f"{_PIXELS}adapter_1.1"),
        (r"panoptic_head\.pixel_decoder\.output_convs\.0\.conv", f"{_PIXELS}layer_1.0"),
        (r"panoptic_head\.pixel_decoder\.output_convs\.0\.gn", f"{_PIXELS}layer_1.1"),
        (r"panoptic_head\.pixel_decoder\.mask_feature", f"{_PIXELS}mask_projection"),
        (r"panoptic_head\.transformer_decoder\.layers\.(\d+)\.attentions\.0\.attn", f"{_DECODER}cross_attn"),
        (r"panoptic_head\.transformer_decoder\.layers\.(\d+)\.attentions\.1\.attn", f"{_DECODER}self_attn"),
        (r"panoptic_head\.transformer_decoder\.layers\.(\d+)\.norms\.0", f"{_DECODER}cross_attn_layer_norm"),
        (r"panoptic_head\.transformer_decoder\.layers\.(\d+)\.norms\.1", f"{_DECODER}self_attn_layer_norm"),
        (r"panoptic_head\.transformer_decoder\.layers\.(\d+)\.norms\.2", f"{_DECODER}final_layer_norm"),
        (r"panoptic_head\.transformer_decoder\.layers\.(\d+)\.ffns\.0\.layers\.0\.0", f"{_DECODER}fc1"),
        (r"panoptic_head\.transformer_decoder\.layers\.(\d+)\.ffns\.0\.layers\.1", f"{_DECODER}fc2"),
        (r"panoptic_head\.transformer_decoder\.post_norm", f"{_QUERIES}decoder.layernorm"),
        (r"panoptic_head\.query_embed", f"{_QUERIES}queries_embedder"),
        (r"panoptic_head\.query_feat", f"{_QUERIES}queries_features"),
        (r"panoptic_head\.level_embed", f"{_QUERIES}level_embed"),
        (r"panoptic_head\.cls_embed", "class_predictor"),
    )
)
UNUSED: Final = re.compile(r"relative_position_index$|loss_cls|num_batches_tracked")
ABSENT: Final = re.compile(r"relative_position_index$|criterion\.|swin\.layernorm\.")
"""Of transformers' model: nothing that its answer depends on."""


def convert(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights under transformers' names.

    Raises:
        ConfigError: for a name that this Mask2Former does not have.
    """
    return {new: tensor for old, found in state.items() for new, tensor in _converted(old, found)}


def _converted(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    if UNUSED.search(name):
        return
    if norm := re.fullmatch(r"backbone\.norm(\d)\.(weight|bias)", name):
        stage = int(norm[1]) + 1
        yield f"model.pixel_level_module.encoder.hidden_states_norms.stage{stage}.{norm[2]}", tensor
        return
    if layer := re.fullmatch(r"panoptic_head\.mask_embed\.(\d)\.(weight|bias)", name):
        number = int(layer[1]) // 2
        yield f"{_QUERIES}decoder.mask_predictor.mask_embedder.{number}.0.{layer[2]}", tensor
        return
    for pattern, replacement in RULES:
        if match := pattern.match(name):
            yield from _split(match.expand(replacement) + name[match.end() :], tensor)
            return
    raise ConfigError(f"`{name}` is no weight of mmdetection's Mask2Former", hint="expected its COCO instance model")


def _split(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Queries, keys and values apart where transformers has them apart; patch merging in its order."""
    if ".downsample." in name:
        yield name, from_unfold(tensor)
    elif packed := re.search(r"(attention\.qkv\.|self_attn\.in_proj_)(weight|bias)$", name):
        stem = f"{name[: packed.start()]}{packed[1].partition('.')[0]}."
        yield from ((f"{stem}{part}_proj.{packed[2]}", one) for part, one in zip("qkv", tensor.chunk(3), strict=True))
    else:
        yield name, tensor


def from_unfold(tensor: Tensor) -> Tensor:
    """Weights [..., 4C] of a patch merging by `Unfold` (channel, row, column) to Swin's own order.

    Swin concatenates the patches at (row, column) = 00, 10, 01, 11, channels last.
    """
    by_patch = tensor.reshape(*tensor.shape[:-1], -1, 4).movedim(-1, -2)
    return by_patch[..., [0, 2, 1, 3], :].flatten(-2).contiguous()


def swin_small() -> Any:
    """Transformers' configuration of `mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco`."""
    from transformers import Mask2FormerConfig, SwinConfig

    stages = [f"stage{number}" for number in range(1, 5)]
    depths, heads = [2, 2, 18, 2], [3, 6, 12, 24]
    backbone = SwinConfig(embed_dim=96, depths=depths, num_heads=heads, window_size=7, out_features=stages)
    return Mask2FormerConfig(backbone_config=backbone, num_queries=100, num_labels=len(CLASSES))


def write_model(state: Mapping[str, Tensor], config: Any, out: Path) -> None:
    """Save converted weights as a folder that `Mask2Former` reads.

    Raises:
        ConfigError: when a weight is missing, left over, or of another shape.
    """
    from transformers import Mask2FormerForUniversalSegmentation

    model = Mask2FormerForUniversalSegmentation(config)
    try:
        missing, extra = model.load_state_dict(convert(state), strict=False)
    except RuntimeError as error:
        raise ConfigError(f"the weights do not fit: {error}", hint="expected the Swin-S COCO instance model") from error
    if missing := [name for name in missing if not ABSENT.search(name)]:
        raise ConfigError(f"{len(missing)} weights are missing, the first is `{missing[0]}`")
    if extra:
        raise ConfigError(f"{len(extra)} weights are left over, the first is `{extra[0]}`")
    model.save_pretrained(out)


def convert_checkpoint(checkpoint: Path, out: Path) -> None:
    """Convert mmdet's `.pth`."""
    loaded = read_checkpoint(checkpoint)
    write_model(loaded.get("state_dict", loaded), swin_small(), out)
