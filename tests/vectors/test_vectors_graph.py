"""The neighbour graph against a full sort."""

from __future__ import annotations

import numpy as np
import pytest
from vectors_cases import clustered, points, sketches

from backcast.errors import InputError
from backcast.vectors import Features, graph, neighbour_graph


def oracle(x: np.ndarray, k: int) -> np.ndarray:
    """(n, n) dense: each row's k first, by (itself, cosine falling, position)."""
    cosines = points(x) @ points(x).T
    first = cosines.copy()
    np.fill_diagonal(first, 9)
    found = np.zeros_like(cosines)
    for row, order in enumerate(np.argsort(-first, axis=1, kind="stable")[:, :k]):
        found[row, order] = np.maximum(cosines[row, order], 0)
    return found


@pytest.mark.parametrize(("n", "k"), [(1, 1), (50, 1), (300, 7), (300, 300)])
def test_each_row_has_its_nearest(n, k, monkeypatch):
    monkeypatch.setattr(graph, "ROWS", 64)
    monkeypatch.setattr(graph, "COLUMNS", 50)
    x = clustered(n, 6, 10)
    x[n // 2 :: 3] = x[0]  # ties, more than there is room for
    x[n // 3] = 0
    found = neighbour_graph(Features.of(x), k)
    assert found.shape == (n, n)
    assert found.dtype == np.float32
    assert (np.diff(found.indptr) == k).all()
    assert found.has_canonical_format
    np.testing.assert_array_equal(found.toarray(), oracle(x, k))
    assert all(i in found.indices[found.indptr[i] : found.indptr[i + 1]] for i in range(n))


def test_past_the_limit_an_index_finds_nearly_the_same(monkeypatch):
    x = Features.of(sketches())
    exact = neighbour_graph(x, 11)
    monkeypatch.setattr(graph, "EXACT_ROWS", 100)
    monkeypatch.setattr("backcast.vectors.index.EXACT_ROWS", 100)
    found = neighbour_graph(x, 11)
    both = exact.astype(bool).multiply(found.astype(bool))
    assert both.sum() >= 0.95 * exact.nnz
    np.testing.assert_allclose(found.diagonal(), 1, atol=1e-5)
    agreed = exact.multiply(both) - found.multiply(both)
    assert np.abs(agreed.data).max() < 1e-2


@pytest.mark.parametrize("k", [0, 6])
def test_a_count_out_of_range_is_refused(k):
    with pytest.raises(InputError, match="choose 1 to 5"):
        neighbour_graph(Features.of(clustered(5, 3, 2)), k)
