"""importance: the tilt, the law of the draw, and what the weights make unbiased."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from selectors_cases import evidence, room, rows, scores, shuffled

from backcast.errors import InputError
from backcast.selectors import Allowance, Evidence, select
from backcast.selectors.draws import exact_sum, gumbel, spread
from backcast.selectors.methods.importance import Importance, target_distribution, tilt


def generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


@pytest.mark.parametrize("effective", [1.5, 20, 500, 4999])
@pytest.mark.parametrize("law", ["normal", "exponential", "standard_cauchy"])
def test_a_tilt_has_the_effective_size_that_was_asked(law: str, effective: float) -> None:
    values = getattr(np.random.default_rng(0), law)(size=5000)
    weights = tilt(values, effective)
    assert weights.sum() ** 2 / (weights**2).sum() == pytest.approx(effective, rel=0.01)
    steep = np.diff(np.log(weights[weights > 1e-200])) / np.diff(values[weights > 1e-200])
    np.testing.assert_allclose(steep, np.median(steep), rtol=1e-6)  # an exponential of the scores
    assert np.median(steep) > 0


def test_a_tilt_at_its_ends() -> None:
    values = np.array([0.0, 1, 2, 2])
    np.testing.assert_array_equal(tilt(values, 4), 1)
    np.testing.assert_array_equal(tilt(values, 1), [0, 0, 1, 1])
    np.testing.assert_array_equal(tilt(np.ones(3), 1), 1)


def test_the_target_is_a_mixture_of_the_groups_by_weight() -> None:
    values = np.random.default_rng(1).normal(size=(300, 3))
    pool = Evidence.of(scores(values), groups=("a", "b", "a"), weights={"b": 3.0})
    a, b = (
        tilt(pool.by_group[:, 0].astype(float), 30),
        tilt(values[:, 1].astype(np.float32).astype(float), 30),
    )
    p = target_distribution(pool, 30)
    np.testing.assert_allclose(p, a / a.sum() / 4 + 3 * b / b.sum() / 4, rtol=1e-6)
    assert p.sum() == pytest.approx(1, abs=1e-9)


def test_what_one_group_wants_is_drawn_though_the_other_does_not() -> None:
    values = np.zeros((400, 2))
    values[:20] = [1, -1]
    values[20:40] = [-1, 1]
    chosen = select(scores(values), 40, "importance", seed=0, effective=0.05).indices
    assert sorted(chosen.tolist()) == list(range(40))


def chance(p: np.ndarray, order: tuple[int, ...]) -> float:
    """Of drawing these one after the other, by the definition."""
    left, found = float(p.sum()), 1.0
    for i in order:
        found *= p[i] / left
        left -= p[i]
    return found


def test_it_draws_one_after_the_other_in_proportion_to_p() -> None:
    pool = Evidence.of(scores(np.array([[0.0], [0.5], [1], [2]])))
    method, rng, times = Importance(effective=0.6), generator(0), 3000
    p = target_distribution(pool, 0.6 * 4)
    counts = dict.fromkeys(permutations(range(4), 2), 0)
    for _ in range(times):
        counts[tuple(method.select(pool, room(2, pool), rng).indices.tolist())] += 1
    for order, count in counts.items():
        expected = chance(p, order)
        assert abs(count / times - expected) < 4.5 * np.sqrt(expected / times)


def test_weighted_means_are_unbiased_and_bare_ones_are_not() -> None:
    """The mean over 4,000 draws, against Σ p f, in its own standard errors."""
    values = np.random.default_rng(2).normal(size=(12, 1))
    pool = Evidence.of(scores(values))
    p, rng = target_distribution(pool, 5), generator(1)
    f = np.stack([values[:, 0], np.random.default_rng(3).normal(size=12), np.ones(12)])
    method = Importance(effective=5 / 12, weighted=True)
    draws = [method.select(pool, room(6, pool), rng) for _ in range(4000)]
    assert all(drawn.weights is not None for drawn in draws)

    def off(means: list[np.ndarray]) -> np.ndarray:
        errors = np.std(means, axis=0) / np.sqrt(len(means))
        return (np.mean(means, axis=0) - f @ p) / np.maximum(errors, 1e-12)

    weighted = off([(f[:, drawn.indices] * drawn.weights).mean(axis=1) for drawn in draws])
    assert np.abs(weighted).max() < 3.5
    bare = off([f[:, drawn.indices].mean(axis=1) for drawn in draws])
    assert np.abs(bare[:2]).max() > 20


def test_weights_of_the_whole_pool_are_its_probabilities() -> None:
    pool = evidence(9)
    chosen = Importance(effective=0.4, weighted=True).select(pool, room(9, pool), generator(0))
    p = target_distribution(pool, 0.4 * 9)
    np.testing.assert_allclose(chosen.weights, 9 * p[chosen.indices], rtol=1e-12)
    np.testing.assert_allclose(chosen.gains, np.log(9 * p[chosen.indices]), atol=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_the_order_of_the_pool_does_not_matter(seed: int) -> None:
    pool = evidence(200, seed=seed)
    other = shuffled(pool, seed)
    mine, theirs = (Importance(weighted=True).select(p, room(30, p), generator(seed)) for p in (pool, other))
    assert mine.rows.ids == theirs.rows.ids
    np.testing.assert_array_equal(mine.gains, theirs.gains)
    np.testing.assert_array_equal(mine.weights, theirs.weights)


def test_for_one_target_distribution_a_larger_budget_contains_a_smaller_one() -> None:
    pool = scores(np.random.default_rng(0).normal(size=(80, 2)))
    whole = select(pool, 80, "importance", seed=3, effective=0.2).indices.tolist()
    assert sorted(whole) == list(range(80))
    assert select(pool, 11, "importance", seed=3, effective=0.2).indices.tolist() == whole[:11]


def test_bounds_and_costs_hold() -> None:
    pool = evidence(60)
    costs = np.random.default_rng(0).integers(1, 9, 60).astype(float)
    allowance = Allowance(costs, 90, pool.rows.sources, {"a": 50}, {"b": 20})
    chosen = Importance().select(pool, allowance, generator(2)).indices
    spent = {s: costs[[i for i in chosen if pool.rows.sources[i] == s]].sum() for s in "ab"}
    assert spent["b"] <= 20
    assert 50 <= spent["a"] <= 90 - spent["b"]


def test_noise_and_sums_are_what_they_say() -> None:
    pool = Evidence(rows(40_000))
    noise = gumbel(pool, generator(0))
    assert np.mean(noise) == pytest.approx(np.euler_gamma, abs=0.03)
    assert np.var(noise) == pytest.approx(np.pi**2 / 6, abs=0.07)
    values = np.random.default_rng(0).random(100_000)
    assert exact_sum(values) == exact_sum(values[::-1]) == exact_sum(np.sort(values))
    assert exact_sum(values) == pytest.approx(values.sum(), abs=1e-6)
    assert spread(7 * values - 3) == pytest.approx(7 * values.std(), rel=1e-6)
    assert spread(np.ones(4)) == 1


@pytest.mark.parametrize("effective", [0, -1, 1.01, float("nan")])
def test_a_share_out_of_range_is_refused(effective: float) -> None:
    with pytest.raises(InputError, match="share of the pool above 0 and at most 1"):
        Importance(effective)


def test_it_needs_scores() -> None:
    with pytest.raises(InputError, match="importance needs scores"):
        select(rows(5), 2, "importance")
