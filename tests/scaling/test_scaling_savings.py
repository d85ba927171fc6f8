"""Savings against identities, every pair counted by hand, and curves whose ratio is known."""

import json
import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from backcast.errors import InputError
from backcast.scaling import Law, fit_law, savings, savings_curve

SIZES = (50, 100, 200, 400, 800)


def power(gain: float, floor: float = 0.1, b: float = 0.5):
    return lambda n: floor + gain * (n / 50) ** -b


def fit(curve, sizes=SIZES, noise=0.01, rng=0, stretch=1, sign=1, bounds=(0, math.inf), **options) -> Law:
    draw = np.random.default_rng(rng).standard_normal
    rows = [
        {"n": stretch * n, "value": sign * (curve(n) + noise * draw()), "seed": s, "selector": "x"}
        for n in sizes
        for s in range(3)
    ]
    return fit_law(rows, bounds=bounds, higher_is_better=sign < 0, **{"laws": ["power"], **options})


@cache
def good() -> Law:
    return replace(fit(power(0.3), rng=1), group="good")


@cache
def poor() -> Law:
    return replace(fit(power(0.5), rng=2), group="poor")


def test_of_two_power_laws_of_one_exponent_and_floor_the_ratio_is_constant() -> None:
    """n_b/n_a = (A_b/A_a)^(1/b), whatever the value."""
    a, b = fit(power(0.3), noise=0.0), fit(power(0.45), noise=0.0)
    curve = savings_curve(a, b)
    assert len(curve) > 10
    np.testing.assert_allclose([s.ratio for s in curve], 1.5**2, rtol=0.02)
    assert all(s.low <= 1.5**2 <= s.high for s in curve)
    assert all(s.told for s in curve)
    values = [s.value for s in curve]
    assert values == pytest.approx(np.linspace(power(0.3)(50), power(0.45)(800), len(values)), rel=0.01)


def test_runs_at_twice_the_sizes_need_twice_the_data() -> None:
    """The same table with every n doubled has the same curves, stretched: all medians are 2, all the rest mirrored."""
    a, b = fit(power(0.4)), fit(power(0.4), stretch=2)
    for value in (0.5, 0.3, 0.22, 0.18):
        s = savings(a, b, value)
        assert s.ratio == pytest.approx(2.0, rel=1e-6)
        assert s.low * s.high == pytest.approx(4.0, rel=1e-6)
        assert s.saved[0] == pytest.approx(0.5, rel=1e-6)


def test_a_selector_saves_nothing_over_itself() -> None:
    s = savings(good(), good())
    assert s.ratio == pytest.approx(1.0)
    assert s.low < 1 < s.high
    assert s.p_less == pytest.approx(0.5, abs=1e-4)  # some n* are equal
    assert not s.told
    assert s.sentence().startswith(
        "good against good: cannot tell which needs less data for a value of at most "
    )


def test_turned_round_it_is_the_reciprocal() -> None:
    s, t = savings(good(), poor(), 0.25), savings(poor(), good(), 0.25)
    assert [t.ratio, t.low, t.high] == pytest.approx([1 / s.ratio, 1 / s.high, 1 / s.low])
    assert t.p_less == pytest.approx(1 - s.p_less)
    assert (t.p_zero, t.p_infinite) == (s.p_infinite, s.p_zero)
    assert (s.first, s.second) == (t.second, t.first) == ("good", "poor")
    assert s.told
    assert t.told
    assert s.sentence() == t.sentence()
    assert s.sentence().startswith("For a value of at most 0.25 poor needs ")


def test_a_mirrored_metric_saves_the_same() -> None:
    for n in (None, 100.0):
        down = savings(fit(power(0.3), rng=1), fit(power(0.5), rng=2), n=n)
        up = savings(
            fit(power(0.3), rng=1, sign=-1, bounds=(-math.inf, 0)),
            fit(power(0.5), rng=2, sign=-1, bounds=(-math.inf, 0)),
            n=n,
        )
        assert up.value == pytest.approx(-down.value)
        assert [up.ratio, up.low, up.high] == pytest.approx([down.ratio, down.low, down.high])
        assert up.sentence() == down.sentence().replace("at most ", "at least -")


@pytest.mark.parametrize("value", [0.2, 0.09])
def test_every_pair_counts(value: float) -> None:
    """Against all pairs of the two laws' draws; at 0.09 some of either are infinite, and some pairs have two."""
    a, b = good().invert(value).samples, poor().invert(value).samples
    never = np.isinf(a[:, None]) & np.isinf(b)
    with np.errstate(invalid="ignore"):
        ratio = b / a[:, None]
    s = savings(good(), poor(), value, level=0.5)
    assert (s.p_undefined > 0.01) == (value == 0.09)
    assert s.p_undefined == pytest.approx(never.mean(), abs=0.005)
    assert s.p_infinite == pytest.approx((ratio == np.inf).mean(), abs=0.005)
    assert s.p_zero == pytest.approx((ratio == 0).mean(), abs=0.005)
    assert s.p_less == pytest.approx((ratio > 1).mean(), abs=0.005)
    expected = np.quantile(ratio[~never], [0.25, 0.5, 0.75], method="inverted_cdf")
    assert [s.low, s.ratio, s.high] == pytest.approx(expected.tolist(), rel=0.03)


