"""Votes to a number per sample: a Bradley–Terry fit inside each group, in which a like is a win over the group's bar.

P(i beats j) = σ(u_i − u_j), and P(i is liked) = σ(u_i − b): one likelihood for pairs, likes and clicks. A normal prior
of variance 1/`prior` on every u and on b keeps what never loses finite, and joins what was never compared.
Source: Bradley and Terry, Biometrika 39 (1952); for the penalty, `choix.opt_pairwise`, which the tests compare with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tdm_r1.rewards.counted import COUNTED

Floats = npt.NDArray[np.float64]
BAR: Final = -1
"""Stands for the bar of the group among winners and losers."""
Duel = tuple[int, int, float]
"""Winner, loser, weight: positions inside the group, or `BAR`."""


@dataclass(frozen=True)
class Fit:
    """Of n samples."""

    value: Floats
    """[n] logits above the bar; above the group's mean where nobody gave likes."""
    deviation: Floats
    """[n] of u, by the curvature at the maximum (Laplace)."""


def fit(count: int, duels: Sequence[Duel], prior: float) -> Fit:
    """The maximum of Σ w·log σ(u_winner − u_loser) − prior/2·(Σ u² + b²), by Newton's method in a trust region.

    Args:
        count: samples of the group.
        duels: who beat whom; a like is (sample, BAR), a dislike (BAR, sample).
        prior: inverse variance, above 0: then the maximum exists, and is one.
    """
    from scipy.optimize import minimize

    won, lost = (np.array([duel[side] for duel in duels], dtype=np.int64) % (count + 1) for side in (0, 1))
    weight = np.array([duel[2] for duel in duels], dtype=np.float64)
    identity = prior * np.eye(count + 1)

    def objective(u: Floats) -> tuple[float, Floats]:
        margin = u[won] - u[lost]
        slope = weight * _sigmoid(-margin)
        gradient = prior * u
        np.add.at(gradient, won, -slope)
        np.add.at(gradient, lost, slope)
        return float(weight @ np.logaddexp(0.0, -margin) + 0.5 * prior * u @ u), gradient

    def hessian(u: Floats) -> Floats:
        chance = _sigmoid(u[won] - u[lost])
        curve, found = weight * chance * (1 - chance), identity.copy()
        for rows, columns, sign in ((won, won, 1), (lost, lost, 1), (won, lost, -1), (lost, won, -1)):
            np.add.at(found, (rows, columns), sign * curve)
        return found

    start = np.zeros(count + 1)
    u = minimize(objective, start, jac=True, hess=hessian, method="trust-exact", options={"gtol": 1e-10}).x
    liked = bool(np.any(won == count) or np.any(lost == count))
    deviation = np.sqrt(np.diag(np.linalg.inv(hessian(u))))
    return Fit(u[:count] - (u[count] if liked else 0.0), deviation[:count])


def _sigmoid(x: Floats) -> Floats:
    found: Floats = 0.5 * (1.0 + np.tanh(0.5 * x))
    return found


def evidence(votes: pa.Table, samples: pa.Table) -> dict[str, dict[str, Any]]:
    """What the counted votes say of each sample's group, by sample, as JSON values.

    Of a click log, what was clicked beats all that was passed over in the same impression and group; one click has a
    weight of 1 in all.

    Args:
        votes: of a `Feedback`.
        samples: its samples.

    Returns:
        `index` of the sample in its group, `count` of the group, and `duels`, the same for all of a group.
    """
    place, group = _places(samples)
    counted = votes.filter(pc.equal(votes["fate"], COUNTED))
    duels: dict[int, dict[tuple[int, int], float]] = {}
    for first, second, weight in _duels(counted, group):
        number = group[first or second or ""]
        pair = tuple(BAR if name is None else place[name] for name in (first, second))
        own = duels.setdefault(number, {})
        own[pair[0], pair[1]] = own.get((pair[0], pair[1]), 0.0) + weight
    sizes: dict[int, int] = {}
    for number in group.values():
        sizes[number] = sizes.get(number, 0) + 1
    listed = {n: [[*pair, weight] for pair, weight in sorted(duels.get(n, {}).items())] for n in sizes}
    return {
        name: {"index": place[name], "count": sizes[number], "duels": listed[number]} for name, number in group.items()
    }


