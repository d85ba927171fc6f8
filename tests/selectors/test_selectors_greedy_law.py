"""greedy_law against curves whose best size is known, and its table, floors and prices."""

from __future__ import annotations

import numpy as np
import pytest
from selectors_cases import evidence, room, rows, scores, shuffled

from backcast.data.examples import Rows
from backcast.errors import InputError
from backcast.selectors import Allowance, Evidence, Selection, select
from backcast.selectors.evidence import Trial
from backcast.selectors.methods.greedy_law import GreedyLaw

RNG = np.random.Generator(np.random.PCG64(0))


def falling(n: int, trial: Trial, pool: Rows | None = None) -> Evidence:
    """n examples of which the first is the best."""
    return Evidence.of(scores(np.linspace(1, -1, n)[:, None], pool), trial=trial)


def power(chosen: np.ndarray) -> float:
    return 0.9 - 0.8 * len(chosen) ** -0.5


def sizes(chosen: Selection) -> list[float]:
    return [run["n"] for run in chosen.notes["measured"]]


def test_it_stops_where_the_slope_is_the_price() -> None:
    """y = c - a n^-b pays until n = (a b / price)^(1/(1+b))."""
    best = 150
    price = 0.8 * 0.5 / best**1.5
    pool = falling(1024, power)
    chosen = GreedyLaw(price).select(pool, room(1024, pool), RNG)
    assert len(chosen) == pytest.approx(best, rel=0.15)
    assert chosen.indices.tolist() == list(range(len(chosen)))
    # 128 to 256 adds 0.0207 and costs 0.0279: it was not made
    assert sizes(chosen) == [8, 16, 32, 64, 128]
    ahead = chosen.notes["next"]
    assert ahead["n"] == 256
    assert ahead["costs"] == pytest.approx(128 * price, rel=1e-6)
    assert ahead["adds"] == pytest.approx(power(np.zeros(256)) - power(np.zeros(128)), rel=0.05)
    assert ahead["adds"] < ahead["costs"]
    # the gains are the law's slope, which ends at the price
    assert np.isnan(chosen.gains[:8]).all()
    assert chosen.gains[-1] == pytest.approx(price, rel=0.15)
    np.testing.assert_allclose(chosen.gains[20:100], 0.4 * np.arange(21.0, 101) ** -1.5, rtol=0.15)


def test_what_is_measured_by_cost_is_priced_by_cost() -> None:
    """The same curve in tokens, three an example."""
    best = 100
    pool = falling(512, lambda chosen: 0.9 - 0.8 * (3 * len(chosen)) ** -0.5)
    method = GreedyLaw(0.4 / (3 * best) ** 1.5, slices=4)
    chosen = method.select(pool, Allowance(np.full(512, 3.0), 3 * 256), RNG)
    assert sizes(chosen) == [96, 192, 384, 768]
    assert len(chosen) == pytest.approx(best, rel=0.15)
    assert chosen.notes["next"] is None


def test_a_price_of_next_to_nothing_takes_all() -> None:
    pool = falling(100, power)
    chosen = GreedyLaw(1e-9, slices=2).select(pool, room(64, pool), RNG)
    assert chosen.indices.tolist() == list(range(64))
    assert sizes(chosen) == [32, 64]


def test_nothing_is_paid_for_a_metric_that_does_not_move() -> None:
    pool = falling(64, lambda chosen: 0.5)
    chosen = GreedyLaw(1e-4, slices=4, bounds=(0, 1)).select(pool, room(64, pool), RNG)
    assert len(chosen) == 8
    assert any("does not improve" in warning for warning in chosen.notes["warnings"])


def test_the_trial_is_asked_as_often_as_it_says_and_sees_prefixes() -> None:
    seen: list[list[int]] = []
    rng = np.random.default_rng(0)

    def trial(chosen: np.ndarray) -> float:
        seen.append(chosen.tolist())
        return power(chosen) + 0.01 * rng.normal()

    pool = falling(50, trial)
    chosen = GreedyLaw(0.001, slices=3, repeats=2).select(pool, room(40, pool), RNG)
    assert seen == [list(range(size)) for size in (10, 10, 20, 20, 40, 40)]
    assert sizes(chosen) == [10, 10, 20, 20, 40, 40]


def test_floors_ceilings_and_costs_hold_at_every_size() -> None:
    pool, costs = rows(40, "aaab"), np.where(np.arange(40) % 2, 2.0, 1.0)
    seen: list[np.ndarray] = []

    def trial(chosen: np.ndarray) -> float:
        seen.append(chosen)
        return power(chosen)

    evidence = falling(40, trial, pool)
    allowance = Allowance(costs, 30, pool.sources, {"b": 8}, {"a": 20})
    last = GreedyLaw(1.0, slices=3).select(evidence, allowance, RNG).indices
    assert len(seen) == 3
    for chosen in (*seen, last):
        spent = {s: costs[[i for i in chosen if pool.sources[i] == s]].sum() for s in "ab"}
        assert spent["b"] >= 8
        assert spent["a"] <= 20
        assert sum(spent.values()) <= 30
    assert last.tolist() == seen[0].tolist()
    assert [i for i in last if pool.sources[i] == "b"] == [3, 7, 11, 15]


def test_the_order_of_the_pool_does_not_matter() -> None:
    pool = evidence(40)
    pool = Evidence.of(scores(pool.scores, pool.rows), trial=power)
    mine, theirs = (GreedyLaw(0.005, slices=2).select(p, room(30, p), RNG) for p in (pool, shuffled(pool, 1)))
    assert mine.rows.ids == theirs.rows.ids
    assert mine.notes == theirs.notes


def test_one_size_is_no_curve() -> None:
    chosen = select(scores([[1.0], [2]]), 1, "greedy_law", price=1, trial=power)
    assert chosen.indices.tolist() == [1]
    assert np.isnan(chosen.gains).all()


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({}, "price=0.0 must be above zero: what an example must add"),
        ({"price": -1}, "price=-1 must be above zero"),
        ({"price": 1, "slices": 1}, "slices=1 must be a whole number from 2 up"),
        ({"price": 1, "repeats": 0}, "repeats=0 must be a whole number from 1 up"),
        ({"price": 1, "bounds": (1,)}, "must be two numbers"),
    ],
)
def test_a_parameter_out_of_range_is_refused(params: dict[str, object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        select(scores(np.ones((4, 1))), 2, "greedy_law", trial=power, **params)


def test_what_it_needs_is_said() -> None:
    with pytest.raises(InputError, match="greedy_law needs scores"):
        select(rows(4), 2, "greedy_law", price=1, trial=power)
    with pytest.raises(InputError, match="greedy_law needs a trial"):
        select(scores(np.ones((4, 1))), 2, "greedy_law", price=1)
    with pytest.raises(InputError, match="the trial gave nan for 1 examples"):
        select(scores(np.ones((4, 1))), 2, "greedy_law", price=1, trial=lambda chosen: float("nan"))
