"""Runs put together by n: one budget a size, or one a stretch where there are too many sizes."""

import math

import numpy as np
import pytest

from backcast.scaling.budgets import MOST, Budgets
from backcast.scaling.table import Observation


def dense(sizes: int, seeds: int = 1, noise: float = 0.0, se: float | None = None) -> list[Observation]:
    rng = np.random.default_rng(0)
    return [
        Observation(float(n), 2.0 - 0.1 * math.log(n) + noise * rng.standard_normal(), se=se)
        for n in np.geomspace(10, 20000, sizes)
        for _ in range(seeds)
    ]


def of(runs: list[Observation], sign: float = 1.0) -> Budgets:
    return Budgets.of(runs, sign, best=-math.inf)


def test_up_to_the_most_sizes_each_is_a_budget() -> None:
    runs = dense(MOST, seeds=3, noise=0.1)
    b = of(runs)
    values = np.array([run.value for run in runs]).reshape(MOST, 3)
    np.testing.assert_array_equal(b.n, [run.n for run in runs[::3]])
    np.testing.assert_allclose(b.mean, values.mean(axis=1), rtol=1e-14)
    np.testing.assert_array_equal(b.count, 3)
    np.testing.assert_allclose(b.scatter, values.var(axis=1) * 3, rtol=1e-12)
    np.testing.assert_array_equal(b.free, 2)
    assert b.seed_noise == pytest.approx(math.sqrt(values.var(axis=1, ddof=1).mean()), rel=1e-12)


@pytest.mark.parametrize("sizes", [MOST + 1, 60, 400])
def test_more_sizes_are_put_together_by_stretches(sizes: int) -> None:
    runs = dense(sizes, seeds=2, noise=0.05)
    b = of(runs)
    assert 0.5 * MOST < len(b) <= MOST
    assert (np.diff(b.n) > 0).all()
    # The ends stay what they are, a size of their own.
    assert (b.n[0], b.n[-1]) == (runs[0].n, runs[-1].n)
    assert (b.count[0], b.count[-1]) == (2, 2)
    np.testing.assert_allclose(b.mean[0], np.mean([run.value for run in runs[:2]]))
    np.testing.assert_allclose(b.mean[-1], np.mean([run.value for run in runs[-2:]]))
    # Nothing is lost, nothing counts twice.
    assert b.count.sum() == len(runs)
    assert (b.count * b.mean).sum() == pytest.approx(sum(run.value for run in runs), rel=1e-12)
    assert (b.count * b.log_n).sum() == pytest.approx(sum(math.log(run.n) for run in runs), rel=1e-12)


def test_stretches_are_of_equal_length_in_log_n_and_empty_ones_are_no_budgets() -> None:
    """Two clouds of sizes, far apart."""
    runs = [Observation(float(n), 1.0) for n in [*range(100, 130), *range(100000, 100030)]]
    b = of(runs)
    np.testing.assert_allclose(b.n, [100, math.exp(np.log(np.arange(101, 130)).mean()), b.n[2], 100029])
    np.testing.assert_array_equal(b.count, [1, 29, 29, 1])


def test_the_scatter_of_a_stretch_is_around_its_trend() -> None:
    """A curve that falls without noise has none, although its stretches' values differ; with noise, about that."""
    assert of(dense(200)).seed_noise < 1e-6
    b = of(dense(400, noise=0.05))
    runs = dense(400, noise=0.05)
    # Stretch by stretch, an ordinary least-squares line in log n.
    start = np.concatenate([[0], np.cumsum(b.count)])
    for k in range(len(b)):
        members = runs[start[k] : start[k + 1]]
        if len(members) > 2:
            x, y = np.log([run.n for run in members]), np.array([run.value for run in members])
            rest = y - np.polyval(np.polyfit(x, y, 1), x)
            assert b.scatter[k] == pytest.approx((rest**2).sum(), rel=1e-8)
            assert b.free[k] == len(members) - 2
    # Unbiased: within 4 standard errors of a standard deviation.
    assert b.seed_noise == pytest.approx(0.05, rel=4 / math.sqrt(2 * b.freedom))


def test_two_sizes_in_a_stretch_tell_no_noise_but_their_seeds_do() -> None:
    lone = of(dense(2 * (MOST - 2) + 2))
    assert set(lone.free) == {0}
    assert lone.seed_noise == 0.0
    seeds = of(dense(2 * (MOST - 2) + 2, seeds=3, noise=0.1))
    np.testing.assert_array_equal(seeds.free, np.where(seeds.count == 3, 2, seeds.count - 2))


def test_standard_errors_are_kept_where_runs_show_none() -> None:
    np.testing.assert_allclose(of(dense(5, se=0.03)).se, 0.03)
    np.testing.assert_array_equal(of(dense(5, seeds=2, se=0.03)).se, 0.0)
    np.testing.assert_array_equal(of(dense(5)).se, 0.0)
    given = [Observation(run.n, run.value, se=0.01 * (1 + k % 2)) for k, run in enumerate(dense(400))]
    b = of(given)
    inner = b.se[b.count % 2 == 0]
    assert len(inner) > 3
    np.testing.assert_allclose(inner, 0.01 * math.sqrt(2.5))  # root mean square of 0.01 and 0.02


def test_rows_in_any_order_and_either_direction_are_the_same_budgets() -> None:
    runs = dense(100, seeds=2, noise=0.1)
    shuffled = [runs[i] for i in np.random.default_rng(1).permutation(len(runs))]
    one, other = of(runs), of(shuffled)
    turned = of([Observation(run.n, -run.value) for run in shuffled], sign=-1.0)
    for name in ("n", "mean", "count", "scatter", "free", "se"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
        np.testing.assert_allclose(getattr(one, name), getattr(turned, name), rtol=1e-12, err_msg=name)


def test_unordered_rows_of_equal_runs_in_one_size_are_one_budget() -> None:
    b = of([Observation(20.0, 1.0), Observation(10.0, 3.0), Observation(20.0, 2.0)])
    np.testing.assert_array_equal(b.n, [10.0, 20.0])
    np.testing.assert_allclose(b.mean, [3.0, 1.5])
    np.testing.assert_allclose(b.scatter, [0.0, 0.5])
    np.testing.assert_array_equal(b.free, [0, 1])
