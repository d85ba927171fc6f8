"""Exponents, slopes and leads against their formulas, draw by draw, and against curves whose truth is known."""

import json
import math
from functools import cache

import numpy as np
import pytest

from backcast.errors import InputError
from backcast.scaling import Law, compare_laws, fit_law

SIZES = [50, 100, 200, 400, 800]


def table(curve, sizes=SIZES, noise=0.01, seeds=3, rng=0) -> list[dict]:
    draw = np.random.default_rng(rng).standard_normal
    return [{"n": n, "value": curve(n) + noise * draw(), "seed": s} for n in sizes for s in range(seeds)]


def power(b: float, floor: float, gain: float = 0.5):
    return lambda n: floor + gain * (n / 50) ** -b


def fit(curve, laws=("power",), bounds=(0, math.inf), **options) -> Law:
    return fit_law(table(curve, **options), bounds=bounds, laws=list(laws))


@cache
def fast() -> Law:
    return fit(power(0.9, 0.1), ("power", "hill"), rng=1)


@cache
def slow() -> Law:
    return fit(power(0.2, 0.1), ("power", "hill"), rng=2)


def test_the_exponent_of_a_power_law_is_its_b() -> None:
    law = fit(power(0.5, 0.1), sizes=[30, 60, 120])
    found = compare_laws({"a": law, "b": law}).exponents["a"]
    b = np.concatenate([part.parameters()["b"] for part in law.form_draws])
    np.testing.assert_allclose(np.sort(found.samples), np.sort(b), rtol=1e-9)
    assert [found.low, found.median, found.high] == pytest.approx(np.quantile(b, [0.05, 0.5, 0.95]).tolist())


@pytest.mark.parametrize("form", ["hill", "m4", "bnsl"])
def test_an_exponent_is_the_fall_of_what_is_above_the_floor_in_the_common_range(form: str) -> None:
    wide = fit(power(0.6, 0.1), (form,), sizes=[20, 60, 180, 540])
    narrow = fit(power(0.6, 0.1), (form,), sizes=[60, 120, 300])
    comparison = compare_laws({"wide": wide, "narrow": narrow})
    assert (comparison.low, comparison.high) == (60, 300)
    for name, law in (("wide", wide), ("narrow", narrow)):
        floor = np.concatenate([part.parameters()["floor"] for part in law.form_draws])
        curve = np.concatenate([part.model.curve(part.x, np.log([60, 300])) for part in law.form_draws])
        above = curve - floor[:, None]
        expected = np.log(above[:, 0] / above[:, 1]) / math.log(5)
        found = np.sort(comparison.exponents[name].samples)
        np.testing.assert_allclose(found, np.sort(expected), rtol=1e-3, atol=1e-9)


def test_a_slope_is_the_fall_of_the_error_itself() -> None:
    comparison = compare_laws({"fast": fast(), "slow": slow()})
    for name, law in (("fast", fast()), ("slow", slow())):
        error = np.concatenate([part.curve(np.log([50, 800])) for part in law.form_draws])
        expected = np.log(error[:, 0] / error[:, 1]) / math.log(16)
        np.testing.assert_allclose(np.sort(comparison.slopes[name].samples), np.sort(expected), rtol=1e-9)


def test_without_a_best_value_there_are_no_slopes() -> None:
    laws = {"a": fit(power(0.5, 0.1), bounds=None), "b": fit(power(0.5, 0.1), bounds=(0, math.inf))}
    comparison = compare_laws(laws)
    assert comparison.slopes == {}
    assert [contrast.measure for contrast in comparison.contrasts] == ["exponent"]


def test_a_mirrored_metric_is_the_same_comparison() -> None:
    down = {"a": table(power(0.7, 0.1), rng=3), "b": table(power(0.3, 0.2), rng=4)}
    laws = {name: fit_law(rows, bounds=(0, 1.5), laws=["power"]) for name, rows in down.items()}
    mirrored = {
        name: fit_law(
            [{**row, "value": -row["value"]} for row in rows],
            higher_is_better=True,
            bounds=(-1.5, 0),
            laws=["power"],
        )
        for name, rows in down.items()
    }
    one, other = compare_laws(laws), compare_laws(mirrored)
    for name in laws:
        np.testing.assert_array_equal(one.exponents[name].samples, other.exponents[name].samples)
        np.testing.assert_allclose(one.slopes[name].samples, other.slopes[name].samples, rtol=1e-9)
        np.testing.assert_array_equal(one.best[name], other.best[name])
    assert one.sentences() == other.sentences()


def test_clear_differences_are_told_with_their_sign() -> None:
    comparison = compare_laws({"slow": slow(), "fast": fast()})
    exponent, slope = comparison.contrasts
    assert exponent.told
    assert slope.told
    assert exponent.difference.high < 0
    assert exponent.p_larger < 0.05
    assert exponent.sentence().startswith("exponent: slow's is smaller than fast's by 0.")
    assert slope.sentence().startswith("error slope: slow's is smaller than fast's by 0.")
    (turned, _) = compare_laws({"fast": fast(), "slow": slow()}).contrasts
    assert turned.difference.median == pytest.approx(-exponent.difference.median, abs=0.03)
    assert turned.p_larger > 0.95


