"""Graph cut against its formula, the naive greedy, the best set of all, and two peers."""

from __future__ import annotations

from itertools import combinations
from math import e

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from selectors_cases import RNG, check_allowance, check_order, evidence, points, room, rows

from backcast.errors import InputError
from backcast.selectors import Evidence, select
from backcast.selectors.greedy import Useful
from backcast.selectors.methods.graph_cut import GraphCut


def kernel_of(pool: Evidence, quality: float) -> tuple[Useful, np.ndarray]:
    """The useful examples, and w_i s_ij w_j in float64."""
    useful = Useful.of(pool, quality, "a test")
    x = useful.features.points().astype(np.float64)
    return useful, useful.quality[:, None] * (1 + x @ x.T) / 2 * useful.quality


def value(kernel: np.ndarray, balance: float, chosen: list[int]) -> float:
    return float(balance * kernel[:, chosen].sum() - kernel[np.ix_(chosen, chosen)].sum())


def naive(kernel: np.ndarray, balance: float, k: int) -> list[int]:
    chosen: list[int] = []
    for _ in range(k):
        left = [j for j in range(len(kernel)) if j not in chosen]
        chosen.append(max(left, key=lambda j: (value(kernel, balance, [*chosen, j]), -j)))
    return chosen


@pytest.mark.parametrize("balance", [0.05, 0.5, 2.0])
@pytest.mark.parametrize("quality", [0, 2.0])
@pytest.mark.parametrize("ahead", [3, 2048])
def test_it_is_naive_greedy(
    balance: float, quality: float, ahead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backcast.selectors.greedy.AHEAD", ahead)
    monkeypatch.setattr("backcast.selectors.greedy.BLOCK", 20)
    pool = evidence(60, d=6, seed=2)
    useful, kernel = kernel_of(pool, quality)
    picks = naive(kernel, balance, 20)
    chosen = GraphCut(balance, quality).select(pool, room(20, pool), RNG)
    assert chosen.indices.tolist() == useful.places[picks].tolist()
    whole = useful.quality.sum()
    sums = [value(kernel, balance, picks[:t]) / whole for t in range(1, 21)]
    np.testing.assert_allclose(chosen.gains.cumsum(), sums, rtol=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5))
def test_greedy_reaches_its_share_of_the_best_set_of_all(seed: int, k: int) -> None:
    pool = evidence(9, d=3, seed=seed)
    _, kernel = kernel_of(pool, 0)
    place = Useful.of(pool, 0, "a test").places.tolist()
    best = max(value(kernel, 2.0, list(s)) for s in combinations(range(9), k))
    picks = [place.index(i) for i in GraphCut(2.0, 0).select(pool, room(k, pool), RNG).indices]
    assert value(kernel, 2.0, picks) >= (1 - 1 / e) * best


def test_the_smaller_the_balance_the_less_alike_are_the_picks() -> None:
    x = points(300, 8)
    alike = []
    for balance in (0.02, 0.2, 2.0):
        chosen = x[select(rows(300), 20, "graph_cut", features=x, balance=balance).indices]
        alike.append((chosen @ chosen.T).mean())
    assert alike[0] < alike[1] < alike[2]


@pytest.mark.parametrize("seed", range(4))
def test_the_order_of_the_pool_does_not_matter(seed: int) -> None:
    check_order(GraphCut(0.2), seed)


def test_no_pick_breaks_the_allowance() -> None:
    check_allowance(GraphCut())


def test_submodlib_picks_the_same() -> None:
    submodlib = pytest.importorskip("submodlib")
    pool = Evidence.of(rows(120), points(120, 16, seed=9))
    useful, kernel = kernel_of(pool, 0)
    for balance in (2.0, 4.0):  # theirs is Σ s − λ Σ s, ours λ Σ s − Σ s
        peer = submodlib.GraphCutFunction(n=120, mode="dense", lambdaVal=1 / balance, ggsijs=kernel)
        theirs = peer.maximize(budget=30, optimizer="NaiveGreedy", show_progress=False)
        chosen = GraphCut(balance).select(pool, room(30, pool), RNG)
        assert chosen.indices.tolist() == useful.places[[j for j, _ in theirs]].tolist()
        gains = [balance * gain / 120 for _, gain in theirs]
        np.testing.assert_allclose(chosen.gains, gains, rtol=1e-4)


def test_apricot_picks_the_same() -> None:
    apricot = pytest.importorskip("apricot")
    pool = Evidence.of(rows(120), points(120, 16, seed=9))
    useful, kernel = kernel_of(pool, 0)
    peer = apricot.GraphCutSelection(30, metric="precomputed", alpha=2, optimizer="naive").fit(kernel)
    chosen = GraphCut(2.0).select(pool, room(30, pool), RNG)
    assert chosen.indices.tolist() == useful.places[peer.ranking].tolist()


@pytest.mark.parametrize("params", [{"balance": 0}, {"balance": float("nan")}, {"quality": -1}])
def test_a_parameter_out_of_range_is_refused(params: dict[str, float]) -> None:
    with pytest.raises(InputError, match=f"graph_cut: {next(iter(params))}="):
        select(rows(4), 1, "graph_cut", features=points(4, 2), **params)
