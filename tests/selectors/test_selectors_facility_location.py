"""Facility location against the definition: naive greedy, exact sums, and the best set of all."""

from __future__ import annotations

from itertools import combinations
from math import e

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from selectors_cases import RNG, evidence, points, rows, scores, shuffled

from backcast.errors import InputError
from backcast.selectors import Evidence, select
from backcast.selectors.methods.facility_location import LIMIT, FacilityLocation, benefits, lazy_greedy


def value(benefit: np.ndarray, weights: np.ndarray, chosen: list[int]) -> float:
    """f(S), straight from its formula."""
    return float(weights @ benefit[chosen].astype(np.float64).max(axis=0)) if chosen else 0.0


def naive_greedy(benefit: np.ndarray, weights: np.ndarray, budget: int) -> tuple[list[int], list[float]]:
    chosen: list[int] = []
    gains: list[float] = []
    for _ in range(min(budget, len(benefit))):
        now = value(benefit, weights, chosen)
        gain = {
            j: value(benefit, weights, [*chosen, j]) - now for j in range(len(benefit)) if j not in chosen
        }
        pick = max(gain, key=lambda j: (gain[j], -j))
        if gain[pick] == 0:
            break
        chosen.append(pick)
        gains.append(gain[pick])
    return chosen, gains


