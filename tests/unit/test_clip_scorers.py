"""Claims about the scorers that are a CLIP and a formula, on tiny random networks of the same classes: no value here
is a score of anything.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import conv2d, gelu, layer_norm, multi_head_attention_forward, normalize

from tdm_r1.config import RewardConfig, ScorerConfig
from tdm_r1.errors import ConfigError, ScorerError
from tdm_r1.rewards.ask import Question, ask, make_ready
from tdm_r1.rewards.clip_convert import convert_open_clip
from tdm_r1.rewards.clip_scorers import ClipScorer
from tdm_r1.rewards.judges import Judges
from tdm_r1.rewards.protocol import Image
from tdm_r1.rewards.registry import open_scorer
from tests.support import tdm_r1
from tests.tiny_clip import HEADS, JOINT, LAYERS, PATCH, POSITIONS, SIDE, WIDTH, WORDS, write_clip
from tests.unit.test_scorers import BAD

PROMPTS = ("a photo of a dog", "a red car", "a photo of a dog", "blue cat")
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip"))


def pictures(count: int, side: int = SIDE) -> list[Image]:
    rng = np.random.default_rng(1)
    return [rng.integers(0, 256, (side, side, 3), dtype=np.uint8) for _ in range(count)]


def opened(name: str, clip: Path, **options: Any) -> ClipScorer:
    scorer = open_scorer(name, {"weights": str(clip), **options})
    assert isinstance(scorer, ClipScorer)
    make_ready(scorer)
    return scorer


def cosines(clip: Path, images: list[Image], prompts: tuple[str, ...]) -> tuple[Tensor, float, Tensor]:
    """By transformers alone: the matrix of logits of all pairs, whose diagonal is what a scorer may use."""
    from transformers import AutoTokenizer, CLIPModel

    model, tokenizer = CLIPModel.from_pretrained(clip).eval(), AutoTokenizer.from_pretrained(clip)
    pixels = torch.tensor(np.stack(images)).permute(0, 3, 1, 2) / 255
    pixels = (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    with torch.inference_mode():
        out = model(pixel_values=pixels, **tokenizer(list(prompts), padding=True, return_tensors="pt"))
    scale = model.logit_scale.exp().item()
    return out.logits_per_image / scale, scale, out.image_embeds


def values(scorer: ClipScorer, images: list[Image], prompts: tuple[str, ...]) -> Tensor:
    scores = ask(scorer, [Question(*pair, {}) for pair in zip(images, prompts, strict=True)])
    assert [score.error for score in scores] == [None] * len(scores)
    return torch.tensor([score.value for score in scores])


@pytest.mark.parametrize("batch", [1, 4])
def test_each_picture_is_compared_with_its_own_prompt_by_the_published_formula(clip: Path, batch: int) -> None:
    images = pictures(4)
    matrix, scale, _ = cosines(clip, images, PROMPTS)
    own = matrix.diagonal()
    assert not torch.allclose(own, matrix.mean(1), atol=1e-3)  # or a cross product would not be noticed
    expected = {
        ("pickscore", ""): scale * own,
        ("hpsv2", ""): own,
        ("clipscore", "clipscore"): 2.5 * own.clamp(min=0),
        ("clipscore", "percent"): 100 * own.clamp(min=0),
        ("clipscore", "cosine"): own,
    }
    for (name, kind), wanted in expected.items():
        options = {"kind": kind} if kind else {}
        found = values(opened(name, clip, batch=batch, **options), images, PROMPTS)
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_alone_and_in_any_order_a_picture_keeps_its_value_to_the_last_bit(clip: Path) -> None:
    section = ScorerConfig(options={"weights": str(clip)})
    judges = Judges(RewardConfig(scorers={"pickscore": section}, workers=0))
    asked = [Question(*pair, {}) for pair in zip(pictures(4), PROMPTS, strict=True)]
    together = [score.value for score in judges.score("pickscore", asked)]
    assert None not in together
    assert [score.value for question in asked for score in judges.score("pickscore", [question])] == together
    assert [score.value for score in judges.score("pickscore", asked[::-1])][::-1] == together
    assert judges.scorers["pickscore"].info.batch == 1
    assert judges.scorers["pickscore"].info.deterministic
    assert not opened("pickscore", clip, batch=2).info.deterministic


def test_the_prefix_stands_before_every_prompt(clip: Path) -> None:
    images = pictures(1)
    long = values(opened("clipscore", clip, kind="cosine"), images, ("a photo depicts a dog",))
    torch.testing.assert_close(
        values(opened("clipscore", clip, kind="cosine", prefix="a photo depicts "), images, ("a dog",)), long
    )


def test_a_prompt_that_is_longer_than_the_network_is_cut_and_not_an_error(clip: Path) -> None:
    images, long = pictures(1), " ".join(["dog"] * 200)
    exact = " ".join(["dog"] * (POSITIONS - 2))
    found = values(opened("pickscore", clip), images * 2, (long, exact))
    assert found[0] == found[1]


def test_the_short_side_of_a_picture_is_fitted_and_its_centre_taken(clip: Path) -> None:
    wide = pictures(1, 64)[0][:32]
    square = np.ascontiguousarray(wide[:, 16:48])
    found = values(opened("pickscore", clip), [wide, square], (PROMPTS[0],) * 2)
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("name", ["pickscore", "clipscore", "hpsv2"])
def test_a_bad_picture_costs_its_own_row(clip: Path, name: str) -> None:
    good = Question(pictures(1)[0], "a dog", {})
    before, *bad, after = ask(
        opened(name, clip, batch=32), [good, *(Question(p, "", {}) for p, _ in BAD.values()), good]
    )
    assert before.value is not None
    assert before.value == after.value
    assert [score.value for score in bad] == [None] * len(BAD)


def layers_of(state: dict[str, Tensor]) -> nn.Sequential:
    sizes = (JOINT, 24, 12, 6, 4, 1)
    linear = [nn.Linear(*pair) for pair in pairwise(sizes)]
    drop = [nn.Dropout(0.2), nn.Dropout(0.2), nn.Dropout(0.1)]
    order = [linear[0], drop[0], linear[1], drop[1], linear[2], drop[2], linear[3], linear[4]]
    network = nn.Sequential(*order).eval()
    state.update({f"layers.{name}": tensor for name, tensor in network.state_dict().items()})
    return network


def test_the_folded_head_gives_what_the_five_layers_give(clip: Path, tmp_path: Path) -> None:
    state: dict[str, Tensor] = {}
    network = layers_of(state)
    torch.save(state, tmp_path / "head.pth")
    head = tmp_path / "head.safetensors"
    assert tdm_r1("scorer", "convert", "aesthetic", str(tmp_path / "head.pth"), "--out", str(head)) == 0
    assert sum(tensor.numel() for tensor in load_file(head).values()) == JOINT + 1
    images = pictures(3)
    embedding = normalize(cosines(clip, images, PROMPTS[:3])[2], dim=-1)
    with torch.inference_mode():
        expected = network(embedding)[:, 0]
    found = values(opened("aesthetic", clip, head=str(head)), images, PROMPTS[:3])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def open_clip_state() -> dict[str, Tensor]:
    """Random weights under open_clip's names."""
    torch.manual_seed(3)
    shapes: dict[str, tuple[int, ...]] = {
        "logit_scale": (), "text_projection": (WIDTH, JOINT), "positional_embedding": (POSITIONS, WIDTH),
        "token_embedding.weight": (len(WORDS), WIDTH), "visual.class_embedding": (WIDTH,),
        "visual.proj": (WIDTH, JOINT), "visual.conv1.weight": (WIDTH, 3, PATCH, PATCH),
        "visual.positional_embedding": ((SIDE // PATCH) ** 2 + 1, WIDTH),
    }  # fmt: skip
    norms = ["ln_final", "visual.ln_pre", "visual.ln_post"]
    for tower in ("", "visual."):
        for block in (f"{tower}transformer.resblocks.{n}" for n in range(LAYERS)):
            norms += [f"{block}.ln_1", f"{block}.ln_2"]
            for name, rows, columns in (
                ("attn.in_proj_", 3 * WIDTH, WIDTH), ("attn.out_proj.", WIDTH, WIDTH),
                ("mlp.c_fc.", 4 * WIDTH, WIDTH), ("mlp.c_proj.", WIDTH, 4 * WIDTH),
            ):  # fmt: skip
                shapes |= {f"{block}.{name}weight": (rows, columns), f"{block}.{name}bias": (rows,)}
    shapes |= {f"{name}.{kind}": (WIDTH,) for name in norms for kind in ("weight", "bias")}
    return {name: torch.randn(shape) * 0.4 for name, shape in shapes.items()}


def tower(state: dict[str, Tensor], prefix: str, x: Tensor, mask: Tensor | None) -> Tensor:
    """open_clip's transformer written out: [L, D] to [L, D]."""
    for n in range(LAYERS):
        start = f"{prefix}transformer.resblocks.{n}."
        block = {name.removeprefix(start): tensor for name, tensor in state.items() if name.startswith(start)}
        y = layer_norm(x, (WIDTH,), block["ln_1.weight"], block["ln_1.bias"])
        out, _ = multi_head_attention_forward(
            y, y, y, WIDTH, HEADS, block["attn.in_proj_weight"], block["attn.in_proj_bias"], None, None, False, 0.0,
            block["attn.out_proj.weight"], block["attn.out_proj.bias"], training=False, attn_mask=mask,
        )  # fmt: skip
        x = x + out
        y = layer_norm(x, (WIDTH,), block["ln_2.weight"], block["ln_2.bias"])
        y = gelu(y @ block["mlp.c_fc.weight"].T + block["mlp.c_fc.bias"])
        x = x + y @ block["mlp.c_proj.weight"].T + block["mlp.c_proj.bias"]
    return x


def open_clip_cosine(state: dict[str, Tensor], image: Image, tokens: list[int]) -> float:
    pixels = (torch.tensor(image).permute(2, 0, 1) / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(
        3, 1, 1
    )
    patches = conv2d(pixels[None], state["visual.conv1.weight"], stride=PATCH)[0].flatten(1).T
    x = torch.cat([state["visual.class_embedding"][None], patches]) + state["visual.positional_embedding"]
    x = layer_norm(x, (WIDTH,), state["visual.ln_pre.weight"], state["visual.ln_pre.bias"])
    x = tower(state, "visual.", x, None)[0]
    seen = layer_norm(x, (WIDTH,), state["visual.ln_post.weight"], state["visual.ln_post.bias"]) @ state["visual.proj"]
    y = state["token_embedding.weight"][tokens] + state["positional_embedding"][: len(tokens)]
    y = tower(state, "", y, torch.full((len(tokens),) * 2, -torch.inf).triu(1))
    y = layer_norm(y, (WIDTH,), state["ln_final.weight"], state["ln_final.bias"])
    said = y[-1] @ state["text_projection"]
    return float(normalize(seen, dim=0) @ normalize(said, dim=0))


def test_a_converted_checkpoint_gives_what_open_clip_computes(clip: Path, tmp_path: Path) -> None:
    state = open_clip_state()
    torch.save({"epoch": 1, "state_dict": state}, tmp_path / "hps.pt")
    checkpoint, out = str(tmp_path / "hps.pt"), str(tmp_path / "hps")
    assert tdm_r1("scorer", "convert", "hpsv2", checkpoint, "--like", str(clip), "--out", out) == 0
    (image,) = pictures(1)
    found = values(opened("hpsv2", tmp_path / "hps"), [image], ("a red car",))
    tokens = [WORDS.index(word) for word in ("<start>", "a", "red", "car", "<end>")]
    assert found.item() == pytest.approx(open_clip_cosine(state, image, tokens), abs=1e-5)


def test_a_checkpoint_that_does_not_fit_is_refused(clip: Path, tmp_path: Path, capsys: Any) -> None:
    state = open_clip_state()
    with pytest.raises(ConfigError, match=r"`visual\.head` is no weight"):
        convert_open_clip({**state, "visual.head": torch.zeros(1)})
    state.pop("ln_final.bias")
    torch.save(state, tmp_path / "hps.pt")
    (tmp_path / "text.pt").write_text("<html>")
    out = ("--out", str(tmp_path / "out"))
    for kind, file, like in (("hpsv2", "hps.pt", clip), ("hpsv2", "text.pt", clip), ("hpsv2", "hps.pt", tmp_path)):
        assert tdm_r1("scorer", "convert", kind, str(tmp_path / file), "--like", str(like), *out) == 2
    assert tdm_r1("scorer", "convert", "aesthetic", str(tmp_path / "hps.pt"), *out) == 2
    assert tdm_r1("scorer", "convert", "best", str(tmp_path / "hps.pt"), *out) == 2
    shown = capsys.readouterr().err
    assert "ln_final" in shown or "final_layer_norm" in shown
    assert "cannot be read as tensors" in shown


def test_a_golden_picture_of_another_value_keeps_a_scorer_from_serving(clip: Path, tmp_path: Path) -> None:
    from PIL import Image as Pillow

    (image,) = pictures(1)
    Pillow.fromarray(image).save(tmp_path / "golden.png")
    value = values(opened("pickscore", clip), [image], ("a dog",)).item()
    options = {"golden": str(tmp_path / "golden.png"), "golden_prompt": "a dog"}
    opened("pickscore", clip, golden_value=value, **options)
    with pytest.raises(ScorerError, match="the golden picture scored"):
        opened("pickscore", clip, golden_value=value * 1.1, **options)


def test_what_is_missing_is_named_by_its_option(clip: Path, tmp_path: Path) -> None:
    with pytest.raises(ScorerError, match="holds no CLIP; the option `weights`"):
        make_ready(open_scorer("pickscore", {"weights": str(tmp_path)}))
    with pytest.raises(ScorerError, match="the option `head` names the affine head"):
        make_ready(open_scorer("aesthetic", {"weights": str(clip)}))


def test_other_weights_are_another_revision(clip: Path, tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(JOINT), "bias": torch.zeros(1)}, tmp_path / "a.safetensors")
    save_file({"weight": torch.ones(JOINT), "bias": torch.zeros(1)}, tmp_path / "b.safetensors")
    found = {opened("aesthetic", clip, head=str(tmp_path / f"{name}.safetensors")).info.revision for name in "ab"}
    assert len(found) == 2
