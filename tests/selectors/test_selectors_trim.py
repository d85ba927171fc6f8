from __future__ import annotations

import numpy as np
import pytest
from selectors_cases import evidence, rows, scores, shuffled

from backcast.errors import InputError
from backcast.selectors import Evidence, select
from backcast.selectors.filters.trim import Trim


@pytest.mark.parametrize("share", [0.0, 0.01, 0.25, 0.4, 0.99])
def test_what_goes_is_the_lowest_share_by_best_score(share: float) -> None:
    pool = evidence(37)
    (dropped,) = Trim(share).drop(pool).values()
    assert len(dropped) == int(share * 37)
    assert dropped.tolist() == sorted(np.argsort(pool.best, kind="stable")[: len(dropped)].tolist())


def test_ties_go_by_mean_then_by_id_whatever_the_order_of_the_pool() -> None:
    pool = Evidence.of(scores(np.array([[1, 1], [1, 0], [1, 0], [2, 0]]), rows(4, ids=list("dcba"))))
    (dropped,) = Trim(0.5).drop(pool).values()
    assert [pool.rows.ids[i] for i in dropped] == ["c", "b"]
    (dropped,) = Trim(0.25).drop(pool).values()
    assert [pool.rows.ids[i] for i in dropped] == ["c"]
    whole = evidence(30)
    mine, theirs = (
        {p.rows.ids[i] for i in next(iter(Trim().drop(p).values()))} for p in (whole, shuffled(whole, 1))
    )
    assert mine == theirs


def test_a_row_that_serves_one_group_alone_stays() -> None:
    values = np.array([[9, -9, -9], [1, 1, 1], [0, 0, 0], [0.5, 0.5, 0.5]])
    assert 0 in select(scores(values), 2, "trim(0.5) | random").indices


@pytest.mark.parametrize("share", [-0.1, 1, float("nan")])
def test_a_share_out_of_range_is_refused(share: float) -> None:
    with pytest.raises(InputError, match="trim: share="):
        Trim(share)