def _places(samples: pa.Table) -> tuple[dict[str, int], dict[str, int]]:
    """Position inside its group, and number of the group, by sample."""
    place: dict[str, int] = {}
    group: dict[str, int] = {}
    seen: dict[int, int] = {}
    for name, number in zip(samples["sample_id"].to_pylist(), samples["group"].to_pylist(), strict=True):
        group[name], place[name] = number, seen.get(number, 0)
        seen[number] = place[name] + 1
    return place, group


def _duels(votes: pa.Table, group: Mapping[str, int]) -> list[tuple[str | None, str | None, float]]:
    """Winner, loser and weight of everything that was counted, added up; None is the bar."""
    found: list[tuple[str | None, str | None, float]] = []
    plain = votes.filter(pc.not_equal(votes["kind"], "click"))
    columns = ["sample_id", "other_id", "verdict"]
    for row in plain.group_by(columns, use_threads=False).aggregate([([], "count_all")]).to_pylist():
        pair = (row["sample_id"], row["other_id"]) if row["verdict"] else (row["other_id"], row["sample_id"])
        found.append((*pair, float(row["count_all"])))
    return found + _click_duels(votes.filter(pc.equal(votes["kind"], "click")), group)


def _click_duels(clicks: pa.Table, group: Mapping[str, int]) -> list[tuple[str | None, str | None, float]]:
    """Each clicked sample against those that its rater passed over in the same impression and group."""
    numbers = pa.array([str(group[name]) for name in clicks["sample_id"].to_pylist()], pa.string())
    rater = pc.fill_null(clicks["rater"], "")
    shown = pc.binary_join_element_wise(rater, clicks["impression"], numbers, "\x1f")
    clicks = clicks.append_column("shown", shown)
    clicked, passed = (
        clicks.filter(pc.equal(clicks["verdict"], pa.scalar(flag))).select(["shown", "sample_id"])
        for flag in (True, False)
    )
    rest = passed.group_by("shown", use_threads=False).aggregate([([], "count_all")])
    both = clicked.join(passed.rename_columns(["shown", "loser"]), "shown", join_type="inner", use_threads=False)
    both = both.join(rest, "shown", use_threads=False)
    both = both.append_column("weight", pc.divide(1.0, both["count_all"].cast(pa.float64())))
    rows = both.group_by(["sample_id", "loser"], use_threads=False).aggregate([("weight", "sum")]).to_pylist()
    return [(row["sample_id"], row["loser"], row["weight_sum"]) for row in rows]


def judged(duels: Sequence[Duel]) -> set[int]:
    """Positions of the samples of which somebody said anything."""
    return {place for winner, loser, _ in duels for place in (winner, loser)} - {BAR}


def cyclic(duels: Sequence[Duel]) -> bool:
    """Whether somebody's chain of pairs comes back to where it began."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    edges = [(winner, loser) for winner, loser, _ in duels if BAR not in (winner, loser)]
    if not edges:
        return False
    size = 1 + max(max(edge) for edge in edges)
    rows, columns = zip(*edges, strict=True)
    graph = coo_array((np.ones(len(edges)), (rows, columns)), shape=(size, size))
    count, _ = connected_components(graph, connection="strong")
    return bool(count < size)


def counts(index: int, duels: Sequence[Duel]) -> Mapping[str, float]:
    """Likes, dislikes, and duels won and lost, of one sample."""
    found = dict.fromkeys(("likes", "dislikes", "won", "lost"), 0.0)
    for winner, loser, weight in duels:
        if winner == index:
            found["likes" if loser == BAR else "won"] += weight
        elif loser == index:
            found["dislikes" if winner == BAR else "lost"] += weight
    return found
