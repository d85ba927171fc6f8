"""The fit and its inversion against curves whose truth is known."""

import json
import math
from functools import cache

import numpy as np
import pytest

from backcast.errors import InputError
from backcast.scaling import LAWS, Inversion, Law, fit_law

BUDGETS = np.geomspace(50, 6400, 8)

#: What each law is asked to recover: its parameters, and the curve as plain arithmetic (lower is better).
TRUTHS = {
    "power": ({"floor": 0.2, "amplitude": 2.0, "b": 0.4}, lambda n: 0.2 + 2.0 * n**-0.4),
    "hill": ({"floor": 0.2, "b": 0.9, "n0": 500.0}, lambda n: 0.2 + 0.6 / (1 + (n / 500) ** 0.9)),
    "m4": ({"floor": 0.2, "b": 0.9, "n0": 500.0}, lambda n: 0.2 + 0.6 / (1 + (n / 500) ** 0.9)),
    "bnsl": (
        {"floor": 0.2},
        lambda n: 0.2 + 1.2 * n**-0.15 * (1 + (n / 600) ** 2) ** (-0.35 * 0.5),
    ),
    "exponential": ({"floor": 0.2, "b": 0.6, "n0": 400.0}, lambda n: 0.2 + 0.6 * np.exp(-((n / 400) ** 0.6))),
}


def table(curve, budgets=BUDGETS, noise=0.0, seeds=1, rng=0) -> list[dict]:
    draw = np.random.default_rng(rng).standard_normal
    return [{"n": n, "value": curve(n) + noise * draw(), "seed": s} for n in budgets for s in range(seeds)]


def accuracy(n):
    return 0.9 - 0.6 / (1 + (n / 150) ** 0.8)


@cache
def noisy() -> Law:
    """Five budgets of three seeds of an accuracy that ends at 0.9."""
    return fit_law(table(accuracy, [50, 100, 200, 400, 800], 0.01, 3), higher_is_better=True, bounds=(0, 1))


@cache
def small() -> Law:
    """The least that anybody brings: three small budgets."""
    return fit_law(table(accuracy, [60, 120, 240], 0.02, 3), higher_is_better=True, bounds=(0, 1))


@pytest.mark.parametrize("name", TRUTHS)
def test_a_law_recovers_its_own_parameters(name: str) -> None:
    truth, curve = TRUTHS[name]
    law = fit_law(table(curve), bounds=(0, math.inf), laws=[name])
    assert list(law.weights) == [name, "trend"]
    assert sum(law.weights.values()) == pytest.approx(1.0)
    found = law.posteriors[0].parameters()
    for parameter, value in truth.items():
        low, middle, high = np.quantile(found[parameter], [0.05, 0.5, 0.95])
        assert low <= value <= high, parameter
        if name != "bnsl":  # five numbers for eight sizes: its floor's interval is wide
            assert middle == pytest.approx(value, rel=0.25), parameter
    np.testing.assert_allclose(law.predict(BUDGETS).mean, curve(BUDGETS), rtol=0.02)


@pytest.mark.parametrize("name", TRUTHS)
def test_n_is_right_on_noiseless_curves_of_every_law(name: str) -> None:
    """With the law that it is, and with all of them together, which know no more than that it is one of them."""
    _, curve = TRUTHS[name]
    for laws, error in (([name], 0.04), (list(LAWS), 0.1)):
        law = fit_law(table(curve), bounds=(0, math.inf), laws=laws)
        for n in (75.0, 400.0, 1500.0):
            answer = law.invert(curve(n))
            assert answer.n == pytest.approx(n, rel=error)
            assert answer.low <= n <= answer.high
            assert answer.status == "reached"


def test_intervals_hold_as_often_as_they_say() -> None:
    """60 noisy Hill curves, n* at two and four times the largest budget: 90 % intervals, binomial limits."""
    rng, held, widths = np.random.default_rng(7), [], []
    for i in range(60):
        b, n0, floor = rng.uniform(0.5, 1.2), math.exp(rng.uniform(4, 7)), rng.uniform(0.05, 0.3)

        def curve(n, b=b, n0=n0, floor=floor):
            return floor + 0.6 / (1 + (n / n0) ** b)

        budgets = [50, 100, 200, 400, 800]
        law = fit_law(table(curve, budgets, 0.01, 3, rng=i), bounds=(0, math.inf), laws=["hill"])
        n = 800.0 * (2, 4)[i % 2]
        answer = law.invert(curve(n))
        held.append(answer.low <= n <= answer.high)
        widths.append(answer.high / answer.low)
    assert sum(held) >= 48  # P(fewer of 60 | 90 %) < 1 %
    assert np.median(widths[::2]) < 8  # twice the largest budget: not by saying nothing


