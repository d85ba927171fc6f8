"""The next run and its stop rule: what must follow from more or less noise, cost and stake."""

import math
from functools import cache

import numpy as np
import pytest

from backcast.errors import InputError
from backcast.scaling import Law, fit_law, next_run
from backcast.scaling.decisions import MISSED
from backcast.scaling.next_run import APART, MULTIPLES, PRICE, SEEDS


def accuracy(n):
    return 0.9 - 0.6 / (1 + (n / 150) ** 0.8)


@cache
def small(rng: int = 0, drop: float = 0.0) -> Law:
    """Three small budgets of three seeds of an accuracy that ends at 0.9."""
    draw = np.random.default_rng(rng).standard_normal
    rows = [{"n": n, "value": accuracy(n) - drop + 0.02 * draw()} for n in (60, 120, 240) for _ in range(3)]
    return fit_law(rows, higher_is_better=True, bounds=(0, 1), laws=["hill", "power"])


def test_the_next_run_is_where_it_tells_most() -> None:
    flat_rate = next_run(small(), 0.8, [(60, 1), (240, 1), (960, 1), (960, 3)], cost=lambda n, seeds: 1.0)
    # Furthest out and most seeds, when they cost nothing more.
    assert (flat_rate.n, flat_rate.seeds) == (960, 3)
    assert flat_rate.sd_after < 0.9 * flat_rate.sd_now
    dear = next_run(small(), 0.8, [(480, 1), (960, 1)], cost=lambda n, seeds: 1.0 if n < 900 else 1e6)
    assert dear.n == 480
    assert dear.cost == 1.0
    assert "n = 480 with 1 seed" in dear.sentence()


def test_candidates_need_not_be_given() -> None:
    advice = next_run(small(), 0.8)
    assert advice.n in [240 * multiple for multiple in MULTIPLES]
    assert advice.seeds in SEEDS
    assert advice.cost == advice.n * advice.seeds


def test_never_is_a_fixed_way_off() -> None:
    """The variance is the one of log n* plus that of a coin: no cap on n* decides it."""
    for target in (0.8, 0.88):
        need = small().invert(target).samples
        finite = np.log(need[need <= 100 * 240])
        p = len(finite) / len(need)
        now = next_run(small(), target, [(480, 1)]).sd_now
        assert now**2 == pytest.approx(p * finite.var() + p * (1 - p) * APART**2, rel=0.1)
    assert next_run(small(), 1.0).sd_now == 0  # the metric's best value is never met: nothing is in doubt


def test_stop_when_no_run_saves_what_it_costs() -> None:
    go = next_run(small(), 0.8, [(480, 1), (960, 2)])
    assert not go.stop
    assert go.saving > go.cost
    stop = next_run(small(), 0.8, [(480, 1), (960, 2)], cost=lambda n, seeds: 1e9)
    assert stop.stop
    assert stop.saving < stop.cost
    assert stop.sentence().startswith("Stop: ")
    assert next_run(small(), 1.0).stop


def test_a_run_saves_less_than_certainty_would() -> None:
    """The expected value of sample information lies between 0 and that of perfect information."""
    target, price, penalty = 0.8, 2.0, 20000.0
    need = small().invert(target).samples
    amounts = np.unique(need[np.isfinite(need)])[:, None]
    today = min(penalty, (price * amounts[:, 0] + penalty * (need > amounts).mean(axis=1)).min())
    certain = np.minimum(price * need, penalty).mean()
    savings = [
        next_run(small(), target, [(n, seeds)], price=price, penalty=penalty).saving
        for n, seeds in [(120, 1), (480, 1), (960, 3), (4000, 9)]
    ]
    assert savings[0] >= 0
    assert savings == sorted(savings)
    assert savings[-1] < 1.02 * (today - certain)
    assert savings[-1] > 0.3 * (today - certain)


def test_the_stake_is_what_the_data_cost() -> None:
    """Unless it is said, a miss costs `MISSED` times the data; twice the price of all saves twice as much."""
    need = small().invert(0.8).samples
    usual = PRICE * MISSED * float(np.median(need[np.isfinite(need)]))
    once = next_run(small(), 0.8, [(480, 1)])
    assert next_run(small(), 0.8, [(480, 1)], penalty=usual).saving == once.saving
    assert next_run(small(), 0.8, [(480, 1)], price=2 * PRICE).saving == pytest.approx(2 * once.saving)


def test_of_several_selectors_the_better_one_is_run() -> None:
    laws = {"good": small(), "bad": small(1, drop=0.2)}
    advice = next_run(laws, 0.75)
    assert advice.selector == "good"
    assert "of good" in advice.sentence()
    # What a selector far behind would show cannot change what is bought, nor the least n.
    behind = next_run(laws, 0.75, [(480, 2, "bad")])
    ahead = next_run(laws, 0.75, [(480, 2, "good")])
    assert behind.saving < 0.2 * ahead.saving
    assert behind.sd_now - behind.sd_after < 0.2 * (ahead.sd_now - ahead.sd_after)


def test_one_law_under_a_name_is_the_same_question() -> None:
    alone, named = next_run(small(), 0.8, [(480, 2)]), next_run({"a": small()}, 0.8, [(480, 2, "a")])
    assert (alone.sd_after, alone.saving) == (named.sd_after, named.saving)
    assert math.isfinite(alone.saving)


def test_bad_questions_are_refused() -> None:
    with pytest.raises(InputError, match="no candidates"):
        next_run(small(), 0.8, [])
    with pytest.raises(InputError, match="no laws"):
        next_run({}, 0.8)
    with pytest.raises(InputError, match="no law of 'c'; choose from a, b"):
        next_run({"a": small(), "b": small(1)}, 0.8, [(480, 1, "c")])
    with pytest.raises(InputError, match="must be above 0"):
        next_run(small(), 0.8, [(60, 1)], cost=lambda n, seeds: 0.0)
    with pytest.raises(InputError, match="outside the metric's range"):
        next_run(small(), 80)
