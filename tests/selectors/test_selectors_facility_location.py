"""Facility location against the definition: naive greedy, exact sums, and the best set of all."""

from __future__ import annotations

from itertools import combinations
from math import e

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from selectors_cases import RNG, check_allowance, check_order, evidence, points, room, rows, scores, shuffled

from backcast.errors import InputError
from backcast.selectors import Allowance, Evidence, select
from backcast.selectors.greedy import Useful
from backcast.selectors.methods.facility_location import (
    Cover,
    Dense,
    FacilityLocation,
    Sparse,
    benefits,
    default_neighbours,
    lazy_greedy,
    stochastic_greedy,
)
from backcast.vectors import Features, neighbour_graph


def value(benefit: np.ndarray, weights: np.ndarray, chosen: list[int]) -> float:
    """f(S), straight from its formula."""
    return float(weights @ benefit[chosen].astype(np.float64).max(axis=0)) if chosen else 0.0


def lazily(benefit: np.ndarray, weights: np.ndarray, budget: int) -> tuple[list[int], np.ndarray]:
    """The lazy picks, and their gains as shares of f of all."""
    p = len(weights)
    cover = Cover(Dense(benefit), weights)
    picks, gains = lazy_greedy(cover, Allowance.of(budget, p), np.arange(p))
    return picks, gains / (cover.total or 1)


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
    picks, gains = lazily(*problem, budget)
    naive, naive_gains = naive_greedy(*problem, budget)
    assert picks == naive
    whole = value(*problem, list(range(len(problem[1]))))
    np.testing.assert_array_equal(gains, np.array(naive_gains) / (whole or 1))


@pytest.mark.parametrize("quality", [0, 1, 2.0, 3.5])
def test_lazy_is_naive_greedy_on_real_evidence(quality: float) -> None:
    pool = evidence(80, d=5)
    chosen = FacilityLocation(quality).select(pool, room(30, pool), RNG)
    order, benefit, weights = problem_of(pool, quality)
    naive, gains = naive_greedy(benefit, weights, 30)
    assert chosen.indices[: len(naive)].tolist() == order[naive].tolist()
    np.testing.assert_array_equal(
        chosen.gains[: len(naive)], np.array(gains) / value(benefit, weights, list(range(len(order))))
    )


def problem_of(pool: Evidence, quality: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    useful = Useful.of(pool, quality, "a test")
    return useful.places, benefits(useful.features.points(), useful.quality), useful.quality


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5), st.sampled_from([0.0, 1.0, 2.0]))
def test_greedy_reaches_its_share_of_the_best_set_of_all(seed: int, budget: int, quality: float) -> None:
    pool = evidence(10, d=3, seed=seed)
    _, benefit, weights = problem_of(pool, quality)
    budget = min(budget, len(weights))
    picks, gains = lazily(benefit, weights, budget)
    best = max(value(benefit, weights, list(s)) for s in combinations(range(len(weights)), budget))
    reached = value(benefit, weights, picks)
    assert reached >= (1 - 1 / e) * best
    assert reached == pytest.approx(
        gains.sum() * value(benefit, weights, list(range(len(weights)))), rel=1e-12
    )


def test_the_benefit_is_its_formula_to_the_stated_rounding() -> None:
    x = points(1100, 16)  # more than two blocks
    weights = np.random.default_rng(0).random(1100)
    made = benefits(Features.of(x).points(), weights)
    exact = weights[:, None] * np.maximum(x.astype(np.float64) @ x.T.astype(np.float64), 0)
    assert np.abs(made - exact).max() < 2e-3
    assert np.sqrt(np.mean((made - exact) ** 2)) < 2e-4


def test_no_order_of_summation_changes_a_bit() -> None:
    x, rng = Features.of(points(700, 256)).points(), np.random.default_rng(1)
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
    check_order(FacilityLocation(), seed, d=64)


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
    chosen = FacilityLocation().select(pool, room(30, pool), RNG)
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


@pytest.mark.parametrize("quality", [-1, float("nan"), float("inf")])
def test_a_quality_out_of_range_is_refused(quality: float) -> None:
    with pytest.raises(InputError, match="must be a number from 0 up"):
        select(rows(4), 1, "facility_location", features=points(4, 2), quality=quality)


@pytest.mark.parametrize(
    "params", [{"epsilon": 1}, {"epsilon": -0.1}, {"neighbours": 0}, {"neighbours": 2.5}]
)
def test_a_parameter_out_of_range_is_refused(params: dict[str, float]) -> None:
    with pytest.raises(InputError, match=f"facility_location: {next(iter(params))}="):
        select(rows(4), 1, "facility_location", features=points(4, 2), **params)


def test_a_graph_of_all_neighbours_is_the_dense_kernel() -> None:
    pool = evidence(120, d=6, seed=3)
    useful = Useful.of(pool, 2.0, "a test")
    p = len(useful)
    dense = lazily(benefits(useful.features.points(), useful.quality), useful.quality, 40)
    cover = Cover(Sparse(neighbour_graph(useful.features, p), useful.quality), useful.quality)
    picks, gains = lazy_greedy(cover, Allowance.of(40, p), np.arange(p))
    assert picks == dense[0]
    np.testing.assert_array_equal(gains / cover.total, dense[1])


