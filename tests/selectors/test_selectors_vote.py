"""vote against its definition."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from selectors_cases import RNG, room, rows, scores, shuffled

from backcast.errors import InputError
from backcast.selectors import Evidence, select
from backcast.selectors.evidence import COLUMNS, columns
from backcast.selectors.methods.vote import Vote

WEIGHTS = (0.1, 0.2, 0.3)  # of which the first two are the third, but not in floating point


@st.composite
def pools(draw: st.DrawFn) -> Evidence:
    """Few distinct scores, ids and weights, so that ties are everywhere."""
    n, m = draw(st.integers(1, 12)), draw(st.integers(1, 5))
    values = draw(arrays(np.int8, (n, m), elements=st.integers(-3, 3)))
    ids = [str(i) for i in draw(arrays(np.int8, n, elements=st.integers(0, 5)))]
    weights = {f"target {t}": draw(st.sampled_from(WEIGHTS)) for t in range(m)}
    return Evidence.of(scores(values, rows(n, ids=ids)), weights=weights)


def ballots(pool: Evidence, percentile: int) -> list[Fraction]:
    """The exact share of the votes that each example has."""
    assert pool.scores is not None
    n, m = pool.scores.shape
    voters = -(-n * (100 - percentile) // 100)
    weights = [Fraction(str(pool.weights[name])) for name in pool.targets]
    found = [Fraction(0)] * n
    for t in range(m):
        threshold = sorted(pool.scores[:, t], reverse=True)[voters - 1]
        for i in range(n):
            found[i] += weights[t] * int(pool.scores[i, t] >= threshold)
    return [votes / sum(weights) for votes in found]


@settings(deadline=None)
@given(pools(), st.integers(0, 99), st.data())
def test_it_is_the_sorted_list_of_votes(pool: Evidence, percentile: int, data: st.DataObject) -> None:
    budget = data.draw(st.integers(1, len(pool)))
    chosen = Vote(percentile).select(pool, room(budget, pool), RNG)
    votes = ballots(pool, percentile)
    order = sorted(
        range(len(pool)),
        key=lambda i: (-votes[i], -pool.mean[i], pool.rows.ids[i], int(pool.rows.rows[i])),
    )
    assert chosen.indices.tolist() == order[:budget]
    np.testing.assert_allclose(chosen.gains, [float(votes[i]) for i in order[:budget]], atol=1e-11)


@settings(max_examples=50, deadline=None)
@given(pools(), st.integers(0, 9))
def test_the_order_of_the_pool_does_not_matter(pool: Evidence, seed: int) -> None:
    budget = max(1, len(pool) // 2)
    mine, theirs = (Vote().select(p, room(budget, p), RNG) for p in (pool, shuffled(pool, seed)))
    assert mine.rows.rows.tolist() == theirs.rows.rows.tolist()


def test_every_group_has_one_voice_whatever_its_scale() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(50, 4))
    grown = values * [1, 1000, 0.01, 7] + [5, 0, -3, 0]
    voted = [set(np.flatnonzero(np.array(ballots_of(v)) >= 0.75).tolist()) for v in (values, grown)]
    assert voted[0] == voted[1]
    best = select(scores(grown), len(voted[0]), "vote", percentile=60)
    assert set(best.indices.tolist()) == voted[0]
    assert (best.gains >= 0.75).all()


def ballots_of(values: np.ndarray) -> list[float]:
    pool = Evidence.of(scores(values), weights={f"target {t}": 1.0 for t in range(4)})
    return [float(votes) for votes in ballots(pool, 60)]


def test_columns_are_the_columns() -> None:
    matrix = np.arange(5.0 * (2 * COLUMNS + 3)).reshape(5, -1)
    np.testing.assert_array_equal(np.array(list(columns(matrix))), matrix.T)


@pytest.mark.parametrize("percentile", [-1, 100, float("nan")])
def test_a_percentile_out_of_range_is_refused(percentile: float) -> None:
    with pytest.raises(InputError, match="must be from 0 up to below 100"):
        Vote(percentile)
