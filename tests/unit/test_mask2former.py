"""Claims about the GenEval detector and the colour classifier, on tiny random networks of the same classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from torch import Tensor
from torch.nn.functional import normalize, unfold

from tdm_r1.errors import ConfigError
from tdm_r1.rewards.ask import Question, ask, make_ready
from tdm_r1.rewards.clip_colors import ClipColors, clip_input, cut_out
from tdm_r1.rewards.geneval import GenEvalScorer
from tdm_r1.rewards.mask2former import Mask2Former, instances, network_input
from tdm_r1.rewards.mmdet import ABSENT, convert, from_unfold, write_model
from tdm_r1.worlds.geneval import COLORS

DIM, STAGES, HIDDEN = 8, (1, 1, 2, 1), 32


def tiny_config() -> Any:
    from transformers import Mask2FormerConfig, SwinConfig

    out = [f"stage{n}" for n in range(1, 5)]
    backbone = SwinConfig(embed_dim=DIM, depths=list(STAGES), num_heads=[1, 2, 2, 2], window_size=4, out_features=out)
    sizes = dict.fromkeys(("hidden_dim", "feature_size", "mask_feature_size"), HIDDEN)
    layers = {"encoder_layers": 1, "decoder_layers": 3, "num_attention_heads": 2, "num_queries": 7, "num_labels": 80}
    return Mask2FormerConfig(
        backbone_config=backbone, dim_feedforward=16, encoder_feedforward_dim=16, **sizes, **layers
    )


def mmdet_state() -> dict[str, Tensor]:
    """Random weights under the names and in the shapes of mmdet's modules, for the sizes of `tiny_config`."""
    found: dict[str, Tensor] = {}

    def add(name: str, *shape: int, bias: int | None = None) -> None:
        found[f"{name}.weight"] = torch.randn(*shape)
        if bias is not None:
            found[f"{name}.bias"] = torch.randn(bias)

    def norm(name: str, size: int) -> None:
        add(name, size, bias=size)

    def linear(name: str, rows: int, columns: int) -> None:
        add(name, rows, columns, bias=rows)

    def attention(name: str) -> None:
        found[f"{name}.in_proj_weight"], found[f"{name}.in_proj_bias"] = torch.randn(96, 32), torch.randn(96)
        linear(f"{name}.out_proj", 32, 32)

    add("backbone.patch_embed.projection", DIM, 3, 4, 4, bias=DIM)
    norm("backbone.patch_embed.norm", DIM)
    for stage, depth in enumerate(STAGES):
        size = DIM * 2**stage
        for block in (f"backbone.stages.{stage}.blocks.{n}" for n in range(depth)):
            norm(f"{block}.norm1", size)
            norm(f"{block}.norm2", size)
            linear(f"{block}.attn.w_msa.qkv", 3 * size, size)
            linear(f"{block}.attn.w_msa.proj", size, size)
            found[f"{block}.attn.w_msa.relative_position_bias_table"] = torch.randn(49, 1 if stage == 0 else 2)
            found[f"{block}.attn.w_msa.relative_position_index"] = torch.zeros(16, 16, dtype=torch.int64)
            linear(f"{block}.ffn.layers.0.0", 4 * size, size)
            linear(f"{block}.ffn.layers.1", size, 4 * size)
        if stage < 3:
            norm(f"backbone.stages.{stage}.downsample.norm", 4 * size)
            add(f"backbone.stages.{stage}.downsample.reduction", 2 * size, 4 * size)
        norm(f"backbone.norm{stage}", size)
    head = "panoptic_head.pixel_decoder"
    for level, size in enumerate((64, 32, 16)):
        add(f"{head}.input_convs.{level}.conv", 32, size, 1, 1, bias=32)
        norm(f"{head}.input_convs.{level}.gn", 32)
    layer = f"{head}.encoder.layers.0"
    for name, rows in (("sampling_offsets", 48), ("attention_weights", 24), ("value_proj", 32), ("output_proj", 32)):
        linear(f"{layer}.attentions.0.{name}", rows, 32)
    linear(f"{layer}.ffns.0.layers.0.0", 16, 32)
    linear(f"{layer}.ffns.0.layers.1", 32, 16)
    norm(f"{layer}.norms.0", 32)
    norm(f"{layer}.norms.1", 32)
    add(f"{head}.level_encoding", 3, 32)
    for name, size, side in (("lateral_convs", DIM, 1), ("output_convs", 32, 3)):
        add(f"{head}.{name}.0.conv", 32, size, side, side)
        norm(f"{head}.{name}.0.gn", 32)
    add(f"{head}.mask_feature", 32, 32, 1, 1, bias=32)
    for layer in (f"panoptic_head.transformer_decoder.layers.{n}" for n in range(2)):
        attention(f"{layer}.attentions.0.attn")
        attention(f"{layer}.attentions.1.attn")
        linear(f"{layer}.ffns.0.layers.0.0", 16, 32)
        linear(f"{layer}.ffns.0.layers.1", 32, 16)
        for number in range(3):
            norm(f"{layer}.norms.{number}", 32)
    norm("panoptic_head.transformer_decoder.post_norm", 32)
    for name, rows in (("query_embed", 7), ("query_feat", 7), ("level_embed", 3)):
        add(f"panoptic_head.{name}", rows, 32)
    linear("panoptic_head.cls_embed", 81, 32)
    for number in (0, 2, 4):
        linear(f"panoptic_head.mask_embed.{number}", 32, 32)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny network that was converted from mmdet's names."""
    torch.manual_seed(0)
    out = tmp_path_factory.mktemp("mask2former")
    write_model(mmdet_state(), tiny_config(), out)
    return out


