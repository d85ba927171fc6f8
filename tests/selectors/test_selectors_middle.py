"""middle, as a selector and as a filter, against its definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from selectors_cases import RNG, room, rows, scores, shuffled

from backcast.errors import InputError
from backcast.selectors import Evidence, select
from backcast.selectors.filters.middle import Window
from backcast.selectors.methods.middle import Middle


@st.composite
def pools(draw: st.DrawFn) -> Evidence:
    """Few distinct scores, signals and ids, so that ties are everywhere."""
    n = draw(st.integers(1, 12))
    numbers = st.integers(-2, 2)
    ids = [str(i) for i in draw(arrays(np.int8, n, elements=st.integers(0, 5)))]
    values, signal = (draw(arrays(np.int8, (n, m), elements=numbers)) for m in (2, 1))
    return Evidence.of(scores(values, rows(n, ids=ids)), signals={"perplexity": signal[:, 0]})


def falling(pool: Evidence) -> list[int]:
    """From the highest perplexity to the lowest."""
    signal = pool.signals["perplexity"]
    return sorted(
        range(len(pool)),
        key=lambda i: (-signal[i], -pool.mean[i], pool.rows.ids[i], int(pool.rows.rows[i])),
    )


@settings(deadline=None)
@given(pools(), st.data())
def test_it_is_the_window_around_the_median(pool: Evidence, data: st.DataObject) -> None:
    n, order = len(pool), falling(pool)
    budget = data.draw(st.integers(1, n))
    chosen = Middle("perplexity").select(pool, room(budget, pool), RNG)
    gap = (n - budget) // 2
    windows = [set(order[start : start + budget]) for start in (gap, n - budget - gap)]
    assert set(chosen.indices.tolist()) in windows  # one or the other where the gap is odd
    assert (np.diff(chosen.gains) <= 0).all()
    quantiles = [(n - order.index(i) - 0.5) / n for i in chosen.indices]
    np.testing.assert_allclose(chosen.gains, 1 - np.abs(2 * np.array(quantiles) - 1), atol=1e-12)


@settings(max_examples=50, deadline=None)
@given(pools(), st.integers(0, 9))
def test_the_order_of_the_pool_does_not_matter(pool: Evidence, seed: int) -> None:
    other, budget = shuffled(pool, seed), max(1, len(pool) // 2)
    mine, theirs = (Middle("perplexity").select(p, room(budget, p), RNG) for p in (pool, other))
    assert mine.rows.rows.tolist() == theirs.rows.rows.tolist()
    assert dropped(pool) == dropped(other)


def dropped(pool: Evidence) -> dict[str, list[int]]:
    found = Window(0.2, 0.6, "perplexity").drop(pool)
    return {reason: sorted(pool.rows.rows[positions].tolist()) for reason, positions in found.items()}


def test_of_two_as_near_the_better_comes_first() -> None:
    pool = scores([[1], [2], [3], [4]])
    assert select(pool, 1, "middle").indices.tolist() == [2]
    harmful = select(pool, 1, "middle", of="perplexity", signals={"perplexity": np.array([4.0, 3, 2, 1])})
    assert harmful.indices.tolist() == [2]


@pytest.mark.parametrize(
    ("low", "high", "kept"),
    [
        (0.25, 0.75, range(2, 8)),
        (0.26, 0.74, range(3, 7)),
        (0, 1, range(10)),
        (0, 0.1, [0]),
        (0.9, 1, [9]),
        (0.05, 0.95, range(10)),
    ],
)
def test_the_filter_keeps_the_quantiles_within_the_window(low: float, high: float, kept: list[int]) -> None:
    signal = np.arange(10.0)
    chosen = select(rows(10), 10, f"middle({low}, {high}, of=loss) | random", signals={"loss": signal})
    assert sorted(chosen.indices.tolist()) == list(kept)
    told = {group.reason: group.indices.tolist() for group in chosen.dropped}
    assert told == {
        "below the window": list(range(min(kept))),
        "above the window": list(range(max(kept) + 1, 10)),
    }


def test_what_is_not_there_is_said() -> None:
    with pytest.raises(InputError, match="no signal 'loss'; there is perplexity: give signals="):
        select(rows(4), 2, "middle", of="loss", signals={"perplexity": np.ones(4)})
    with pytest.raises(InputError, match="middle needs scores"):
        select(rows(4), 2, "middle")
    for low, high in ((0.5, 0.5), (-0.1, 0.5), (0.5, 1.1), (float("nan"), 1)):
        with pytest.raises(InputError, match="0 ≤ low < high ≤ 1"):
            Window(low, high)
