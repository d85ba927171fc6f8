"""DataInf against its definition: the mean of inverses, every one of them formed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from attribution_cases import store_of

from backcast.attribution import attribute
from backcast.errors import InputError


def definition(gradients: Sequence[np.ndarray], wanted: Sequence[np.ndarray], damping: float) -> np.ndarray:
    """Σ_c g(x)ᵀ [(1/n) Σ_i (g_i g_iᵀ + λ_cI)⁻¹] g(z) / nC in float64."""
    total: np.ndarray | float = 0.0
    for g, towards in zip(gradients, wanted, strict=True):
        g, towards = g.astype(np.float64), towards.astype(np.float64)
        n, k = g.shape
        level = damping * (g**2).sum() / (n * k)
        inverses = [np.linalg.inv(np.outer(row, row) + level * np.eye(k)) for row in g]
        total += g @ np.mean(inverses, axis=0) @ towards.T / n
    return total / len(gradients)


def close(found: np.ndarray, expected: np.ndarray, tolerance: float = 1e-5) -> None:
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("k", [6, 40])  # fewer numbers than examples, and more
@pytest.mark.parametrize("of", ["loss", "output"])
def test_datainf_is_its_formula(of, k, tmp_path):
    rng = np.random.default_rng(0)
    rows, wanted = ([scale * rng.normal(size=(n, k)) for scale in (1.0, 30.0)] for n in (19, 5))
    slopes, others = (
        [np.full(n, -1.0) if of == "loss" else -rng.random(n) for _ in range(2)] for n in (19, 5)
    )
    train, target = (
        store_of(tmp_path / name, phi, name=name, slopes=s if of == "output" else None, shard_rows=7)
        for name, phi, s in (("train", rows, slopes), ("target", wanted, others))
    )
    g = [s[:, None] * phi for s, phi in zip(slopes, rows, strict=True)]
    h = [s[:, None] * phi for s, phi in zip(others, wanted, strict=True)]
    close(attribute(train, target, "datainf").values, definition(g, h, 0.1))
    close(attribute(train, target, "datainf", damping=3.0).values, definition(g, h, 3.0))
    groups = attribute(train, target, "datainf", groups=["b", "a", "b", "b", "a"])
    means = [np.stack([z[[0, 2, 3]].mean(0), z[[1, 4]].mean(0)]) for z in h]
    close(groups.values, definition(g, means, 0.1))


def test_of_one_direction_it_is_influence(tmp_path):
    """Gradients ±g of one direction are one inverse, whose mean is the inverse of the mean."""
    g = np.outer([1.0, -1.0, 1.0, -1.0, -1.0], np.arange(1.0, 8.0))
    train, target = store_of(tmp_path / "train", [g]), store_of(tmp_path / "target", [g[:2] + 1])
    # DataInf's λ is relative to ‖g‖²/k, influence's, of a sum and not a mean, to ‖g‖²
    ours = attribute(train, target, "datainf", damping=0.7).values
    close(ours, attribute(train, target, "influence", damping=0.7 * 5 / 7).values)


def test_rows_of_zeros_count_for_nothing(tmp_path):
    g = np.random.default_rng(1).normal(size=(9, 20))
    g[4] = 0
    scores = attribute(
        store_of(tmp_path / "train", [g]), store_of(tmp_path / "target", [g[:3]]), "datainf"
    ).values
    assert np.isfinite(scores).all()
    assert not scores[4].any()
    nothing = store_of(tmp_path / "nothing", [np.zeros((9, 20))])
    assert not attribute(nothing, nothing, "datainf").values.any()


def test_damping_must_be_positive(tmp_path):
    store = store_of(tmp_path / "train", [np.ones((9, 20))])
    with pytest.raises(InputError, match="give a positive number"):
        attribute(store, store, "datainf", damping=0.0)
