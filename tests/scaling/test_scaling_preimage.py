"""The inputs that give a score, against the drawn curves themselves and against curves whose inputs are known."""

import json
import math
from functools import cache

import numpy as np
import pytest

from backcast.errors import InputError
from backcast.scaling import Law, fit_law
from backcast.scaling.preimage import preimage

SIZES = [50, 100, 200, 400, 800, 1600]
#: Accuracies 0.9 - A (n/50)^-b: by A and b, and where they are 0.8.
CURVES = {"quota": (0.3, 0.5), "random": (0.6, 0.5), "stuck": (0.2, 0.5)}
CEILINGS = {"quota": 0.9, "random": 0.9, "stuck": 0.6}
TRUE = {name: 50 * (CURVES[name][0] / 0.1) ** 2 for name in ("quota", "random")}


@cache
def laws() -> dict[str, Law]:
    draw = np.random.default_rng(3).standard_normal
    rows = [
        {
            "n": n,
            "value": CEILINGS[name] - a * (n / 50) ** -b + 0.005 * draw(),
            "seed": seed,
            "selector": name,
        }
        for name, (a, b) in CURVES.items()
        for n in SIZES
        for seed in range(3)
    ]
    return fit_law(rows, group="selector", higher_is_better=True, bounds=(0, 1), laws=["power"])


def test_inputs_that_give_a_score_are_named_and_set_apart() -> None:
    found = preimage(laws(), 0.8)
    assert [each.selector for each in found.named] == ["quota", "random"]
    for each in found.named:
        a, b = CURVES[each.selector]
        assert each.n == pytest.approx(TRUE[each.selector], rel=0.25)
        # every n whose expected accuracy is within the tolerance
        ends = [50 * (a / (0.1 + side * found.tolerance)) ** (1 / b) for side in (1, -1)]
        assert each.low < ends[0] < ends[1] < each.high
        assert each.width == pytest.approx(ends[1] / ends[0], rel=0.15)
    low, high = found.factor_ends
    assert low < TRUE["random"] / TRUE["quota"] < high
    assert low < found.factor < high < 2 * low
    assert found.tolerance == pytest.approx(0.005, rel=0.4)
    said = found.sentence()
    assert "A score of 0.8 is given by 2 of 3 selectors, from " in said
    assert said.endswith("The score alone does not tell the data.")
    (stuck,) = (each for each in found.inputs if each.selector == "stuck")
    assert stuck.p < 0.1
    assert stuck.n == math.inf


def test_an_input_is_where_the_drawn_curves_are_in_the_band() -> None:
    law, tolerance = laws()["quota"], 0.02
    (found,) = preimage({"quota": law}, 0.8, tolerance).inputs
    n = np.geomspace(50, 50_000, 1500)
    curves = law.curves(n)
    curves = curves[(np.abs(curves - 0.8) <= tolerance).any(axis=1)]
    # Where each comes into the band, and where it first leaves it upwards: it may turn and come back.
    first, above = n[(curves >= 0.8 - tolerance).argmax(axis=1)], curves > 0.8 + tolerance
    last = np.where(above.any(axis=1), n[above.argmax(axis=1)], np.inf)
    assert found.low == pytest.approx(np.quantile(first, 0.05), rel=0.01)
    assert found.high == pytest.approx(np.quantile(last, 0.95, method="inverted_cdf"), rel=0.01)
    assert found.width == pytest.approx(np.median(last / first), rel=0.01)


def test_the_factor_is_of_independent_curves() -> None:
    found = preimage(laws(), 0.8)
    quota, random = (np.log(laws()[name].n_at(0.8)) for name in ("quota", "random"))
    both = (random[:, None] - quota[None, :]).ravel()  # every draw against every other
    np.testing.assert_allclose(found.factor_ends, np.exp(np.quantile(both, [0.05, 0.95])), rtol=0.05)
    assert found.factor == found.named[1].n / found.named[0].n


def test_inputs_that_the_runs_cannot_tell_apart_may_be_one() -> None:
    found = preimage({"a": laws()["quota"], "b": laws()["quota"]}, 0.8)
    assert found.factor == 1
    assert found.factor_ends[0] == 1
    assert 1 < found.factor_ends[1] < 2


def test_two_inputs_give_the_same_score_as_often_as_their_curves_agree() -> None:
    found = preimage(laws(), 0.8)
    values = [laws()[each.selector].curves(each.n)[:, 0] for each in found.named]
    expected = (np.abs(values[0][:, None] - values[1][None, :]) <= found.tolerance).mean()
    assert found.same[("quota", "random")] == pytest.approx(expected, abs=0.03)
    assert preimage(laws(), 0.8, 0.0).same[("quota", "random")] == 0
    assert preimage(laws(), 0.8, 0.1).same[("quota", "random")] == 1


def test_what_was_chosen_is_compared_at_the_sizes_nearest_to_the_inputs() -> None:
    chosen = {
        "quota": {100: range(100), 400: ["a", "b", "c"]},
        "random": {400: ["a"], 1600: ["b", "c", "d", "e"]},
        "stuck": {50: ["a"]},
        "other": {50: ["a"]},
    }
    found = preimage(laws(), 0.8, chosen=chosen)
    assert found.shared == {("quota", "random"): 2 / 5}
    assert "of the examples that two of them chose, 40 % are shared" in found.sentence()
    assert preimage(laws(), 0.8, chosen={"quota": chosen["quota"]}).shared == {}


def test_one_law_has_an_interval_and_none_has_nothing() -> None:
    one = preimage({"quota": laws()["quota"]}, 0.8)
    assert one.factor == 1
    assert "is given at about" in one.sentence()
    assert "within ±" in one.sentence()
    among = preimage({name: laws()[name] for name in ("quota", "stuck")}, 0.8)
    assert "only by quota, at about" in among.sentence()
    none = preimage({"stuck": laws()["stuck"]}, 0.8)
    assert none.named == []
    assert "none of the 1 selectors" in none.sentence()
    for found in (one, among, none):
        told = json.loads(json.dumps(found.to_json(), allow_nan=False))
        assert told["named"] == [each.selector for each in found.named]
        assert told["selectors"] == len(found.inputs)


def test_where_one_of_them_may_never_get_there_the_factor_has_no_limit() -> None:
    draws = np.mean(np.isinf(laws()["random"].n_at(0.9)))
    assert 0.05 < draws < 0.5  # 0.9 is its very ceiling
    found = preimage({"a": laws()["random"], "b": laws()["quota"]}, 0.89)
    assert found.factor_ends[1] == math.inf or found.factor_ends[1] > 10
    assert np.isinf(preimage({"a": laws()["random"], "b": laws()["quota"]}, 0.9).factor_ends[1])


def test_what_cannot_be_asked() -> None:
    mirrored = fit_law([{"n": n, "value": n**-0.5} for n in SIZES], bounds=(0, 1), laws=["power"])
    for arguments, part in [
        (({}, 0.8), "no laws"),
        (({"a": laws()["quota"], "b": mirrored}, 0.8), "different directions or ranges"),
        ((laws(), 80), "outside the metric's range 0 to 1"),
        ((laws(), 0.8, -1), "tolerance -1 is no distance"),
        ((laws(), 0.8, None, 90), "level 90 is not a probability"),
    ]:
        with pytest.raises(InputError, match=part):
            preimage(*arguments)