def test_every_weight_of_mmdet_has_one_place_and_no_place_stays_empty() -> None:
    from transformers import Mask2FormerForUniversalSegmentation

    state = mmdet_state()
    found = convert(state)
    wanted = {
        name for name in Mask2FormerForUniversalSegmentation(tiny_config()).state_dict() if not ABSENT.search(name)
    }
    assert found.keys() == wanted
    moved = sum(tensor.numel() for name, tensor in state.items() if "position_index" not in name)
    assert sum(tensor.numel() for tensor in found.values()) == moved
    with pytest.raises(ConfigError, match=r"`rpn_head\.x` is no weight"):
        convert({"rpn_head.x": torch.zeros(1)})


def test_patch_merging_by_unfold_and_by_swin_give_the_same() -> None:
    from transformers.models.swin.modeling_swin import SwinPatchMerging

    torch.manual_seed(1)
    x_BHWC, norm, reduction = torch.randn(2, 6, 4, 5), torch.rand(20), torch.randn(10, 20)
    patches = unfold(x_BHWC.permute(0, 3, 1, 2), 2, stride=2).transpose(1, 2)  # as mmdet merges: channel, row, column
    expected = torch.nn.functional.layer_norm(patches, (20,), norm) @ reduction.T
    merging = SwinPatchMerging(5)
    merging.load_state_dict(
        {"norm.weight": from_unfold(norm), "norm.bias": torch.zeros(20), "reduction.weight": from_unfold(reduction)}
    )
    torch.testing.assert_close(merging(x_BHWC.reshape(2, 24, 5), (6, 4)), expected)


def test_the_network_sees_the_sides_that_mmdet_gives_it() -> None:
    for shape, size, padded in (((512, 512), (800, 800), (800, 800)), ((100, 400), (333, 1333), (352, 1344))):
        pixels, found = network_input(np.full((*shape, 3), 200, np.uint8))
        assert (found, tuple(pixels.shape[2:])) == (size, padded)
        assert pixels[0, 0, 0, 0] == pytest.approx((200 - 123.675) / 58.395)
        assert pixels[0, 2, -1, -1] == pytest.approx(((200 if size == padded else 128) - 103.53) / 57.375)


def test_confidence_is_class_probability_times_mask_probability_and_the_box_is_the_mask() -> None:
    logits, masks = torch.full((2, 81), -20.0), torch.full((2, 8, 8), -5.0)
    logits[0, 16], logits[0, 80], logits[1, 80] = 3.0, 2.0, 9.0  # a dog with probability e/(1+e), and nothing
    masks[0, 2:6, 1:4] = 4.0
    found = instances(logits, masks, (32, 32), (32, 32), np.zeros((64, 64, 3), np.uint8))
    best = max(found, key=lambda one: one.detection.score)
    assert best.detection.label == "dog"
    large = cv2.resize(cv2.resize(masks[0].numpy(), (32, 32)), (64, 64))  # bilinear, half-pixel centres
    inside = large > 0
    assert best.mask is not None
    assert (best.mask == inside).mean() > 0.999
    sure = float((1 / (1 + np.exp(-large[inside]))).mean())
    assert best.detection.score == pytest.approx(sure * np.e / (1 + np.e), abs=1e-3)
    rows, columns = np.nonzero(inside)
    assert best.detection.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    assert len([one for one in found if one.detection.score > 0.01]) == 1


def test_a_detection_does_not_depend_on_how_often_it_is_asked(folder: Path) -> None:
    detector = Mask2Former(folder, short=64, long=128)
    detector.load(1)
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    first, second = (detector.detect(image) for _ in range(2))
    assert [one.detection for one in first] == [one.detection for one in second]
    assert 0 < len(first) <= 100
    for one in first:
        x1, y1, x2, y2 = one.detection.box
        assert 0 <= x1 < x2 <= 60
        assert 0 <= y1 < y2 <= 40


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIP with a tokenizer of whole words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

    torch.manual_seed(0)
    words = ["<pad>", "<unk>", "<start>", "<end>", "a", "photo", "of", "object", "dog", "colored", "-", *COLORS]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = [("<start>", 2), ("<end>", 3)]
    tokenizer.post_processor = processors.TemplateProcessing(single="<start> $A <end>", special_tokens=special)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**sizes, "vocab_size": len(words), "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    vision = {**sizes, "image_size": 32, "patch_size": 8}
    out = tmp_path_factory.mktemp("clip")
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(out)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>").save_pretrained(out)
    return out


