from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from selectors_cases import evidence, parts, points, rows, scores, shuffled

from backcast.errors import InputError
from backcast.selectors import SELECTORS, Evidence, select
from backcast.selectors.filters.dedup import BLOCK, Dedup, near_duplicates


def oracle(x: np.ndarray, threshold: float) -> list[int]:
    """The first row of each row's group, by flooding from every row in turn."""
    close = x.astype(np.float64) @ x.T.astype(np.float64) >= threshold - 1e-6
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


def kept(dedup: Dedup, pool: Evidence) -> list[int]:
    dropped = dedup.drop(pool)
    assert list(dropped) == ["near-duplicate"]
    return np.delete(np.arange(len(pool)), dropped["near-duplicate"]).tolist()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.3, 1))
def test_groups_are_the_connected_components(seed: int, threshold: float) -> None:
    x = points(40, 3, seed)
    cosines = x.astype(np.float64) @ x.T.astype(np.float64)
    assume(np.abs(cosines - threshold + 1e-6).min() > 3e-7)  # else float32 may fall on either side
    assert near_duplicates(x, threshold).tolist() == oracle(x, threshold)


def test_groups_across_blocks() -> None:
    n = 2 * BLOCK + 100
    x = points(n, 64)
    copies = np.random.default_rng(0).permutation(n)[:300].reshape(100, 3)
    for first, second, third in copies:
        x[second] = x[first]
        x[third] = x[first]
    groups = near_duplicates(x, 0.999)
    assert groups.tolist() == oracle(x, 0.999)
    assert len(np.unique(groups)) == n - 200


def test_a_chain_is_one_group() -> None:
    angles = np.radians([0, 10, 20, 30, 90])
    x = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    assert near_duplicates(x, np.cos(np.radians(11))).tolist() == [0, 0, 0, 0, 4]
    assert near_duplicates(x, np.cos(np.radians(9))).tolist() == [0, 1, 2, 3, 4]


def test_copies_count_at_threshold_one_and_zeros_never() -> None:
    x = np.repeat(points(1, 1000), 5, axis=0)
    x[3:] = 0
    assert near_duplicates(x, 1.0).tolist() == [0, 0, 0, 3, 4]


def test_the_best_member_stays_then_the_smallest_id() -> None:
    x = np.repeat(points(2, 16), 3, axis=0)
    pool = rows(6, ids=["f", "e", "d", "c", "b", "a"])
    assert kept(Dedup(), Evidence.of(pool, x)) == [2, 5]
    seen = Evidence.of(scores([[1], [5], [5], [2], [0], [1]], pool), x)
    assert kept(Dedup(), seen) == [2, 3]


def test_the_order_of_the_pool_does_not_matter() -> None:
    pool = evidence(60, d=3)
    other = shuffled(pool, 1)
    ours, theirs = kept(Dedup(0.9), pool), kept(Dedup(0.9), other)
    assert 1 < len(ours) < 60
    assert {pool.rows.ids[i] for i in ours} == {other.rows.ids[i] for i in theirs}


@pytest.mark.parametrize("method", SELECTORS)
def test_it_goes_before_any_selector(method: str) -> None:
    x = np.repeat(points(20, 32), 3, axis=0)
    seen = scores(np.random.default_rng(2).normal(size=(60, 2)))
    chosen = select(seen, "40%", f"dedup | {method}", features=x, parts=parts(60))
    assert len(chosen) == 20 == chosen.why["budget"]["got"]
    assert chosen.why["budget"]["asked"] == "40%"
    assert sorted(chosen.indices // 3) == list(range(20))
    means = seen.values.mean(axis=1).reshape(20, 3)
    assert sorted(chosen.indices % 3 == means.argmax(axis=1)[chosen.indices // 3]) == [True] * 20


@pytest.mark.parametrize("threshold", [0, -0.5, 1.01, float("nan")])
def test_a_threshold_out_of_range_is_refused(threshold: float) -> None:
    with pytest.raises(InputError, match="threshold="):
        select(rows(4), 1, "dedup | random", features=points(4, 2), dedup={"threshold": threshold})
