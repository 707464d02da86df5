"""Claims about ImageReward's code path on a tiny random BLIP: no value here is a score of anything."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d, gelu, layer_norm, linear, multi_head_attention_forward

from tdm_r1.errors import ConfigError, ScorerError
from tdm_r1.rewards.ask import Question, ask, make_ready
from tdm_r1.rewards.imagereward import MEAN, STD, TOKENS, blip_large, convert_imagereward, convert_names
from tdm_r1.rewards.protocol import Image
from tdm_r1.rewards.registry import open_scorer
from tests.support import tdm_r1
from tests.tiny_clip import WORDS, write_tokenizer
from tests.unit.test_clip_scorers import MEAN as PIXEL_MEAN
from tests.unit.test_clip_scorers import STD as PIXEL_STD

WIDTH, TEXT, HEADS, LAYERS, SIDE, PATCH, POSITIONS = 16, 12, 2, 2, 32, 16, 40
State = dict[str, Tensor]


def tiny() -> Any:
    config = blip_large()
    shared = {"num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
    for section, values in (
        (config.vision_config, {**shared, "hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "image_size": SIDE}),
        (
            config.text_config,
            {
                **shared,
                "hidden_size": TEXT,
                "intermediate_size": 4 * TEXT,
                "encoder_hidden_size": WIDTH,
                "vocab_size": len(WORDS),
                "max_position_embeddings": POSITIONS,
            },
        ),
    ):
        for name, value in values.items():
            setattr(section, name, value)
    return config


def weights() -> State:
    """Random weights under the names of ImageReward's checkpoint."""
    torch.manual_seed(4)
    found: State = {}

    def add(name: str, *shape: int, bias: bool = True) -> None:
        found[f"{name}.weight"] = torch.randn(*shape) * 0.4
        if bias:
            found[f"{name}.bias"] = torch.randn(shape[0]) * 0.4

    vision, text = "blip.visual_encoder", "blip.text_encoder"
    found[f"{vision}.cls_token"] = torch.randn(1, 1, WIDTH)
    found[f"{vision}.pos_embed"] = torch.randn(1, (SIDE // PATCH) ** 2 + 1, WIDTH)
    add(f"{vision}.patch_embed.proj", WIDTH, 3, PATCH, PATCH)
    add(f"{vision}.norm", WIDTH)
    for block in (f"{vision}.blocks.{n}" for n in range(LAYERS)):
        for name, *shape in (("norm1", WIDTH), ("norm2", WIDTH), ("attn.qkv", 3 * WIDTH, WIDTH),
                             ("attn.proj", WIDTH, WIDTH), ("mlp.fc1", 4 * WIDTH, WIDTH),
                             ("mlp.fc2", WIDTH, 4 * WIDTH)):  # fmt: skip
            add(f"{block}.{name}", *shape)
    found[f"{text}.embeddings.position_ids"] = torch.arange(POSITIONS)[None]
    add(f"{text}.embeddings.word_embeddings", len(WORDS), TEXT, bias=False)
    add(f"{text}.embeddings.position_embeddings", POSITIONS, TEXT, bias=False)
    add(f"{text}.embeddings.LayerNorm", TEXT)
    for layer in (f"{text}.encoder.layer.{n}" for n in range(LAYERS)):
        for kind, source in (("attention", TEXT), ("crossattention", WIDTH)):
            add(f"{layer}.{kind}.self.query", TEXT, TEXT)
            add(f"{layer}.{kind}.self.key", TEXT, source)
            add(f"{layer}.{kind}.self.value", TEXT, source)
            add(f"{layer}.{kind}.output.dense", TEXT, TEXT)
            add(f"{layer}.{kind}.output.LayerNorm", TEXT)
        add(f"{layer}.intermediate.dense", 4 * TEXT, TEXT)
        add(f"{layer}.output.dense", TEXT, 4 * TEXT)
        add(f"{layer}.output.LayerNorm", TEXT)
    for number, (columns, rows) in zip((0, 2, 4, 6, 7), pairwise((TEXT, 9, 7, 5, 3, 1)), strict=True):
        add(f"mlp.layers.{number}", rows, columns)
    return found


def reward(state: State, image: Image, words: list[str]) -> float:
    """ImageReward written out from its checkpoint's names, without padding: [L, D] throughout."""

    def get(name: str) -> tuple[Tensor, Tensor]:
        return state[f"{name}.weight"], state[f"{name}.bias"]

    def norm(x: Tensor, name: str, eps: float) -> Tensor:
        return layer_norm(x, x.shape[-1:], *get(name), eps)

    def attend(x: Tensor, y: Tensor, parts: list[tuple[Tensor, Tensor]], out: tuple[Tensor, Tensor]) -> Tensor:
        (q, bq), (k, bk), (v, bv) = parts
        return multi_head_attention_forward(
            x, y, y, x.shape[-1], HEADS, None, torch.cat([bq, bk, bv]), None, None, False, 0.0, *out, training=False,
            use_separate_proj_weight=True, q_proj_weight=q, k_proj_weight=k, v_proj_weight=v,
        )[0]  # fmt: skip

    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (PIXEL_MEAN, PIXEL_STD))
    pixels = (torch.tensor(image).permute(2, 0, 1) / 255 - mean) / std
    vision, text = "blip.visual_encoder", "blip.text_encoder"
    patches = conv2d(pixels[None], *get(f"{vision}.patch_embed.proj"), stride=PATCH)[0].flatten(1).T
    x = torch.cat([state[f"{vision}.cls_token"][0], patches]) + state[f"{vision}.pos_embed"][0]
    for block in (f"{vision}.blocks.{n}" for n in range(LAYERS)):
        y = norm(x, f"{block}.norm1", 1e-6)
        weight, bias = get(f"{block}.attn.qkv")
        x = x + attend(y, y, list(zip(weight.chunk(3), bias.chunk(3), strict=True)), get(f"{block}.attn.proj"))
        y = gelu(linear(norm(x, f"{block}.norm2", 1e-6), *get(f"{block}.mlp.fc1")))
        x = x + linear(y, *get(f"{block}.mlp.fc2"))
    seen = norm(x, f"{vision}.norm", 1e-6)
    tokens = [WORDS.index(word) for word in ("<start>", *words, "<end>")]
    embeddings = f"{text}.embeddings"
    x = state[f"{embeddings}.word_embeddings.weight"][tokens]
    x = norm(x + state[f"{embeddings}.position_embeddings.weight"][: len(tokens)], f"{embeddings}.LayerNorm", 1e-12)
    for layer in (f"{text}.encoder.layer.{n}" for n in range(LAYERS)):
        for kind, source in (("attention", None), ("crossattention", seen)):
            parts = [get(f"{layer}.{kind}.self.{part}") for part in ("query", "key", "value")]
            out = attend(x, x if source is None else source, parts, get(f"{layer}.{kind}.output.dense"))
            x = norm(x + out, f"{layer}.{kind}.output.LayerNorm", 1e-12)
        y = linear(gelu(linear(x, *get(f"{layer}.intermediate.dense"))), *get(f"{layer}.output.dense"))
        x = norm(x + y, f"{layer}.output.LayerNorm", 1e-12)
    value = x[0]
    for number in (0, 2, 4, 6, 7):
        value = linear(value, *get(f"mlp.layers.{number}"))
    return (value.item() - MEAN) / STD


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("imagereward")
    torch.save(weights(), folder / "ImageReward.pt")
    write_tokenizer(folder / "tokenizer")
    convert_imagereward(folder / "ImageReward.pt", folder / "tokenizer", folder / "out", tiny())
    return folder


@pytest.mark.parametrize("batch", [1, 3])
def test_a_converted_checkpoint_gives_what_the_checkpoint_computes_pair_by_pair(converted: Path, batch: int) -> None:
    rng = np.random.default_rng(2)
    images = [rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8) for _ in range(3)]
    prompts = ["a red car", "a photo of a dog", "blue cat"]
    scorer = open_scorer("imagereward", {"weights": str(converted / "out"), "batch": batch})
    make_ready(scorer)
    scores = ask(scorer, [Question(*pair, {}) for pair in zip(images, prompts, strict=True)])
    expected = [reward(weights(), image, prompt.split()) for image, prompt in zip(images, prompts, strict=True)]
    assert len({round(value, 3) for value in expected}) == 3
    assert [score.value for score in scores] == pytest.approx(expected, abs=1e-4)


