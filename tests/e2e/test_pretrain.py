"""Claims about training an embedded world from nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusion3Pipeline

from tdm_r1.pretrain.words import WordsPlan, pretrain_words

pytestmark = pytest.mark.slow


def test_pretraining_words_twice_gives_the_same_bytes_and_stock_diffusers_draws_with_them(tmp_path: Path) -> None:
    plan = WordsPlan(seed=3).shortened(1)
    told: list[str] = []
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    for name in ("once", "again"):
        pretrain_words(tmp_path / name, plan, told.append)
    torch.set_num_threads(before)
    files = [path.relative_to(tmp_path / "once") for path in sorted((tmp_path / "once").rglob("*")) if path.is_file()]
    assert {"transformer", "vae", "text_encoder", "tokenizer"} <= {path.parts[0] for path in files}
    different = [
        path for path in files if (tmp_path / "once" / path).read_bytes() != (tmp_path / "again" / path).read_bytes()
    ]
    assert different == []
    assert any("loss" in line for line in told)
    pipeline = StableDiffusion3Pipeline.from_pretrained(tmp_path / "once", text_encoder_3=None, tokenizer_3=None)
    drawn = pipeline('"AB" in white on navy', num_inference_steps=2, guidance_scale=1.0, max_sequence_length=0).images
    assert drawn[0].size == (64, 64)