def test_a_colour_is_the_nearest_of_ten_averages_over_three_sentences(clip: Path) -> None:
    from transformers import AutoTokenizer, CLIPModel

    colors = ClipColors(clip)
    colors.load(1)
    image = np.random.default_rng(2).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    mask = np.zeros((50, 70), bool)
    mask[10:30, 20:60] = True
    model, tokenizer = CLIPModel.from_pretrained(clip).eval(), AutoTokenizer.from_pretrained(clip)
    with torch.inference_mode():
        nearness = []
        for color in COLORS:
            total = torch.zeros(8)
            for sentence in (
                f"a photo of a {color} dog",
                f"a photo of a {color}-colored dog",
                f"a photo of a {color} object",
            ):
                tokens = tokenizer([sentence], return_tensors="pt")
                total += normalize(model.text_projection(model.text_model(**tokens).pooler_output), dim=-1)[0]
            pixels = clip_input(cut_out(image, (20, 10, 60, 30), mask), 32)
            seen = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)[0]
            nearness.append(float(normalize(total, dim=0) @ normalize(seen, dim=0)))
    assert colors.name(image, "dog", (20, 10, 60, 30), mask) == COLORS[int(np.argmax(nearness))]
    torch.testing.assert_close(colors.text("dog").norm(dim=-1), torch.ones(10))


def test_the_object_stands_on_flat_grey_and_is_cut_to_its_box() -> None:
    image, mask = np.full((20, 20, 3), 7, np.uint8), np.zeros((20, 20), bool)
    mask[5:10, 5:10] = True
    cut = cut_out(image, (4.6, 5.0, 11.0, 10.4), mask)
    assert cut.shape == (5, 6, 3)
    assert (cut[:, :5] == 7).all()
    assert (cut[:, 5] == 0x99).all()
    assert (cut_out(image, (4.6, 5.0, 11.0, 10.4), None) == 7).all()
    assert cut_out(image, (3, 3, 3, 3), None).shape == (1, 1, 3)


def test_the_input_of_clip_is_resized_by_its_short_side_and_cut_in_the_middle() -> None:
    image = np.zeros((40, 80, 3), np.uint8)
    image[:, 20:60] = 255
    pixels = clip_input(image, 20)
    assert pixels.shape == (1, 3, 20, 20)
    assert float(pixels[0, 0, 10, 10]) == pytest.approx((1 - 0.48145466) / 0.26862954, abs=1e-4)


@pytest.mark.parametrize(("width", "height", "size"), [(165, 110, (336, 224)), (97, 194, (224, 448))])
def test_no_pixel_of_the_longer_side_is_lost_where_the_scale_is_whole(
    width: int, height: int, size: tuple[int, int]
) -> None:
    """As torchvision's `Resize` has it: int(side · long / short)."""
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    resized = np.asarray(Pillow.fromarray(image).resize(size, Pillow.Resampling.BICUBIC), dtype=np.float32) / 255
    left, top = (size[0] - 224) // 2, (size[1] - 224) // 2
    found = clip_input(image, 224)[0, 0] * 0.26862954 + 0.48145466
    assert np.allclose(found, resized[top : top + 224, left : left + 224, 0], atol=1e-6)


def test_the_whole_scorer_runs_on_tiny_networks_and_says_what_it_saw(folder: Path, clip: Path) -> None:
    options = {"weights": str(folder), "colors": str(clip), "threshold": 0.001, "clip_low": None}
    scorer = GenEvalScorer(**options)
    with pytest.raises(Exception, match="on a blank picture it saw"):  # with such a threshold it sees anything
        make_ready(scorer)
    scorer._detector._sides = (64, 128)  # type: ignore[attr-defined]  # a small input, for the time it takes
    image = np.random.default_rng(3).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    row = {"tag": "colors", "include": [{"class": "dog", "count": 1, "color": "red"}]}
    (score,) = ask(scorer, [Question(image, "", row)])
    assert score.error is None
    assert score.detail is not None
    assert GenEvalScorer(**options).info.revision == scorer.info.revision
    assert GenEvalScorer(**{**options, "threshold": 0.3}).info.revision != scorer.info.revision


def test_the_libraries_that_compute_a_verdict_are_part_of_the_revision() -> None:
    both = {"detector": "shapes", "colors": "folder"}
    for options in ({"detector": "mask2former"}, both):
        assert set(GenEvalScorer(**options).libraries()) >= {"transformers", "pillow"}
    assert list(GenEvalScorer(detector="shapes").libraries()) == []


@pytest.mark.parametrize(
    ("options", "message"), [({}, "holds no Mask2Former"), ({"weights": "/nowhere"}, "`/nowhere`")]
)
def test_without_weights_the_scorer_does_not_serve(options: dict[str, str], message: str) -> None:
    with pytest.raises(Exception, match=message):
        make_ready(GenEvalScorer(**options))