def test_what_the_second_never_reaches_is_an_infinite_saving() -> None:
    stuck = replace(fit(power(0.3, floor=0.4), noise=0.002, rng=3), group="stuck")
    s = savings(good(), stuck, 0.2)
    assert s.p_infinite > 0.85  # a trend knows no floor
    assert s.ratio == math.inf
    assert s.saved[0] == 1.0
    assert s.told
    assert s.sentence().startswith(
        "good reaches a value of at most 0.2; stuck more likely than not never does"
    )
    t = savings(stuck, good(), 0.2)
    assert t.ratio == 0.0
    assert t.saved[0] == -math.inf
    assert t.sentence() == s.sentence()
    assert json.loads(json.dumps(t.to_json(), allow_nan=False))["saved"]["median"] is None


def test_what_neither_reaches_is_no_saving() -> None:
    s = savings(good(), poor(), 0.0)  # the metric's very best value is never met
    assert s.p_undefined == 1.0
    assert [s.p_less, s.p_infinite, s.p_zero] == [0.0, 0.0, 0.0]
    assert math.isnan(s.ratio)
    assert not s.told
    assert s.sentence() == (
        "good against poor: neither is likely to reach a value of at most 0 (probability that neither does: 100 %), "
        "so that no saving is defined there."
    )
    assert json.loads(json.dumps(s.to_json(), allow_nan=False))["ratio"] is None


def test_the_value_is_what_the_second_is_expected_to_reach() -> None:
    assert savings(good(), poor()).value == poor().predict(800).mean[0]
    assert savings(good(), poor(), n=150).value == poor().predict(150).mean[0]
    assert savings(good(), poor(), n=150).n_second.n == pytest.approx(150, rel=0.1)


def test_curves_without_a_common_value_have_no_curve_of_savings() -> None:
    best = fit(lambda n: power(0.1, floor=0.01)(n), rng=4)
    worst = fit(lambda n: power(0.3, floor=0.5)(n), rng=5)
    assert savings_curve(best, worst) == []
    assert savings_curve(worst, best) == []


def test_intervals_hold_as_often_as_they_say() -> None:
    """20 power laws in a ring, each against the next; a 90 % interval, at the value of the second's largest budget."""
    rng, held, widths = np.random.default_rng(3), [], []
    curves = [(rng.uniform(0.2, 0.6), rng.uniform(0.02, 0.15), rng.uniform(0.3, 0.8)) for _ in range(20)]
    laws = [fit(power(*curve), rng=i) for i, curve in enumerate(curves)]
    for i in range(20):
        s = savings(laws[i - 1], laws[i])
        n_a, n_b = (
            50 * ((s.value - floor) / gain) ** (-1 / slope) if s.value > floor else math.inf
            for gain, floor, slope in (curves[i - 1], curves[i])
        )
        held.append(s.low <= n_b / n_a <= s.high)
        widths.append(math.log(s.high / s.low) if s.low > 0 and s.high < math.inf else math.inf)
    assert sum(held) >= 15  # P(fewer of 20 | 90 %) < 2 %
    assert np.median(widths) < math.log(4)  # not by saying nothing


def test_savings_are_json() -> None:
    s = savings(good(), poor(), 0.25)
    value = json.loads(json.dumps(s.to_json(), allow_nan=False))
    assert [value[name] for name in ("first", "second", "value", "level")] == ["good", "poor", 0.25, 0.9]
    assert [value["low"], value["ratio"], value["high"]] == [s.low, s.ratio, s.high]
    assert value["saved"]["median"] == 1 - 1 / s.ratio
    assert value["n_first"]["n"] == s.n_first.n
    assert value["sentence"] == s.sentence()


def test_what_cannot_be_compared_is_refused() -> None:
    bounded = fit(power(0.3), bounds=(0, 2))
    with pytest.raises(InputError, match="differ in the metric's direction or bounds"):
        savings(good(), bounded)
    with pytest.raises(InputError, match="differ in the metric's direction or bounds"):
        savings_curve(good(), bounded)
    with pytest.raises(InputError, match=r"value 0\.2 and at n = 100 are two questions"):
        savings(good(), poor(), 0.2, 100)
    with pytest.raises(InputError, match="outside the metric's range"):
        savings(good(), poor(), -1)
    with pytest.raises(InputError, match="level 90"):
        savings(good(), poor(), 0.2, level=90)
