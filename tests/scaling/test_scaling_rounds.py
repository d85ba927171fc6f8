"""Plans of collection against brute force, and against what they must not depend on."""

import itertools
import math
from functools import cache

import numpy as np
import pytest
from scipy.stats import norm

from backcast.errors import InputError
from backcast.scaling import Law, fit_law
from backcast.scaling.decisions import MISSED, cheapest, foreseen
from backcast.scaling.rounds import plan_round


def loss(n):
    return 0.1 + 0.6 / (1 + (n / 150) ** 0.8)


@cache
def law() -> Law:
    """Four budgets of two seeds, up to 400."""
    noise = np.random.default_rng(0).normal(0, 0.01, (4, 2))
    rows = [
        {"n": n, "value": loss(n) + e}
        for n, pair in zip((50, 100, 200, 400), noise, strict=True)
        for e in pair
    ]
    return fit_law(rows, bounds=(0, 1), laws=["hill", "power"])


def expected(need, weight, start, plan, price, penalty) -> float:
    """Equation 4 of Mahmood et al. 2022, sample by sample."""
    total = 0.0
    for n, w, p in zip(need, weight, price, strict=True):
        q = start
        for after in plan:
            if n > q:
                total += w * p * (after - q)
            q = after
        total += w * penalty * (n > q)
    return total / sum(weight)


@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_the_cheapest_plan_is_brute_force_s(rounds: int) -> None:
    rng = np.random.default_rng(rounds)
    need = np.append(np.exp(rng.normal(4, 1, 7)), math.inf)
    weight, price = rng.random((5, 8)), rng.random(8)
    n, cost = cheapest(need, weight, 0.0, rounds, price, 40.0)
    plans = list(itertools.combinations_with_replacement([0.0, *sorted(need[:-1])], rounds))
    for o in range(5):
        best = min(plans, key=lambda plan: expected(need, weight[o], 0.0, plan, price, 40.0))
        assert cost[o] == pytest.approx(expected(need, weight[o], 0.0, best, price, 40.0))
        assert n[o] == best[0]


def test_one_round_is_the_newsvendor_s() -> None:
    """n* exponential with mean m: penalty · f(q) = price at q = m log(penalty / (m · price))."""
    mean, price, penalty = 100.0, 0.2, 400.0
    need = -mean * np.log1p(-(np.arange(5000) + 0.5) / 5000)
    n, _ = cheapest(need, np.ones((1, 5000)), 0.0, 1, np.full(5000, price), penalty)
    assert n[0] == pytest.approx(mean * math.log(penalty / (mean * price)), rel=0.02)


def test_outcomes_weigh_curves_by_bayes() -> None:
    true = np.array([3, 500])
    weight = foreseen(law(), 900.0, 2, true)
    curve, sd = law().curves(900.0)[:, 0], np.sqrt(law().run_variance(900.0, 2)[:, 0])
    luck = np.random.default_rng(0).permutation(norm.ppf([0.25, 0.75]))
    for row, t, z in zip(weight, true, luck, strict=True):
        density = norm.pdf(curve[t] + sd[t] * z, curve, sd)
        np.testing.assert_allclose(row, density / density.sum(), rtol=1e-9, atol=1e-12)


def test_the_last_round_minimises_the_expected_ratio() -> None:
    target, collected = float(loss(1200.0)), 400.0
    plan = plan_round(law(), target, 1, collected)
    need = law().invert(target).samples
    need = need[need > collected]
    price = 1 / need

    def total(q: float) -> float:
        return price.mean() * (q - collected) + MISSED * (need > q).mean()

    best = min(map(total, np.unique(need[np.isfinite(need)])))
    assert total(plan.n) == pytest.approx(plan.expected_cost, rel=1e-9)
    assert total(plan.n) < 1.03 * best  # a grid of quantiles
    assert plan.p_met == (need <= plan.n).mean()


def test_more_rounds_begin_with_less_and_cost_less() -> None:
    plans = [plan_round(law(), float(loss(1200.0)), rounds, 400.0) for rounds in (1, 2, 3)]
    assert plans[0].n > plans[1].n >= plans[2].n > 400
    assert plans[0].expected_cost > plans[1].expected_cost > plans[2].expected_cost > 1
    assert "No round is left" in plans[0].sentence()
    assert "2 more rounds" in plans[2].sentence()


def test_a_dearer_miss_collects_more() -> None:
    amounts = [plan_round(law(), float(loss(1200.0)), 1, 400.0, penalty=p).n for p in (1.0, 4.0, 16.0, 64.0)]
    assert amounts == sorted(amounts)
    assert amounts[-1] > 1.25 * amounts[1]


def test_money_is_a_unit() -> None:
    target = float(loss(1200.0))
    euros = plan_round(law(), target, 2, 400.0, cost=0.5, penalty=5000.0)
    cents = plan_round(law(), target, 2, 400.0, cost=50.0, penalty=500000.0)
    assert euros.n == cents.n > 400
    assert cents.expected_cost == pytest.approx(100 * euros.expected_cost)
    assert "Collect no more" in plan_round(law(), target, 1, 400.0, cost=0.5, penalty=10.0).sentence()


def test_giving_up_costs_the_penalty_and_waiting_is_no_round() -> None:
    """To stay where one is ends the collection; it buys no second look at what is known."""
    for rounds in (1, 2, 5):
        plan = plan_round(law(), 0.11, rounds, 400.0, cost=1.0, penalty=50.0)
        assert plan.n == 400
        assert plan.expected_cost == pytest.approx(50.0)
    assert plan_round(law(), 0.11, 5, 400.0).n > 400


def test_a_target_missed_where_the_law_has_it_met() -> None:
    """The law is then wrong about the level: it goes on from where it stands, a little at a time."""
    target = float(loss(100.0))
    assert law().invert(target).high < 400
    plan = plan_round(law(), target, 2, 400.0)
    assert 400 < plan.n < 800


def test_bad_numbers_are_refused() -> None:
    target = float(loss(1200.0))
    with pytest.raises(InputError, match="rounds_left is 0"):
        plan_round(law(), target, 0, 400.0)
    with pytest.raises(InputError, match="collected is 0"):
        plan_round(law(), target, 1, 0.0)
    with pytest.raises(InputError, match="cost was given without a penalty"):
        plan_round(law(), target, 1, 400.0, cost=1.0)
    with pytest.raises(InputError, match="must be above 0"):
        plan_round(law(), target, 1, 400.0, penalty=-1.0)
    with pytest.raises(InputError, match="outside the metric's range"):
        plan_round(law(), 2.0, 1, 400.0)
