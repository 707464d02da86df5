"""Claims about the Bradley–Terry fit and the scorer that reads it."""

from __future__ import annotations

import math

import choix
import numpy as np
import pyarrow as pa
import pytest

from tdm_r1.errors import ConfigError
from tdm_r1.presets import resolve
from tdm_r1.rewards.ask import Question, make_ready
from tdm_r1.rewards.judges import Judges
from tdm_r1.rewards.preferences import BAR, Duel, cyclic, evidence, fit
from tdm_r1.rewards.protocol import is_failure
from tdm_r1.rewards.votes import VOTES

DUELS: list[Duel] = [(0, 1, 3.0), (1, 0, 1.0), (1, 2, 2.0), (2, 0, 1.0), (3, BAR, 2.0), (BAR, 2, 1.0)]
NEVER_LOSES: list[Duel] = [(0, 1, 500.0)]


@pytest.mark.parametrize("prior", [0.1, 1.0, 4.0])
def test_the_fit_is_that_of_choix_with_the_bar_as_one_more_item(prior: float) -> None:
    data = [(w % 5, lost % 5) for w, lost, weight in DUELS for _ in range(int(weight))]
    expected = choix.opt_pairwise(5, data, alpha=prior / 2, method="BFGS", tol=1e-9)
    np.testing.assert_allclose(fit(4, DUELS, prior).value, expected[:4] - expected[4], atol=1e-5)


def test_a_sample_that_never_loses_stays_finite_and_more_votes_raise_it() -> None:
    many, one = fit(2, NEVER_LOSES, 1.0), fit(2, [(0, 1, 1.0)], 1.0)
    assert one.value[0] < many.value[0] < 10
    assert many.value[0] == pytest.approx(-many.value[1])
    assert many.deviation[0] < one.deviation[0] < 1


def test_a_cycle_is_found_and_leaves_equals() -> None:
    ring: list[Duel] = [(0, 1, 1.0), (1, 2, 1.0), (2, 0, 1.0)]
    assert cyclic(ring)
    assert not cyclic([*ring[:2], (0, 2, 1.0), (2, BAR, 1.0), (BAR, 0, 1.0)])
    np.testing.assert_allclose(fit(3, ring, 1.0).value, 0, atol=1e-8)


def table(rows: list[dict[str, object]]) -> pa.Table:
    full = [{"verdict": True, "source": "test", **row} for row in rows]
    found = pa.Table.from_pylist(full, schema=VOTES)
    return found.append_column("fate", pa.array([str(row.get("fate", "counted")) for row in rows]))


SAMPLES = pa.table({"sample_id": ["a", "b", "c", "x"], "group": [0, 0, 0, 7]})


def test_a_click_beats_what_was_passed_over_in_its_impression_and_group_only() -> None:
    shown = [("a", True, 1), ("b", False, 1), ("c", False, 1), ("x", False, 1), ("c", True, 2)]
    clicks = [{"kind": "click", "sample_id": s, "verdict": v, "impression": str(n), "rater": "r"} for s, v, n in shown]
    said = evidence(table(clicks), SAMPLES)
    assert said["a"] == {"index": 0, "count": 3, "duels": [[0, 1, 0.5], [0, 2, 0.5]]}
    assert said["x"] == {"index": 0, "count": 1, "duels": []}


def test_only_counted_votes_are_evidence() -> None:
    rows: list[dict[str, object]] = [
        {"kind": "like", "sample_id": "a"},
        {"kind": "like", "sample_id": "b", "verdict": False},
        {"kind": "pair", "sample_id": "a", "other_id": "b", "fate": "undone"},
        {"kind": "like", "sample_id": "c", "fate": "contradicted"},
    ]
    assert evidence(table(rows), SAMPLES)["c"]["duels"] == [[BAR, 1, 1.0], [0, BAR, 1.0]]


def test_a_sample_that_nobody_judged_has_no_reward_and_is_no_failure() -> None:
    config = resolve("shapes_smoke", {"reward.scorers": {"jpeg": {"weight": 0}, "feedback": {}}}).reward
    judges = Judges(config)
    make_ready(judges.scorers["feedback"])
    duels = [[BAR, 1, 1.0], [0, BAR, 1.0]]
    picture = np.zeros((8, 8, 3), np.uint8)
    asked = [Question(picture, "", {"feedback": {"index": n, "count": 3, "duels": duels}}) for n in range(3)]
    liked, disliked, unseen = judges.score("feedback", asked)
    assert liked.value is not None
    assert disliked.value == pytest.approx(-liked.value)
    assert (liked.part("likes"), disliked.part("dislikes")) == (1.0, 1.0)
    assert math.isfinite(liked.value)
    assert unseen.error is not None
    assert not is_failure(unseen.error)
    assert judges.tallies[-1].failed == 0


def test_a_run_that_could_not_be_measured_is_refused() -> None:
    with pytest.raises(ConfigError, match="nobody judges its images"):
        resolve("plane", {"reward.scorers": {"feedback": {}, "plane": {"weight": 0}}})