@pytest.mark.parametrize("noise", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("weighed", [False, True])
def test_the_default_graph_comes_within_one_per_cent_of_the_dense_objective(
    noise: float, weighed: bool
) -> None:
    rng = np.random.default_rng(0)
    n, k = 1500, 75
    x = rng.normal(size=(60, 64))[rng.integers(0, 60, n)] + noise * rng.normal(size=(n, 64))
    weights = np.rint(rng.random(n) ** 2 * 2**20) / 2**20 if weighed else np.ones(n)
    features = Features.of(x)
    benefit = benefits(features.points(), weights)
    best = value(benefit, weights, lazily(benefit, weights, k)[0])
    graph = neighbour_graph(features, default_neighbours(n, k))
    picks, _ = lazy_greedy(Cover(Sparse(graph, weights), weights), Allowance.of(k, n), np.arange(n))
    assert value(benefit, weights, picks) >= 0.99 * best
    few, _ = lazy_greedy(
        Cover(Sparse(neighbour_graph(features, 2), weights), weights), Allowance.of(k, n), np.arange(n)
    )
    assert value(benefit, weights, few) < value(benefit, weights, picks)  # so the bar is one


def test_past_the_limit_it_goes_by_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = evidence(300, d=8, seed=5)
    dense = FacilityLocation(neighbours=300).select(pool, room(40, pool), RNG)
    monkeypatch.setattr("backcast.selectors.methods.facility_location.LIMIT", 50)
    p = len(Useful.of(pool, 2.0, "a test"))
    sparse = FacilityLocation(neighbours=p).select(pool, room(40, pool), RNG)
    assert sparse.indices.tolist() == dense.indices.tolist()
    np.testing.assert_array_equal(sparse.gains, dense.gains)
    other = FacilityLocation(neighbours=4).select(shuffled(pool, 1), room(40, pool), RNG)
    mine = FacilityLocation(neighbours=4).select(pool, room(40, pool), RNG)
    assert mine.rows.ids == other.rows.ids != dense.rows.ids


def test_stochastic_picks_are_the_best_of_their_draws_and_near_the_greedy_value() -> None:
    pool = evidence(400, d=8, seed=2)
    _, benefit, weights = problem_of(pool, 0)
    greedy_value = value(benefit, weights, lazily(benefit, weights, 20)[0])
    reached = []
    for seed in range(10):
        cover = Cover(Dense(benefit), weights)
        draws = np.random.PCG64(seed).random_raw(30)  # the first pick's
        rng = np.random.Generator(np.random.PCG64(seed))
        picks, gains = stochastic_greedy(cover, Allowance.of(20, 400), np.arange(400), 30, rng)
        assert picks[0] == max(
            sorted({int(d % 400) for d in draws}), key=lambda j: value(benefit, weights, [j])
        )
        assert len(set(picks)) == 20
        assert gains.sum() == pytest.approx(value(benefit, weights, picks), rel=1e-12)
        reached.append(gains.sum())
    assert np.mean(reached) >= 0.95 * greedy_value
    assert len(set(reached)) > 1


def test_stochastic_draws_hang_on_the_seed_alone() -> None:
    pool = evidence(200, d=8)
    picks = {
        seed: [
            select_seeded(FacilityLocation(epsilon=0.1), p, 30, seed).rows.ids
            for p in (pool, shuffled(pool, 4))
        ]
        for seed in (0, 1)
    }
    assert picks[0][0] == picks[0][1] != picks[1][0] == picks[1][1]


def select_seeded(method: FacilityLocation, pool: Evidence, k: int, seed: int):
    return method.select(pool, room(k, pool), np.random.Generator(np.random.PCG64(seed)))


@pytest.mark.parametrize("epsilon", [0.0, 0.2])
def test_no_pick_breaks_the_allowance(epsilon: float) -> None:
    check_allowance(FacilityLocation(epsilon=epsilon), np.random.Generator(np.random.PCG64(1)))


def peers_problem() -> tuple[np.ndarray, np.ndarray]:
    x = Features.of(points(150, 16, seed=9)).points()
    return x, benefits(x, np.ones(len(x)))


def test_submodlib_picks_the_same() -> None:
    submodlib = pytest.importorskip("submodlib")
    _, kernel = peers_problem()
    peer = submodlib.FacilityLocationFunction(n=150, mode="dense", sijs=kernel, separate_rep=False)
    theirs = peer.maximize(budget=30, optimizer="LazyGreedy", show_progress=False)
    picks, gains = lazily(kernel, np.ones(150), 30)
    assert picks == [j for j, _ in theirs]
    np.testing.assert_allclose(gains * kernel.max(axis=0).sum(), [gain for _, gain in theirs], rtol=1e-5)


def test_apricot_picks_the_same() -> None:
    apricot = pytest.importorskip("apricot")
    _, kernel = peers_problem()
    peer = apricot.FacilityLocationSelection(30, metric="precomputed", optimizer="lazy").fit(
        kernel.astype(np.float64)
    )
    assert lazily(kernel, np.ones(150), 30)[0] == peer.ranking.tolist()
