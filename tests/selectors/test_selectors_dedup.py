"""The filter; that its groups are right is tested with the vectors."""

from __future__ import annotations

import numpy as np
import pytest
from selectors_cases import evidence, parts, points, rows, scores, shuffled

from backcast.errors import InputError
from backcast.selectors import SELECTORS, Evidence, select
from backcast.selectors.filters.dedup import Dedup


def kept(dedup: Dedup, pool: Evidence) -> list[int]:
    dropped = dedup.drop(pool)
    assert list(dropped) == ["near-duplicate"]
    return np.delete(np.arange(len(pool)), dropped["near-duplicate"]).tolist()


def test_the_best_member_stays_then_the_smallest_id() -> None:
    x = np.repeat(points(2, 16), 3, axis=0)
    pool = rows(6, ids=["f", "e", "d", "c", "b", "a"])
    assert kept(Dedup(0.98, whiten=False), Evidence.of(pool, x)) == [2, 5]
    seen = Evidence.of(scores([[1], [5], [5], [2], [0], [1]], pool), x)
    assert kept(Dedup(0.98, whiten=False), seen) == [2, 3]


def test_the_order_of_the_pool_does_not_matter() -> None:
    pool = evidence(60, d=3)
    other = shuffled(pool, 1)
    ours, theirs = kept(Dedup(0.9, whiten=False), pool), kept(Dedup(0.9, whiten=False), other)
    assert 1 < len(ours) < 60
    assert {pool.rows.ids[i] for i in ours} == {other.rows.ids[i] for i in theirs}


@pytest.mark.parametrize(
    "method", sorted(SELECTORS.keys() - {"policy", "greedy_law"})
)  # these learn from training
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


def classmates(n: int) -> np.ndarray:
    """Rows with cosines of 0.98 and more, as they share a strong direction; the last twenty nearly copy the first."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 64))
    x[:, 0] = 80
    x[-20:] = x[:20] + 0.1 * rng.normal(size=(20, 64))
    return x


def test_plain_cosines_take_classmates_for_copies_and_whitened_ones_do_not() -> None:
    pool = Evidence.of(rows(600), classmates(600))
    assert len(kept(Dedup(0.98, whiten=False), pool)) == 1
    whitened = Dedup()
    left = kept(whitened, pool)
    assert len(left) == 580
    assert all((i in left) != (580 + i in left) for i in range(20))
    other = shuffled(pool, 2)
    assert {pool.rows.ids[i] for i in left} == {other.rows.ids[i] for i in kept(whitened, other)}
