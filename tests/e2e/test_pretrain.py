"""Claims about training an embedded world from nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from diffusers import StableDiffusion3Pipeline

from tdm_r1.errors import ConfigError
from tdm_r1.pretrain.shapes import PretrainPlan, pretrain_shapes
from tdm_r1.pretrain.words import WordsPlan, pretrain_words
from tests.support import tree

pytestmark = pytest.mark.slow


def test_pretraining_words_twice_gives_the_same_bytes_and_stock_diffusers_draws_with_them(tmp_path: Path) -> None:
    plan = WordsPlan(seed=3).shortened(1)
    told: list[str] = []
    for name in ("once", "again"):
        pretrain_words(tmp_path / name, plan, told.append)
    once, again = (tree(tmp_path / name) for name in ("once", "again"))
    assert {"transformer", "vae", "text_encoder", "tokenizer"} <= {name.partition("/")[0] for name in once}
    assert once == again
    assert any("loss" in line for line in told)
    pipeline = StableDiffusion3Pipeline.from_pretrained(tmp_path / "once", text_encoder_3=None, tokenizer_3=None)
    drawn = pipeline('"AB" in white on navy', num_inference_steps=2, guidance_scale=1.0, max_sequence_length=0).images
    assert drawn[0].size == (64, 64)


class Killed(BaseException):
    """Stands for a signal: nothing catches it."""


def test_a_pretraining_killed_in_every_part_ends_in_the_bytes_of_one_that_was_not(tmp_path: Path) -> None:
    plan = PretrainPlan(seed=3).shortened(5)
    told: list[str] = []
    pretrain_shapes(tmp_path / "once", plan, told.append, every=3)
    for last in (
        "autoencoder step 4",
        "decoder kept at step 3",
        "teacher 0 kept at step 3",
        "teacher 1 kept at step 5",
    ):
        with pytest.raises(Killed):
            pretrain_shapes(tmp_path / "again", plan, _stop_at(last, told), every=3)
    with pytest.raises(ConfigError, match=r"(?s)seed=3.*expected.*seed=4"):
        pretrain_shapes(tmp_path / "again", PretrainPlan(seed=4).shortened(5), told.append)
    pretrain_shapes(tmp_path / "again", plan, told.append, every=3)
    for resumed in (
        "autoencoder goes on after step 3",
        "decoder goes on after step 3",
        "teacher 0 goes on after step 3",
    ):
        assert resumed in told
    assert tree(tmp_path / "once") == tree(tmp_path / "again")
    assert {path.name for path in tmp_path.iterdir()} == {"once", "again"}


def _stop_at(beginning: str, told: list[str]) -> Callable[[str], None]:
    def log(line: str) -> None:
        told.append(line)
        if line.startswith(beginning):
            raise Killed

    return log