@st.composite
def problems(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Small numbers on a grid: exact sums and many ties."""
    p = draw(st.integers(1, 9))
    grid = st.integers(0, 4).map(lambda v: v / 4)
    benefit = draw(arrays(np.float32, (p, p), elements=grid))
    weights = draw(arrays(np.float64, p, elements=grid))
    return benefit, weights


@settings(max_examples=200, deadline=None)
@given(problems(), st.integers(1, 9))
def test_lazy_is_naive_greedy_ties_and_gains_included(
    problem: tuple[np.ndarray, np.ndarray], budget: int
) -> None:
    picks, gains = lazy_greedy(*problem, budget)
    naive, naive_gains = naive_greedy(*problem, budget)
    assert picks.tolist() == naive
    whole = value(*problem, list(range(len(problem[1]))))
    np.testing.assert_array_equal(gains, np.array(naive_gains) / (whole or 1))


@pytest.mark.parametrize("quality", [0, 1, 2.0, 3.5])
def test_lazy_is_naive_greedy_on_real_evidence(quality: float) -> None:
    pool = evidence(80, d=5)
    chosen = FacilityLocation(quality).select(pool, 30, RNG)
    order, benefit, weights = problem_of(pool, quality)
    naive, gains = naive_greedy(benefit, weights, 30)
    assert chosen.indices[: len(naive)].tolist() == order[naive].tolist()
    np.testing.assert_array_equal(
        chosen.gains[: len(naive)], np.array(gains) / value(benefit, weights, list(range(len(order))))
    )


def problem_of(pool: Evidence, quality: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    assert pool.features is not None
    weights = FacilityLocation(quality)._weights(pool)
    order = pool.ranked(pool.best)
    order = order[weights[order] > 0]
    return order, benefits(pool.features[order], weights[order]), weights[order]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5), st.sampled_from([0.0, 1.0, 2.0]))
def test_greedy_reaches_its_share_of_the_best_set_of_all(seed: int, budget: int, quality: float) -> None:
    pool = evidence(10, d=3, seed=seed)
    _, benefit, weights = problem_of(pool, quality)
    budget = min(budget, len(weights))
    picks, gains = lazy_greedy(benefit, weights, budget)
    best = max(value(benefit, weights, list(s)) for s in combinations(range(len(weights)), budget))
    reached = value(benefit, weights, picks.tolist())
    assert reached >= (1 - 1 / e) * best
    assert reached == pytest.approx(
        gains.sum() * value(benefit, weights, list(range(len(weights)))), rel=1e-12
    )


def test_the_benefit_is_its_formula_to_the_stated_rounding() -> None:
    x = points(1100, 16)  # more than two blocks
    weights = np.random.default_rng(0).random(1100)
    made = benefits(x, weights)
    exact = weights[:, None] * np.maximum(x.astype(np.float64) @ x.T.astype(np.float64), 0)
    assert np.abs(made - exact).max() < 2e-3
    assert np.sqrt(np.mean((made - exact) ** 2)) < 2e-4


def test_no_order_of_summation_changes_a_bit() -> None:
    x, rng = points(700, 256), np.random.default_rng(1)
    weights = np.rint(rng.random(700) * 2**20) / 2**20
    made = benefits(x, weights)
    columns, order = rng.permutation(256), rng.permutation(700)
    again = benefits(x[order][:, columns], weights[order])  # other sums inside, other places in the blocks
    np.testing.assert_array_equal(again, made[np.ix_(order, order)])
    totals = made.astype(np.float64) @ weights
    np.testing.assert_array_equal(made[:, order].astype(np.float64) @ weights[order], totals)
    in_integers = np.rint(made * 2.0**18).astype(np.int64) @ np.rint(weights * 2**20).astype(np.int64)
    np.testing.assert_array_equal(totals * 2.0**38, in_integers)


def test_equal_examples_tie_and_go_by_score_then_id() -> None:
    x = np.repeat(points(1, 32), 4, axis=0)
    pool = rows(4, ids=["d", "c", "b", "a"])
    chosen = select(pool, 4, "facility_location", features=x)
    assert list(chosen.rows.ids) == ["a", "b", "c", "d"]
    assert chosen.gains.tolist() == [1, 0, 0, 0]
    chosen = select(scores([[1], [3], [2], [3]], pool), 4, "facility_location", features=x)
    assert list(chosen.rows.ids) == ["a", "c", "b", "d"]


@pytest.mark.parametrize("seed", range(5))
def test_the_order_of_the_pool_does_not_matter(seed: int) -> None:
    pool = evidence(200, d=64, seed=seed)
    other = shuffled(pool, seed)
    mine, theirs = (FacilityLocation().select(p, 60, RNG) for p in (pool, other))
    assert mine.rows.ids == theirs.rows.ids
    np.testing.assert_array_equal(mine.gains, theirs.gains)


def test_a_small_budget_is_diverse_and_clean() -> None:
    """Four clusters that help, and outliers that do not: plain facility location falls for the outliers."""
    rng = np.random.default_rng(0)
    centres = np.eye(32)[:4]
    helpful = centres[np.arange(40) % 4] + 0.1 * rng.normal(size=(40, 32))
    outliers = rng.normal(size=(40, 32))
    outliers[:, :4] = 0
    x = np.concatenate([helpful, outliers])
    value = np.concatenate([np.full(40, 0.5), np.full(40, 0.05)])[:, None] + 0.01 * rng.random((80, 1))
    chosen = select(scores(value), 20, "facility_location", features=x).indices
    assert set(chosen[:4] % 4) == {0, 1, 2, 3}
    assert (chosen < 40).all()
    plain = select(scores(value), 20, "facility_location", features=x, quality=0).indices
    assert (plain >= 40).sum() >= 10


def test_harmful_examples_come_last_and_gain_nothing() -> None:
    pool = evidence(30, m=1)
    chosen = FacilityLocation().select(pool, 30, RNG)
    assert sorted(chosen.indices.tolist()) == list(range(30))
    harmful = pool.best[chosen.indices] <= 0
    assert 0 < harmful.sum() < 30
    assert harmful[-harmful.sum() :].all()
    assert (chosen.gains[harmful] == 0).all()
    assert (np.diff(pool.best[chosen.indices][harmful]) <= 0).all()
    assert chosen.gains.sum() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("values", [np.zeros((6, 2)), -np.ones((6, 2))])
def test_where_nothing_helps_it_is_the_order_of_scores(values: np.ndarray) -> None:
    values = values - np.arange(6)[:, None]
    chosen = select(scores(values), 3, "facility_location", features=points(6, 4))
    assert chosen.indices.tolist() == [0, 1, 2]
    assert chosen.gains.tolist() == [0, 0, 0]


def test_an_example_without_gradient_is_never_wanted() -> None:
    x = points(6, 4)
    x[2] = 0
    chosen = select(rows(6), 6, "facility_location", features=x)
    assert chosen.indices[-1] == 2 or chosen.gains[chosen.indices.tolist().index(2)] == 0


def test_the_largest_pool_is_said_before_it_is_tried() -> None:
    n = LIMIT + 1
    with pytest.raises(InputError, match=f"{n} examples of positive quality, at most {LIMIT}"):
        select(rows(n), 10, "facility_location", features=np.ones((n, 2)))


@pytest.mark.parametrize("quality", [-1, float("nan"), float("inf")])
def test_a_quality_out_of_range_is_refused(quality: float) -> None:
    with pytest.raises(InputError, match="must be a number from 0 up"):
        select(rows(4), 1, "facility_location", features=points(4, 2), quality=quality)