def test_beyond_the_floor_is_out_of_reach() -> None:
    law = fit_law(
        table(lambda n: 0.5 + 0.5 * np.exp(-n / 80), [25, 50, 100, 200, 400, 800], 0.005, 3), bounds=(0, 1)
    )
    answer = law.invert(0.2)
    assert answer.p_unreachable > 0.7
    assert answer.high == math.inf
    assert answer.status in ("unreachable", "unidentified")
    assert law.invert(0.0).status == "unreachable"  # the metric's very best value is never met
    assert law.invert(0.6).p_unreachable == 0
    assert any("levelled off" in warning for warning in law.warnings)


def test_three_small_budgets_stay_honest() -> None:
    inside, outside = small().invert(accuracy(150)), small().invert(accuracy(960))
    assert inside.status == "reached"
    assert inside.low <= 150 <= inside.high
    assert outside.low <= 960 <= outside.high
    assert outside.high / outside.low > 4
    assert outside.status in ("extrapolated", "unidentified")


def test_two_budgets_are_enough_to_say_that_they_are_not() -> None:
    law = fit_law(table(accuracy, [60, 120], 0.02, 3), higher_is_better=True, bounds=(0, 1))
    assert law.invert(0.8).status == "unidentified"
    np.testing.assert_allclose(list(law.weights.values()), 1 / 6)  # five laws and the trend


def test_a_mirrored_metric_is_the_same_problem() -> None:
    rows = table(accuracy, [50, 100, 200, 400], 0.01, 2)
    up = fit_law(rows, higher_is_better=True, bounds=(0, 1), laws=["hill", "power"])
    down = fit_law([{**row, "value": -row["value"]} for row in rows], bounds=(-1, 0), laws=["hill", "power"])
    assert up.weights == down.weights
    np.testing.assert_array_equal(up.invert(0.8).samples, down.invert(-0.8).samples)
    p, q = up.predict([75, 900], levels=(0.1, 0.5, 0.9)), down.predict([75, 900], levels=(0.1, 0.5, 0.9))
    np.testing.assert_array_equal(p.mean, -q.mean)
    np.testing.assert_allclose(p.quantiles, -q.quantiles[::-1], rtol=1e-12)
    np.testing.assert_array_equal(p.noise, q.noise)


def test_the_same_runs_in_any_order_give_the_same_law() -> None:
    rows = table(accuracy, [50, 100, 200], 0.01, 3)
    one = fit_law(rows, higher_is_better=True, laws=["hill", "bnsl"]).invert(0.8)
    other = fit_law(rows[::-1], higher_is_better=True, laws=["hill", "bnsl"]).invert(0.8)
    np.testing.assert_array_equal(one.samples, other.samples)


def test_a_law_for_each_group() -> None:
    rows = table(accuracy, [50, 100, 200], 0.01, 2)
    both = [
        {**row, "selector": s, "value": row["value"] - drop}
        for row in rows
        for s, drop in [("a", 0), ("b", 0.1)]
    ]
    laws = fit_law(both, group="selector", higher_is_better=True, bounds=(0, 1), laws=["hill"], pooled=False)
    assert list(laws) == ["a", "b"]
    alone = fit_law(rows, higher_is_better=True, bounds=(0, 1), laws=["hill"])
    np.testing.assert_array_equal(laws["a"].invert(0.7).samples, alone.invert(0.7).samples)
    assert laws["b"].invert(0.7).n > laws["a"].invert(0.7).n
    assert laws["b"].invert(0.7).sentence().startswith("b: ")


def test_predictions_are_ordered_and_close() -> None:
    n = np.array([50.0, 200.0, 800.0, 3200.0])
    p = noisy().predict(n)
    assert p.quantiles.shape == (5, 4)
    assert (np.diff(p.quantiles, axis=0) >= 0).all()
    np.testing.assert_allclose(p.mean[:3], accuracy(n[:3]), atol=0.02)
    width = p.quantiles[-1] - p.quantiles[0]
    assert width[3] > 2 * width[2]  # less is known past the data
    assert 0.005 < p.noise[1] < 0.03  # the seeds' own was 0.01
    np.testing.assert_allclose(noisy().predict(200.0).mean, p.mean[1:2], rtol=1e-12)


