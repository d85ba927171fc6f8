"""Near-duplicates against a flood fill, and by cells against all pairs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vectors_cases import clustered, points, sketches

from backcast.vectors import Features, groups, near_duplicates, near_pairs


def cosines(x: np.ndarray) -> np.ndarray:
    """(n, n) float64, of the rounded rows; 0 with a row of zeros."""
    p = points(x)
    p /= np.maximum(np.linalg.norm(p, axis=1, keepdims=True), 1e-300)
    return p @ p.T


def oracle(x: np.ndarray, threshold: float) -> list[int]:
    """The first row of each row's group, by flooding from every row in turn."""
    close = cosines(x) >= threshold - 1e-6
    group = [-1] * len(x)
    for start in range(len(x)):
        if group[start] >= 0:
            continue
        reached = [start]
        for i in reached:
            if group[i] < 0:
                group[i] = start
                reached += [int(j) for j in np.flatnonzero(close[i]) if group[j] < 0]
    return group


def pairs(x: np.ndarray, threshold: float) -> set[tuple[int, int]]:
    found = [np.stack(each[:2], axis=1) for each in near_pairs(Features.of(x), threshold)]
    return set(map(tuple, np.concatenate(found).tolist()))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.3, 1))
def test_groups_are_the_connected_components(seed, threshold):
    x = np.random.default_rng(seed).normal(size=(40, 3)).astype(np.float32)
    if np.abs(cosines(x) - threshold + 1e-6).min() > 3e-7:  # else float32 may fall on either side
        assert near_duplicates(Features.of(x), threshold).tolist() == oracle(x, threshold)


def test_pairs_across_blocks_come_once_with_their_cosines(monkeypatch):
    monkeypatch.setattr(groups, "COLUMNS", 128)
    monkeypatch.setattr(groups, "WAITING", 50)
    x = clustered(700, 8, 30)
    found = list(near_pairs(Features.of(x), 0.95))
    left, right, values = (np.concatenate(each) for each in zip(*found, strict=True))
    expected = [(i, j) for i, j in np.argwhere(np.triu(cosines(x) >= 0.95 - 1e-6, 1)).tolist()]
    assert sorted(zip(left.tolist(), right.tolist(), strict=True)) == expected != []
    np.testing.assert_allclose(values, cosines(x)[left, right], atol=1e-6)
    assert near_duplicates(Features.of(x), 0.95).tolist() == oracle(x, 0.95)


def test_a_chain_is_one_group():
    angles = np.radians([0, 10, 20, 30, 90])
    x = Features.of(np.stack([np.cos(angles), np.sin(angles)], axis=1))
    assert near_duplicates(x, np.cos(np.radians(11))).tolist() == [0, 0, 0, 0, 4]
    assert near_duplicates(x, np.cos(np.radians(9))).tolist() == [0, 1, 2, 3, 4]


def test_copies_count_at_threshold_one_and_zeros_never():
    x = np.tile(np.random.default_rng(0).normal(size=1000), (5, 1))
    x[1] *= 7
    x[3:] = 0
    assert near_duplicates(Features.of(x), 1.0).tolist() == [0, 0, 0, 3, 4]
    assert near_duplicates(Features.of(np.zeros((3, 4))), 0.1).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("threshold", "noise", "least"), [(0.98, 0.1, 1.0), (0.9, 0.3, 0.99), (0.8, 0.5, 0.98)]
)
def test_cells_find_the_pairs_of_real_sketches(threshold, noise, least, monkeypatch):
    """Sketches less their mean, which of this little model is most of each, and copies of some with noise."""
    rng = np.random.default_rng(0)
    x = sketches() - sketches().mean(axis=0)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    n, d = x.shape
    x[-300:] = x[:300] + noise * rng.normal(size=(300, d)) / np.sqrt(d)
    exact = pairs(x, threshold)
    monkeypatch.setattr(groups, "EXACT_ROWS", 100)
    found = pairs(x, threshold)
    assert found <= exact
    assert 250 <= len(exact) < n * n / 20
    assert len(found) >= least * len(exact)


def test_where_most_rows_are_alike_cells_miss_pairs_and_not_groups(monkeypatch):
    x = Features.of(sketches())
    exact = near_duplicates(x, 0.9)
    assert np.bincount(exact).max() > 600
    monkeypatch.setattr(groups, "EXACT_ROWS", 100)
    np.testing.assert_array_equal(near_duplicates(x, 0.9), exact)


def test_without_a_limit_on_visits_cells_miss_none(monkeypatch):
    """The border argument: of a pair in two cells, one row is within half their distance of the border."""
    x = clustered(1500, 6, 40, noise=0.6)
    exact = pairs(x, 0.97)
    monkeypatch.setattr(groups, "EXACT_ROWS", 100)
    monkeypatch.setattr(groups, "VISITS", 50)
    assert pairs(x, 0.97) == exact != set()