def test_a_prompt_is_cut_at_35_tokens(converted: Path) -> None:
    scorer = open_scorer("imagereward", {"weights": str(converted / "out")})
    make_ready(scorer)
    image = np.zeros((SIDE, SIDE, 3), np.uint8)
    whole, cut, short = (" ".join(["dog"] * count) for count in (33, 200, 32))
    values = [score.value for score in ask(scorer, [Question(image, prompt, {}) for prompt in (whole, cut, short)])]
    assert values[0] == values[1] != values[2]


def test_a_checkpoint_that_does_not_fit_is_refused(converted: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no weight of ImageReward"):
        convert_names({"blip.visual_encoder.head.weight": torch.zeros(1)})
    state = weights()
    for name in ("blip.text_encoder.embeddings.LayerNorm.bias", "mlp.layers.6.weight"):
        torch.save({key: value for key, value in state.items() if key != name}, tmp_path / "short.pt")
        with pytest.raises(ConfigError, match=r"missing or left over|do not fit"):
            convert_imagereward(tmp_path / "short.pt", converted / "tokenizer", tmp_path / "out", tiny())


def test_a_checkpoint_that_is_not_there_is_called_no_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert tdm_r1("scorer", "convert", "imagereward", str(tmp_path / "none.pt"), "--out", str(tmp_path / "out")) == 2
    assert "none.pt` is no file" in capfd.readouterr().err.replace("\n", "")


def test_a_folder_without_a_head_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ScorerError, match=r"holds no head\.safetensors"):
        make_ready(open_scorer("imagereward", {"weights": str(tmp_path)}))


def test_the_mean_and_the_deviation_are_those_of_the_authors() -> None:
    """The other tests compute with the same names, so they would follow a wrong digit."""
    assert (MEAN, STD, TOKENS) == (0.16717790611, 1.0333394966, 35)
