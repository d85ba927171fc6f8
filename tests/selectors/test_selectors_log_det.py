"""log_det against determinants in float64, the naive greedy, and a peer."""

from __future__ import annotations

from itertools import combinations
from math import e

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from selectors_cases import RNG, check_allowance, check_order, evidence, points, room, rows, scores

from backcast.errors import InputError
from backcast.selectors import Evidence, select
from backcast.selectors.greedy import Useful
from backcast.selectors.methods.log_det import LogDet


def kernel_of(pool: Evidence, ridge: float, quality: float) -> tuple[Useful, np.ndarray]:
    """The useful examples, and diag(q) (cos + δ I) diag(q) in float64."""
    useful = Useful.of(pool, quality, "a test")
    x = useful.features.points().astype(np.float64)
    return useful, useful.quality[:, None] * (x @ x.T + ridge * np.eye(len(x))) * useful.quality


def volume(kernel: np.ndarray, chosen: list[int]) -> float:
    return float(np.linalg.slogdet(kernel[np.ix_(chosen, chosen)])[1])


def naive(kernel: np.ndarray, k: int) -> list[int]:
    chosen: list[int] = []
    for _ in range(k):
        left = [j for j in range(len(kernel)) if j not in chosen]
        chosen.append(max(left, key=lambda j: volume(kernel, [*chosen, j])))
    return chosen


@pytest.mark.parametrize("ridge", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("quality", [0, 1.0])
@pytest.mark.parametrize("ahead", [3, 2048])
def test_it_is_naive_greedy_also_past_the_rank(
    ridge: float, quality: float, ahead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backcast.selectors.greedy.AHEAD", ahead)
    monkeypatch.setattr("backcast.selectors.greedy.BLOCK", 20)
    pool = evidence(60, d=8, seed=2)
    useful, kernel = kernel_of(pool, ridge, quality)
    picks = naive(kernel, 25)
    chosen = LogDet(ridge, quality).select(pool, room(25, pool), RNG)
    assert chosen.indices.tolist() == useful.places[picks].tolist()
    volumes = [volume(kernel, picks[:t]) for t in range(1, 26)]
    np.testing.assert_allclose(chosen.gains.cumsum(), volumes, atol=2e-4)


def test_rounding_does_not_pile_up_over_many_picks() -> None:
    pool = Evidence.of(rows(600), points(600, 12, seed=3))
    useful, kernel = kernel_of(pool, 0.1, 0)
    chosen = LogDet().select(pool, room(500, pool), RNG)
    place = {int(i): j for j, i in enumerate(useful.places)}
    picks = [place[int(i)] for i in chosen.indices]
    steps = np.diff([volume(kernel, picks[:t]) for t in range(480, 501)])
    np.testing.assert_allclose(chosen.gains[480:], steps, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5))
def test_greedy_reaches_its_share_of_the_best_set_where_the_objective_is_monotone(seed: int, k: int) -> None:
    pool = evidence(9, d=3, seed=seed)
    useful, kernel = kernel_of(pool, 1.0, 0)  # every eigenvalue at least one, about
    best = max(volume(kernel, list(s)) for s in combinations(range(9), k))
    place = useful.places.tolist()
    picks = [place.index(i) for i in LogDet(1.0, 0).select(pool, room(k, pool), RNG).indices]
    assert volume(kernel, picks) >= (1 - 1 / e) * best - 1e-9


def test_quality_and_diversity_both_count() -> None:
    x = np.eye(8)[[0, 0, 1, 1, 2]] + 0.01
    values = np.array([[0.9], [1.0], [0.8], [0.7], [0.01]])
    pool = Evidence.of(scores(values), x)
    picks = LogDet(quality=1.0).select(pool, room(5, pool), RNG).indices
    assert picks[:2].tolist() == [1, 2]  # the best, then another direction, before the second best
    assert picks[-1] == 4  # a direction of its own, and no quality


@pytest.mark.parametrize("seed", range(4))
def test_the_order_of_the_pool_does_not_matter(seed: int) -> None:
    check_order(LogDet(), seed)


def test_no_pick_breaks_the_allowance() -> None:
    check_allowance(LogDet())


def test_submodlib_picks_the_same() -> None:
    submodlib = pytest.importorskip("submodlib")
    pool = Evidence.of(rows(120), points(120, 16, seed=9))
    useful, _ = kernel_of(pool, 0, 0)
    x = useful.features.points().astype(np.float64)
    peer = submodlib.LogDeterminantFunction(n=120, mode="dense", lambdaVal=0.5, sijs=x @ x.T)
    theirs = peer.maximize(budget=30, optimizer="NaiveGreedy", show_progress=False)
    chosen = LogDet(ridge=0.5).select(pool, room(30, pool), RNG)
    assert chosen.indices.tolist() == useful.places[[j for j, _ in theirs]].tolist()
    np.testing.assert_allclose(chosen.gains, [gain for _, gain in theirs], atol=1e-4)


@pytest.mark.parametrize("params", [{"ridge": 0}, {"ridge": 2}, {"ridge": float("nan")}, {"quality": -1}])
def test_a_parameter_out_of_range_is_refused(params: dict[str, float]) -> None:
    with pytest.raises(InputError, match=f"log_det: {next(iter(params))}="):
        select(rows(4), 1, "log_det", features=points(4, 2), **params)
