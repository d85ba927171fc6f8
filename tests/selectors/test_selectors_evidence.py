from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from selectors_cases import evidence, points, rows, scores

from backcast.data.examples import Rows
from backcast.errors import InputError
from backcast.selectors import Evidence, select


class Store:
    """Something with what a selector reads of a sketch store."""

    def __init__(self, pool: Rows, values: np.ndarray) -> None:
        self.rows, self.values, self.shape = pool, values, values.shape

    def read(self, positions: slice | np.ndarray) -> np.ndarray:
        return self.values[positions]


def features_of(pool: Evidence) -> np.ndarray:
    assert pool.features is not None
    return pool.features[:]


def test_features_from_a_store_and_from_an_array_are_alike() -> None:
    x = points(8, 4)
    pool = rows(8)
    by_store, by_array = Evidence.of(pool, Store(pool, x)), Evidence.of(pool, x)
    np.testing.assert_array_equal(features_of(by_store), features_of(by_array))


def test_a_store_of_other_examples_is_refused() -> None:
    with pytest.raises(InputError, match="8 other examples than the 7"):
        Evidence.of(scores(np.ones((7, 1))), Store(rows(8), points(8, 4)))


@pytest.mark.parametrize(
    ("features", "says"),
    [
        (np.ones((4, 2)), r"shape \(4, 2\) do not fit a pool of 5"),
        (np.ones(5), r"not an \(n, d\) array"),
        (np.full((5, 2), "x"), r"not an \(n, d\) array"),
        (np.ones((5, 0)), r"not an \(n, d\) array"),
        (np.where(np.arange(5)[:, None] == 3, np.nan, np.ones((5, 2))), "row 3 holds a NaN"),
        (np.where(np.arange(5)[:, None] == 2, np.inf, np.ones((5, 2))), "row 2 holds a NaN or an infinity"),
    ],
)
def test_broken_features_are_refused(features: np.ndarray, says: str) -> None:
    with pytest.raises(InputError, match=says):
        features_of(Evidence.of(rows(5), features))


def test_broken_scores_are_refused() -> None:
    values = np.ones((5, 2))
    values[4, 1] = np.nan
    with pytest.raises(InputError, match="scores: row 4"):
        Evidence.of(scores(values))


def test_an_empty_pool_is_refused() -> None:
    with pytest.raises(InputError, match="the pool is empty"):
        select(Rows((), np.arange(0), ()), 1, "random")


@pytest.mark.parametrize("method", ["top_k", "round_robin"])
def test_who_needs_scores_says_so(method: str) -> None:
    with pytest.raises(InputError, match=f"{method} needs scores: .*backcast score"):
        select(rows(5), 2, method)


@pytest.mark.parametrize("method", ["facility_location", "dedup | random"])
def test_who_needs_features_says_so(method: str) -> None:
    with pytest.raises(InputError, match="needs features: give features="):
        select(scores(np.ones((5, 1))), 2, method)


def test_mean_best_and_order() -> None:
    pool = rows(4, ids=["d", "b", "c", "a"])
    seen = Evidence.of(scores(np.array([[1, 3], [2, 2], [0, 9], [3, 1]]), pool))
    np.testing.assert_array_equal(seen.mean, [2, 2, 4.5, 2])
    np.testing.assert_array_equal(seen.best, [3, 2, 9, 3])
    np.testing.assert_array_equal(seen.by_id, [3, 1, 2, 0])
    np.testing.assert_array_equal(seen.ranked(seen.mean), [2, 3, 1, 0])  # equal means by id
    np.testing.assert_array_equal(seen.ranked(np.array([1.0, 1, 1, 2])), [3, 2, 1, 0])  # equal keys by mean


def test_taking_a_part_keeps_all_in_step() -> None:
    whole = evidence(9)
    part = whole.take(np.array([4, 1, 8]))
    assert part.rows.ids == tuple(whole.rows.ids[i] for i in (4, 1, 8))
    assert part.rows.rows.tolist() == [4, 1, 8]
    assert part.rows.sources == ("a", "b", "a")
    np.testing.assert_array_equal(part.mean, whole.mean[[4, 1, 8]])
    np.testing.assert_array_equal(features_of(part), features_of(whole)[[4, 1, 8]])
    assert whole.parts is not None
    assert part.parts is not None
    for name in ("image", "text", "interaction"):
        np.testing.assert_array_equal(part.parts[name], whole.parts[name][[4, 1, 8]])


def test_the_selectors_do_not_import_torch() -> None:
    code = "import sys, backcast.selectors; print([m for m in ('torch', 'datasets') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