def test_a_prediction_and_its_inversion_are_one_statement() -> None:
    """P(n* ≤ n) is P(curve at n meets the target), draw by draw."""
    law, target = noisy(), 0.82
    for n in (300.0, 1500.0, 6000.0):
        np.testing.assert_array_equal(law.n_at(target) <= n, law.curves(n)[:, 0] >= target)


def test_statuses_and_sentences() -> None:
    law = noisy()
    inside, past, far = law.invert(0.6), law.invert(0.78), law.invert(0.99)
    assert (inside.status, past.status) == ("reached", "extrapolated")
    assert "within the budgets already run" in inside.sentence()
    assert "times the largest budget" in past.sentence()
    assert far.p_unreachable > past.p_unreachable
    assert far.n > past.n > inside.n
    assert "already by the smallest budget" in law.invert(0.2).sentence()
    narrow, wide = law.invert(0.78, level=0.5), law.invert(0.78, level=0.98)
    assert wide.low < narrow.low < narrow.n < narrow.high < wide.high


def test_infinite_ends_are_null_in_json() -> None:
    answer = small().invert(0.95)
    assert answer.high == math.inf
    text = json.dumps([answer.to_json(), small().to_json()], allow_nan=False)
    assert json.loads(text)[0]["high"] is None
    assert json.loads(text)[0]["p_unreachable"] == pytest.approx(np.isinf(answer.samples).mean())


def test_status_follows_from_the_samples() -> None:
    def status(samples: list[float], flat: bool = False) -> str:
        return Inversion.of(np.array(samples), 0.5, 0.9, 10, 100, True, flat).status

    assert status([50] * 20) == "reached"
    assert status([150] * 20) == "extrapolated"
    assert status([150] * 10 + [150 * 17] * 10) == "unidentified"
    assert (
        status([150] * 18 + [math.inf] * 2) == "extrapolated"
    )  # n* if there is one; how likely, is told apart
    assert status([150] * 9 + [math.inf] * 11) == "unidentified"
    assert status([150] + [math.inf] * 19) == "unreachable"
    assert status([150] + [math.inf] * 19, flat=True) == "unidentified"


def test_a_flat_start_does_not_pass_for_a_floor() -> None:
    law = fit_law(
        table(lambda n: 0.5 + 0 * n, [60, 120, 240, 480], 0.02, 3), higher_is_better=True, bounds=(0, 1)
    )
    answer = law.invert(0.8)
    assert answer.status == "unidentified"
    assert answer.p_unreachable < 0.7
    assert any("does not improve" in warning for warning in law.warnings)


def test_a_dip_is_pointed_out() -> None:
    rows = table(lambda n: accuracy(n) - 0.1 * (n > 300), [50, 100, 200, 400, 800], 0.005, 3)
    law = fit_law(rows, higher_is_better=True, bounds=(0, 1), laws=["hill"])
    assert any("from n = 200" in w and "to n = 400" in w for w in law.warnings)
    assert noisy().warnings == ()


def test_a_given_standard_error_is_believed() -> None:
    """The same means; where their error is said to be large, the answer is less sure."""
    rows = [{"n": n, "value": accuracy(n)} for n in (50, 100, 200, 400, 800)]

    def width(se: float) -> float:
        law = fit_law([{**r, "se": se} for r in rows], higher_is_better=True, bounds=(0, 1), laws=["hill"])
        answer = law.invert(0.6)
        return answer.high / answer.low

    assert width(0.05) > 1.5 * width(0.002)


def test_the_sampler_says_whether_it_converged() -> None:
    assert noisy().converged
    assert 1.0 <= noisy().r_hat < 1.2


def test_targets_outside_the_range_are_refused() -> None:
    with pytest.raises(InputError, match="outside the metric's range 0 to 1"):
        noisy().invert(80)
    with pytest.raises(InputError, match="level 90"):
        noisy().invert(0.8, level=90)
    with pytest.raises(InputError, match="n must be above 0"):
        noisy().predict([0])
