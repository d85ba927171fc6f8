"""less against its definition, word for word."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from selectors_cases import RNG, room, rows, scores, shuffled

from backcast.selectors import Evidence, select
from backcast.selectors.methods.less import Less


@st.composite
def grouped(draw: st.DrawFn) -> tuple[Evidence, list[str]]:
    """Few distinct scores, ids and groups, so that ties are everywhere."""
    n, m = draw(st.integers(1, 12)), draw(st.integers(1, 5))
    values = draw(arrays(np.int8, (n, m), elements=st.integers(-2, 2)))
    ids = [str(i) for i in draw(arrays(np.int8, n, elements=st.integers(0, 5)))]
    groups = [draw(st.sampled_from("ABC")) for _ in range(m)]
    return Evidence.of(scores(values, rows(n, ids=ids)), groups=tuple(groups)), groups


def best_group(pool: Evidence, groups: list[str], i: int) -> tuple[float, float]:
    """The highest mean over a group, and the mean over the groups."""
    assert pool.scores is not None
    row = pool.scores[i].astype(np.float64)
    means = [row[[own == g for own in groups]].mean() for g in dict.fromkeys(groups)]
    return max(means), float(np.mean(means))


@settings(deadline=None)
@given(grouped(), st.data())
def test_it_is_the_sorted_list_of_the_best_group(
    case: tuple[Evidence, list[str]], data: st.DataObject
) -> None:
    pool, groups = case
    budget = data.draw(st.integers(1, len(pool)))
    chosen = Less().select(pool, room(budget, pool), RNG)

    def key(i: int) -> tuple[float, float, str, int]:
        best, mean = best_group(pool, groups, i)
        return -best, -mean, pool.rows.ids[i], int(pool.rows.rows[i])

    assert chosen.indices.tolist() == sorted(range(len(pool)), key=key)[:budget]
    np.testing.assert_array_equal(chosen.gains, [best_group(pool, groups, i)[0] for i in chosen.indices])


@settings(max_examples=50, deadline=None)
@given(grouped(), st.integers(0, 9))
def test_the_order_of_the_pool_does_not_matter(case: tuple[Evidence, list[str]], seed: int) -> None:
    pool, _ = case
    budget = max(1, len(pool) // 2)
    mine, theirs = (Less().select(p, room(budget, p), RNG) for p in (pool, shuffled(pool, seed)))
    assert mine.rows.rows.tolist() == theirs.rows.rows.tolist()


def test_the_size_of_a_group_does_not_matter() -> None:
    """Nine targets of one group and one of another: what helps the one alone is found."""
    values = np.zeros((3, 10))
    values[0, :9], values[1, 9], values[2] = 0.5, 0.9, 0.2
    pool = scores(values)
    assert select(pool, 1, "less", groups=["many"] * 9 + ["one"]).indices.tolist() == [1]
    assert select(pool, 1, "top_k").indices.tolist() == [0]
