"""Claims about the guard, with its real weights on pictures that are safe."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image as Pillow

from tdm_r1.rewards.ask import Question, ask, make_ready
from tdm_r1.rewards.registry import open_scorer
from tests.unit.test_scorers import BAD


def test_safe_pictures_are_far_from_the_threshold_and_bad_ones_are_errors() -> None:
    scorer = open_scorer("nsfw")
    make_ready(scorer)
    file = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    photo = np.asarray(Pillow.open(file).convert("RGB"))
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    rows = [Question(picture, "", {}) for picture in (photo, noise, *(bad for bad, _ in BAD.values()))]
    first, second, *errors = ask(scorer, rows)
    assert first.value == pytest.approx(0.0, abs=0.2)
    assert second.value == pytest.approx(0.0, abs=0.2)
    assert first.value != second.value
    assert [score.value for score in errors] == [None] * len(BAD)
    assert (scorer.info.higher_is_better, len(scorer.info.revision)) == (False, 64)
