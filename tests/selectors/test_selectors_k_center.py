"""k_center against the published algorithm in float64, and its radius against the best of all sets."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from selectors_cases import RNG, check_allowance, check_order, evidence, points, room, rows, scores

from backcast.errors import InputError
from backcast.selectors import Evidence, select
from backcast.selectors.greedy import Useful
from backcast.selectors.methods.k_center import KCenter


def distances(x: np.ndarray) -> np.ndarray:
    """(n, n) float64, half the squared distances of the points."""
    wide = x.astype(np.float64)
    return np.square(wide[:, None] - wide[None]).sum(axis=2) / 2


def published(x: np.ndarray, weights: np.ndarray, first: int, k: int) -> tuple[list[int], list[float]]:
    """Farthest-first traversal, word for word."""
    apart = distances(x)
    picks, radii = [first], []
    while len(picks) < k:
        far = weights * apart[:, picks].min(axis=1)
        far[picks] = -1
        radii.append(far.max())
        picks.append(int(far.argmax()))
    return picks, radii


@pytest.mark.parametrize(("scored", "quality"), [(True, 2.0), (True, 0.5), (True, 0), (False, 2.0)])
@pytest.mark.parametrize("ahead", [3, 2048])
def test_it_is_the_published_algorithm(
    scored: bool, quality: float, ahead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backcast.selectors.greedy.AHEAD", ahead)
    monkeypatch.setattr("backcast.selectors.greedy.BLOCK", 50)
    pool = evidence(150, d=8, seed=4)
    pool = pool if scored else Evidence.of(pool.rows, pool.features)
    useful = Useful.of(pool, quality, "a test")
    x = useful.features.points()
    mean = x.astype(np.float64).mean(axis=0)
    first = 0 if scored else int((x.astype(np.float64) @ mean).argmax())
    picks, radii = published(x, useful.quality, first, 40)
    chosen = KCenter(quality).select(pool, room(40, pool), RNG)
    assert chosen.indices.tolist() == useful.places[picks].tolist()
    assert np.isnan(chosen.gains[0])
    np.testing.assert_array_equal(chosen.gains[1:], radii)
    if scored:
        assert pool.best[chosen.indices[0]] == pool.best.max()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4))
def test_the_radius_is_within_its_bound_of_the_best_set_of_all(seed: int, k: int) -> None:
    pool = evidence(10, d=3, seed=seed)
    assert pool.features is not None
    apart = np.sqrt(2 * distances(pool.features.points()))
    best = min(apart[:, list(s)].min(axis=1).max() for s in combinations(range(10), k))
    chosen = KCenter(quality=0).select(pool, room(k, pool), RNG).indices
    assert apart[:, chosen].min(axis=1).max() <= 2 * best + 1e-12


@pytest.mark.parametrize("seed", range(4))
def test_the_order_of_the_pool_does_not_matter(seed: int) -> None:
    check_order(KCenter(), seed)


def test_copies_and_rows_without_direction_come_last() -> None:
    x = np.concatenate([points(5, 6), points(5, 6), np.zeros((2, 6), dtype=np.float32)])
    chosen = select(rows(12), 12, "k_center", features=x)
    assert sorted(chosen.indices[:5] % 5) == list(range(5))
    assert (chosen.gains[1:5] > 0).all()
    assert (chosen.gains[5:] == 0).all()
    assert sorted(chosen.indices) == list(range(12))


def test_a_spoilt_outlier_is_no_centre() -> None:
    rng = np.random.default_rng(0)
    helpful = np.eye(16)[np.arange(30) % 3] + 0.1 * rng.normal(size=(30, 16))
    outliers = np.eye(16)[5:15]
    values = np.concatenate([np.full(30, 0.5), np.full(10, 0.02)])[:, None]
    x = np.concatenate([helpful, outliers])
    assert (select(scores(values), 10, "k_center", features=x).indices < 30).all()
    assert (select(scores(values), 10, "k_center", features=x, quality=0).indices >= 30).sum() >= 6


def test_no_pick_breaks_the_allowance() -> None:
    check_allowance(KCenter())


PICKS = """
import numpy as np
from selectors_cases import rows
from backcast.selectors import select
x = np.random.default_rng(0).normal(size=(4200, 128))
for method in ("k_center", "herding", "graph_cut", "log_det"):
    chosen = select(rows(4200), 20, method, features=x)
    print(method, chosen.indices.tolist(), chosen.gains.tobytes().hex())
"""


def test_one_thread_and_two_choose_the_same_bit_for_bit() -> None:
    told = []
    for threads in ("1", "2"):
        set_to = {f"{name}_NUM_THREADS": threads for name in ("OMP", "OPENBLAS", "MKL")}
        path = os.pathsep.join(map(str, (Path(__file__).parents[1], Path(__file__).parents[2])))
        ran = subprocess.run(
            [sys.executable, "-c", PICKS],
            env={**os.environ, **set_to, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=True,
        )
        told.append(ran.stdout)
    assert told[0].count("\n") == 4
    assert told[0] == told[1]


@pytest.mark.parametrize("quality", [-1, float("nan"), float("inf")])
def test_a_quality_out_of_range_is_refused(quality: float) -> None:
    with pytest.raises(InputError, match="k_center: quality="):
        select(rows(4), 1, "k_center", features=points(4, 2), quality=quality)


def test_features_are_asked_for() -> None:
    with pytest.raises(InputError, match="k_center needs features"):
        select(rows(4), 1, "k_center")
