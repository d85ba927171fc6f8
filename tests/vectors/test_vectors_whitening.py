"""Whitening against a plain PCA in float64."""

from __future__ import annotations

import numpy as np
import pytest

from backcast.vectors import Features, whitened
from backcast.vectors.whitening import COMPONENTS


def rows(n: int, d: int, seed: int = 0) -> np.ndarray:
    """Rows with a few strong directions and a mean far from zero."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, d)) * np.geomspace(30, 1, d) + np.geomspace(1, 50, d)) @ np.linalg.qr(
        rng.normal(size=(d, d))
    )[0]


@pytest.mark.parametrize(("n", "d"), [(2000, 40), (120, 64)])
def test_cosines_are_those_of_a_plain_whitening(n: int, d: int) -> None:
    features = Features.of(rows(n, d))
    x = features.points().astype(np.float64)
    kept = min(COMPONENTS, n // 4, d)
    _, values, axes = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    plain = (x - x.mean(axis=0)) @ axes[:kept].T / np.sqrt(values[:kept] ** 2 / n + 1e-6)
    plain /= np.linalg.norm(plain, axis=1, keepdims=True)
    made = whitened(features)[:]
    np.testing.assert_allclose(made @ made.T, plain @ plain.T, atol=2e-4)


def test_unrelated_rows_come_apart() -> None:
    features = Features.of(rows(3000, 64))
    pairs = np.triu_indices(200, 1)
    before, after = ((f[:200] @ f[:200].T)[pairs] for f in (features, whitened(features)))
    assert before.mean() > 0.5
    assert np.abs(after).max() < 0.7
    assert abs(after.mean()) < 0.01


def test_rows_are_read_alike_in_any_blocks() -> None:
    made = whitened(Features.of(rows(500, 32)))
    assert made.shape == (500, 32)
    np.testing.assert_array_equal(made[np.array([7, 3, 400])], made[:][[7, 3, 400]])


def test_directions_that_no_row_has_are_not_blown_up() -> None:
    x = rows(400, 16)
    wide = np.concatenate([x, np.zeros((400, 16))], axis=1)
    made, plain = whitened(Features.of(wide))[:], whitened(Features.of(x))[:]
    assert np.isfinite(made).all()
    np.testing.assert_allclose(made[:, :16] @ made[:, :16].T, plain @ plain.T, atol=1e-3)
    assert np.abs(made[:, 16:]).max() < 1e-3


def test_one_row_and_equal_rows_have_no_direction() -> None:
    for n in (1, 6):
        made = whitened(Features.of(np.ones((n, 3))))[:]
        assert made.shape == (n, 3)
        assert np.isfinite(made).all()
