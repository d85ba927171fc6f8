"""top_k and round_robin against their definitions, word for word."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from selectors_cases import RNG, room, rows, scores, shuffled

from backcast.selectors import Evidence
from backcast.selectors.methods.round_robin import RoundRobin
from backcast.selectors.methods.top_k import TopK


@st.composite
def pools(draw: st.DrawFn) -> Evidence:
    """Few distinct scores and few distinct ids, so that ties are everywhere."""
    n, m = draw(st.integers(1, 12)), draw(st.integers(1, 4))
    values = draw(arrays(np.int8, (n, m), elements=st.integers(-2, 2)))
    ids = [str(i) for i in draw(arrays(np.int8, n, elements=st.integers(0, 5)))]
    return Evidence.of(scores(values, rows(n, ids=ids)))


def key(pool: Evidence, i: int) -> tuple[float, str, int]:
    assert pool.scores is not None
    return -float(np.float64(pool.scores[i]).mean()), pool.rows.ids[i], int(pool.rows.rows[i])


def naive_round_robin(pool: Evidence, budget: int) -> list[int]:
    assert pool.scores is not None
    left = set(range(len(pool)))
    chosen: list[int] = []
    while len(chosen) < budget:
        column = pool.scores[:, len(chosen) % pool.scores.shape[1]]
        pick = min(left, key=lambda i: (-column[i], *key(pool, i)))
        left.remove(pick)
        chosen.append(pick)
    return chosen


@settings(deadline=None)
@given(pools(), st.data())
def test_top_k_is_the_sorted_list(pool: Evidence, data: st.DataObject) -> None:
    budget = data.draw(st.integers(1, len(pool)))
    chosen = TopK().select(pool, room(budget, pool), RNG)
    assert chosen.indices.tolist() == sorted(range(len(pool)), key=lambda i: key(pool, i))[:budget]
    np.testing.assert_array_equal(chosen.gains, pool.mean[chosen.indices])


@settings(deadline=None)
@given(pools(), st.data())
def test_round_robin_is_the_game_it_says(pool: Evidence, data: st.DataObject) -> None:
    budget = data.draw(st.integers(1, len(pool)))
    chosen = RoundRobin().select(pool, room(budget, pool), RNG)
    assert chosen.indices.tolist() == naive_round_robin(pool, budget)
    assert pool.scores is not None
    turns = np.arange(budget) % pool.scores.shape[1]
    np.testing.assert_array_equal(chosen.gains, pool.scores[chosen.indices, turns])


@settings(max_examples=50, deadline=None)
@given(pools(), st.integers(0, 9))
def test_the_order_of_the_pool_does_not_matter(pool: Evidence, seed: int) -> None:
    other = shuffled(pool, seed)
    for selector in (TopK(), RoundRobin()):
        mine, theirs = (selector.select(p, room(max(1, len(pool) // 2), p), RNG) for p in (pool, other))
        assert mine.rows.rows.tolist() == theirs.rows.rows.tolist()


def test_round_robin_serves_targets_that_top_k_forgets() -> None:
    values = np.array([[9, 0], [8, 0], [7, 0], [-9, 1]])
    pool = Evidence.of(scores(values))
    assert 3 not in TopK().select(pool, room(2, pool), RNG).indices
    assert RoundRobin().select(pool, room(2, pool), RNG).indices.tolist() == [0, 3]
