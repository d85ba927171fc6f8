"""Herding against the published recursion in float64."""

from __future__ import annotations

import numpy as np
import pytest
from selectors_cases import RNG, check_allowance, check_order, evidence, points, room, rows

from backcast.errors import InputError
from backcast.selectors import Evidence, select
from backcast.selectors.greedy import Useful
from backcast.selectors.methods.herding import Herding


def published(x: np.ndarray, mean: np.ndarray, k: int) -> list[int]:
    """w ← μ; pick argmax ⟨w, x⟩; w ← w + μ − x (Chen, Welling & Smola 2010, eq. 7 and 8); no returns."""
    w, picks = mean.copy(), []
    for _ in range(k):
        values = x @ w
        values[picks] = -np.inf
        picks.append(int(values.argmax()))
        w += mean - x[picks[-1]]
    return picks


@pytest.mark.parametrize(("scored", "quality"), [(True, 2.0), (True, 0), (False, 2.0)])
def test_it_is_the_published_recursion(scored: bool, quality: float) -> None:
    pool = evidence(150, d=12, seed=4)
    pool = pool if scored else Evidence.of(pool.rows, pool.features)
    useful = Useful.of(pool, quality, "a test")
    x = useful.features.points().astype(np.float64)
    mean = useful.quality @ x / useful.quality.sum()
    picks = published(x, mean, 40)
    chosen = Herding(quality).select(pool, room(40, pool), RNG)
    assert chosen.indices.tolist() == useful.places[picks].tolist()
    errors = [np.square(mean - x[picks[:t]].mean(axis=0)).sum() for t in range(1, 41)]
    np.testing.assert_allclose(1 - chosen.gains.cumsum(), errors / np.square(mean).sum(), rtol=1e-5)


def test_it_follows_the_mean_better_than_chance() -> None:
    x = points(2000, 16)
    mean = x.mean(axis=0)

    def error(chosen: np.ndarray) -> float:
        return float(np.linalg.norm(x[chosen].mean(axis=0) - mean))

    herded = [error(select(rows(2000), k, "herding", features=x).indices) for k in (20, 80)]
    drawn = np.mean([error(select(rows(2000), 80, "random", seed=s).indices) for s in range(10)])
    assert herded[1] < drawn / 5
    assert herded[1] < herded[0] / 2  # nearer to 1/k than to k^−½


def test_all_of_the_pool_has_its_mean() -> None:
    chosen = select(rows(30), 30, "herding", features=points(30, 5))
    assert sorted(chosen.indices) == list(range(30))
    assert chosen.gains.sum() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_the_order_of_the_pool_does_not_matter(seed: int) -> None:
    check_order(Herding(), seed)


def test_harmful_rows_and_rows_without_direction_come_last() -> None:
    pool = evidence(40, m=1, d=5)
    chosen = Herding().select(pool, room(40, pool), RNG)
    harmful = pool.best[chosen.indices] <= 0
    assert 0 < harmful.sum() < 40
    assert harmful[-harmful.sum() :].all()
    assert (chosen.gains[harmful] == 0).all()
    x = points(6, 4)
    x[2] = 0
    assert select(rows(6), 6, "herding", features=x).indices[-1] == 2


def test_no_pick_breaks_the_allowance() -> None:
    check_allowance(Herding())


def test_a_quality_out_of_range_is_refused() -> None:
    with pytest.raises(InputError, match="herding: quality=-1"):
        select(rows(4), 1, "herding", features=points(4, 2), quality=-1)