def test_a_curve_against_itself_cannot_be_told() -> None:
    comparison = compare_laws({"one": fast(), "other": fast()})
    for contrast in comparison.contrasts:
        assert not contrast.told
        assert contrast.p_larger == pytest.approx(0.5, abs=0.05)
        assert "one against other: cannot tell (difference" in contrast.sentence()
    (lead,) = comparison.leads
    assert lead.dominates is None
    assert lead.sentence() == "one against other: cannot tell which is better at any n."
    np.testing.assert_allclose(lead.p, 0.5, atol=0.06)


def test_the_lead_is_where_the_truth_has_it() -> None:
    """Of two curves that start alike the faster one leads from somewhere on; a lower one dominates them both."""
    low = fit(lambda n: power(0.5, 0.1)(n) - 0.1, rng=5)
    comparison = compare_laws({"fast": fast(), "slow": slow(), "low": low})
    leads = {(lead.first, lead.second): lead for lead in comparison.leads}
    assert set(leads) == {("fast", "slow"), ("fast", "low"), ("slow", "low")}
    assert leads["slow", "low"].dominates == "low"
    assert leads["slow", "low"].p_second > 0.95
    assert (
        leads["slow", "low"].sentence().startswith("low is better than slow at every n from 50 to 800 (P = ")
    )
    lead = leads["fast", "slow"]
    assert lead.dominates is None  # at n = 50 they are one
    assert (lead.p[lead.n >= 120] > 0.95).all()
    assert lead.p[0] < 0.95
    assert lead.n[[0, -1]].tolist() == [50, 800]
    assert ": fast is better from n = " in lead.sentence()
    assert " to 800 (P at least 0.95 at each n)" in lead.sentence()
    np.testing.assert_allclose(sum(comparison.best.values()), 1.0)
    assert comparison.best["low"][0] > 0.9


def test_the_level_widens_the_intervals_and_raises_the_bar() -> None:
    laws = {"a": fast(), "b": slow()}
    narrow, wide = compare_laws(laws, 0.5), compare_laws(laws, 0.99)
    for name in laws:
        assert wide.exponents[name].low < narrow.exponents[name].low < narrow.exponents[name].median
        assert wide.exponents[name].high > narrow.exponents[name].high
    assert "50 % interval" in narrow.contrasts[0].sentence()


def test_of_a_flat_curve_no_exponent_is_told() -> None:
    flat = fit(lambda n: 0.5 + 0 * n, ("power", "hill"), noise=0.02, rng=2)
    assert flat.budgets.flat
    exponent, slope = compare_laws({"fast": fast(), "flat": flat}).contrasts
    assert not exponent.told
    assert exponent.sentence() == (
        "exponent, fast against flat: cannot tell, as flat did not improve beyond the noise."
    )
    assert exponent.difference is None
    assert exponent.p_larger is None
    assert slope.told
    assert slope.difference.low > 0


def test_two_flat_curves_are_not_set_apart_by_their_noise() -> None:
    """A fit never rises with n: the quiet curve's slope is nearer zero than the noisy one's, and that is all."""
    quiet = fit(lambda n: 0.5 + 0 * n, noise=0.0)
    noisy = fit(lambda n: 0.5 + 0 * n, noise=0.05, rng=2)
    comparison = compare_laws({"quiet": quiet, "noisy": noisy, "fast": fast()})
    slopes = {(c.first, c.second): c for c in comparison.contrasts if c.measure == "slope"}
    assert not slopes["quiet", "noisy"].told
    assert "as quiet and noisy did not improve" in slopes["quiet", "noisy"].sentence()
    assert slopes["quiet", "fast"].told
    assert set(comparison.exponents) == {"fast"}
    assert set(comparison.slopes) == {"quiet", "noisy", "fast"}


def test_intervals_hold_and_equal_exponents_are_rarely_called_different() -> None:
    """20 pairs of power laws of one exponent and two floors."""
    rng, held, told, widths = np.random.default_rng(5), [], [], []
    for i in range(20):
        b = rng.uniform(0.2, 0.8)
        laws = {
            name: fit(power(b, rng.uniform(0.05, 0.3)), rng=2 * i + place)
            for place, name in enumerate(("a", "b"))
        }
        comparison = compare_laws(laws)
        held += [e.low <= b <= e.high for e in comparison.exponents.values()]
        widths += [e.high - e.low for e in comparison.exponents.values()]
        told.append(comparison.contrasts[0].told)
    assert sum(held) >= 32
    assert sum(told) <= 2
    assert np.median(widths) < 0.5  # not by saying nothing: the prior's own is 1.4


def test_a_comparison_is_json() -> None:
    comparison = compare_laws({"a": fast(), "b": slow()})
    value = json.loads(json.dumps(comparison.to_json(), allow_nan=False))
    assert value["n"] == [50, 800]
    assert value["exponents"]["a"]["median"] == comparison.exponents["a"].median
    sentences = [entry["sentence"] for entry in (*value["contrasts"], *value["leads"])]
    assert sentences == comparison.sentences()
    assert len(sentences) == 3


def test_what_cannot_be_compared_is_refused() -> None:
    far = fit(power(0.5, 0.1), sizes=[1000, 2000])
    with pytest.raises(InputError, match="nothing to compare in 1 law"):
        compare_laws({"a": fast()})
    with pytest.raises(InputError, match="the curves of a, far share no range of n"):
        compare_laws({"a": fast(), "far": far})
    with pytest.raises(InputError, match="level 90"):
        compare_laws({"a": fast(), "b": slow()}, 90)
