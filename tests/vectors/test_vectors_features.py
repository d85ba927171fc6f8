"""Unit rows are read right, block by block, and their fixed-point inner products are exact."""

from __future__ import annotations

import tracemalloc
from fractions import Fraction

import numpy as np
import pytest

from backcast.errors import InputError
from backcast.vectors import Features, fixed


def rows(n=37, d=5, dtype=np.float32, seed=0):
    return (np.random.default_rng(seed).normal(size=(n, d)) * 3).astype(dtype)


class Shelf:
    """Rows behind the reading protocol, which remembers how many were read at once."""

    def __init__(self, values):
        self.values, self.shape, self.most = values, values.shape, 0

    def read(self, positions):
        found = self.values[positions]
        self.most = max(self.most, len(found))
        return found


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int32])
def test_rows_are_brought_to_unit_length(dtype):
    x = rows(dtype=dtype)
    x[3] = 0
    unit = Features.of(x)[:]
    wide = x.astype(np.float64)
    expected = np.array([row / max(np.sqrt((row * row).sum()), 1e-300) for row in wide])
    assert unit.dtype == np.float32
    np.testing.assert_array_equal(unit, expected.astype(np.float32))
    assert not unit[3].any()


@pytest.mark.parametrize("scale", [1e-38, 1e38])
def test_no_row_is_too_small_or_too_large(scale):
    x = rows() / 40 * np.float32(scale)
    np.testing.assert_allclose(np.linalg.norm(Features.of(x)[:].astype(float), axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("hold", [np.asarray, Shelf])
def test_blocks_positions_and_views_are_the_same_rows(hold):
    x = rows()
    features, whole = Features.of(hold(x)), Features.of(x)[:]
    assert features.shape == (37, 5)
    assert len(features) == 37
    spans, parts = zip(*features.blocks(rows=8), strict=True)
    assert [s.stop for s in spans] == [8, 16, 24, 32, 37]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    some = np.array([30, 2, 2, 17])
    np.testing.assert_array_equal(features[some], whole[some])
    view = features.take(some).take(np.array([3, 0]))
    assert view.shape == (2, 5)
    np.testing.assert_array_equal(view[:], whole[[17, 30]])
    np.testing.assert_array_equal(features.take(slice(5, 9))[1:], whole[6:9])
    assert Features.of(view) is view


def test_more_rows_than_a_block_are_each_brought_to_unit_length():
    x = rows(9000, 2)
    np.testing.assert_allclose(np.linalg.norm(Features.of(x)[:], axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_a_broken_row_is_named(broken):
    x = rows()
    x[21, 2] = broken
    for read in (
        lambda: Features.of(x)[:],
        lambda: list(Features.of(x).blocks(10)),
        lambda: Features.of(Shelf(x)).take(np.array([4, 21]))[:],
    ):
        with pytest.raises(InputError, match="features: row 21 holds a NaN or an infinity") as refused:
            read()
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "x",
    [
        np.zeros(4),
        np.zeros((2, 0)),
        np.zeros((2, 2), dtype=bool),
        np.array([["a"]]),
        np.zeros((2, 2), complex),
    ],
)
def test_what_is_no_matrix_of_numbers_is_refused(x):
    with pytest.raises(InputError, match="are not an"):
        Features.of(x)


def test_reading_holds_no_more_than_a_block(tmp_path):
    halves = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float16, (40_000, 64))
    halves[:] = rows(40_000, 64)
    shelf = Shelf(halves)
    tracemalloc.start()
    for _, block in Features.of(shelf).blocks():
        assert block.shape[1] == 64
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert shelf.most == 4096
    assert peak < 40_000 * 64 * 4 / 1.5  # all of the rows in float32


def test_fixed_rounds_to_multiples():
    values = np.array([0.3, -0.3, 0.125, 0.375, 1 / 3], dtype=np.float64)
    np.testing.assert_array_equal(fixed(values, 2), [0.25, -0.25, 0.0, 0.5, 0.25])
    for dtype in (np.float32, np.float64):
        x = rows(dtype=dtype)
        assert fixed(x, 7).dtype == dtype
        assert np.abs(fixed(x, 7) - x).max() <= 2**-8
        assert not (fixed(x, 7) * 2**7 % 1).any()


@pytest.mark.parametrize("d", [3, 512, 3000])
def test_inner_products_of_points_are_exact(d):
    x = rows(6, d)
    x[0] = 1  # the rounding then goes one way in every number
    x[1] = x[0]
    points = Features.of(x).points()
    exact = [
        [sum(Fraction(float(a)) * Fraction(float(b)) for a, b in zip(p, q, strict=True)) for q in points]
        for p in points
    ]
    cosines = points @ points.T
    assert cosines.dtype == np.float32
    assert [[Fraction(float(c)) for c in row] for row in cosines] == exact
    order = np.random.default_rng(1).permutation(d)
    np.testing.assert_array_equal(points[:, order] @ points[:, order].T, cosines)
    unit = Features.of(x)[:].astype(np.float64)
    moved = np.abs(cosines - unit @ unit.T)
    assert moved.max() <= 2 * np.sqrt(d) * 2**-12 + d * 2**-24
    assert moved[2:, 2:].max() < 1e-3


def test_points_of_some_rows_are_those_of_all():
    features = Features.of(rows())
    np.testing.assert_array_equal(features.points(np.array([9, 1])), features.points()[[9, 1]])
