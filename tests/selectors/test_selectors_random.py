from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from scipy.stats import chisquare
from selectors_cases import rows, scores

from backcast.data.examples import Rows
from backcast.errors import InputError
from backcast.selectors import Evidence, select
from backcast.selectors.evidence import take_rows

PINNED = [76, 25, 78, 39, 82, 75, 85, 97]


def test_the_picks_of_a_seed_are_the_same_everywhere() -> None:
    pool = rows(100)
    assert select(pool, 8, "random", seed=0).indices.tolist() == PINNED
    assert select(pool, 8, "random", seed=1).indices.tolist() != PINNED


def test_the_order_of_the_pool_and_the_scores_do_not_matter() -> None:
    pool = rows(50)
    chosen = set(select(pool, 9, "random", seed=4).rows.ids)
    order = np.random.default_rng(0).permutation(50)
    assert set(select(take_rows(pool, order), 9, "random", seed=4).rows.ids) == chosen
    assert set(select(scores(np.arange(50)[:, None], pool), 9, "random", seed=4).rows.ids) == chosen


@pytest.mark.parametrize("balance", [None, "source"])
def test_a_larger_budget_contains_a_smaller_one(balance: str | None) -> None:
    whole = select(rows(40, "aab"), 40, "random", seed=3, balance=balance).indices.tolist()
    assert sorted(whole) == list(range(40))
    assert select(rows(40, "aab"), 11, "random", seed=3, balance=balance).indices.tolist() == whole[:11]


def test_every_example_is_as_likely_as_any_other() -> None:
    counts = np.zeros(12)
    for seed in range(2000):
        counts[select(rows(12), 3, "random", seed=seed).indices] += 1
    assert counts.sum() == 6000
    assert chisquare(counts).pvalue > 1e-3


def water_filled(sizes: dict[str, int], budget: int) -> list[int]:
    """Sorted counts per source when one is given to the emptiest source at a time."""
    got = dict.fromkeys(sizes, 0)
    for _ in range(budget):
        source = min((s for s in sizes if got[s] < sizes[s]), key=lambda s: got[s])
        got[source] += 1
    return sorted(got.values())


@pytest.mark.parametrize("budget", [1, 2, 5, 7, 12, 20])
def test_balanced_sources_get_equal_shares_as_long_as_they_last(budget: int) -> None:
    sources = "a" * 13 + "b" * 2 + "c" * 5
    chosen = select(rows(20, sources), budget, "random", seed=budget, balance="source")
    counts = Counter(chosen.rows.sources)
    assert sorted([*counts.values()] + [0] * (3 - len(counts))) == water_filled(
        {"a": 13, "b": 2, "c": 5}, budget
    )


def test_the_odd_one_goes_to_any_source() -> None:
    first = Counter(
        select(rows(9, "abc"), 1, "random", seed=s, balance="source").rows.sources[0] for s in range(300)
    )
    assert min(first[s] for s in "abc") > 60


def test_no_gain_and_no_score_are_claimed() -> None:
    chosen = select(rows(5), 2, "random")
    assert np.isnan(chosen.gains).all()
    assert chosen.scores is None


def test_an_unknown_balance_is_refused() -> None:
    with pytest.raises(InputError, match="balance='weight' is unknown; give 'source'"):
        select(rows(5), 2, "random", balance="weight")


def test_examples_of_equal_content_are_told_apart_by_row() -> None:
    pool = Rows(("same",) * 6, np.arange(6), ("s",) * 6)
    assert Evidence(pool).by_id.tolist() == list(range(6))
    assert len(set(select(pool, 4, "random").indices.tolist())) == 4
