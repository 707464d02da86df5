"""The world `plane` away from any training: its geometry, its images, its rule."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from tdm_r1.errors import ConfigError
from tdm_r1.models.plane import PlaneBackbone, PlaneShape, class_codes, images_to_points, points_to_images
from tdm_r1.pretrain.plane import LABEL_NOISE, draw_points
from tdm_r1.rewards.plane import PlaneScorer
from tdm_r1.worlds.plane import LANDED, MODES, PlaneWorld, centre, right_modes


def test_a_point_survives_its_image_to_a_millionth() -> None:
    points = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0)) * 1.5
    found = images_to_points(points_to_images(points).numpy())
    assert np.abs(found - points.double().numpy()).max() < 1e-6


def test_a_point_outside_the_image_is_moved_to_its_edge() -> None:
    found = images_to_points(points_to_images(torch.tensor([[100.0, -100.0]])).numpy())
    assert found[0] == pytest.approx([8.0, -8.0], abs=2e-6)


def test_every_mode_belongs_to_two_classes_and_no_two_classes_share_both() -> None:
    pairs = [right_modes(number) for number in range(MODES)]
    assert set(Counter(mode for pair in pairs for mode in pair).values()) == {2}
    assert len({frozenset(pair) for pair in pairs}) == MODES


def test_landing_disks_of_neighbours_do_not_meet() -> None:
    assert math.dist(centre(0), centre(1)) > 2 * LANDED


@pytest.mark.parametrize(("mode", "offset", "expected"), [(2, 0.0, 1.0), (5, 0.29, 1.0), (5, 0.31, 0.0), (3, 0.0, 0.0)])
def test_only_a_landing_on_a_right_mode_is_rewarded(mode: int, offset: float, expected: float) -> None:
    x, y = centre(mode)
    image = points_to_images(torch.tensor([[x + offset, y]], dtype=torch.float64)).numpy()[0]
    score = PlaneScorer().score_one(image, "", {"modes": [2, 5]})
    assert score.value == expected
    assert dict(score.parts)["mode"] == mode
    assert dict(score.parts)["distance"] == pytest.approx(offset, abs=1e-5)


def test_labels_lie_as_often_as_is_said() -> None:
    points, codes = draw_points(20_000, torch.Generator().manual_seed(0))
    images, scorer = points_to_images(points).numpy(), PlaneScorer()
    told = codes.sum(1) > 0
    right = [
        scorer.score_one(image, "", {"modes": right_modes(int(code.argmax()))}).value == 1.0
        for image, code, known in zip(images, codes, told, strict=True)
        if known
    ]
    assert float(np.mean(right)) == pytest.approx(0.989 * (1 - LABEL_NOISE * (1 - 2 / MODES)), abs=0.015)


def test_prompts_of_both_splits_can_be_encoded_and_the_empty_one_is_no_class() -> None:
    codes = class_codes(["", *(row.text for row in PlaneWorld().prompts())], PlaneShape().classes)
    assert codes[0].sum() == 0
    assert codes[1:].sum(1).tolist() == [1.0] * 2 * MODES


def test_an_unknown_prompt_and_an_empty_folder_are_refused_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the prompts are class 0"):
        class_codes(["a red circle"], MODES)
    with pytest.raises(ConfigError, match="pretrain --world plane"):
        PlaneBackbone.open(tmp_path)
