"""The joint laws against surfaces whose truth is known."""

import json
import math
from functools import cache
from itertools import product

import numpy as np
import pytest
from scipy.stats import binom

from backcast.errors import InputError
from backcast.scaling import LAWS, fit_joint_law
from backcast.scaling.budgets import Budgets
from backcast.scaling.joint import INPUTS, JointLaw, epochs, share, size
from backcast.scaling.joint.noise import Noise
from backcast.scaling.joint.posterior import Cells, fit_form
from backcast.scaling.table import Observation

SIZES = (100, 200, 400, 800, 1600)
LOSS = (0.0, math.inf)
E = {
    "epochs": (1, 2, 4, 8, 16),
    "size": (1e6, 4e6, 16e6, 64e6),
    "share": (0.0, 0.25, 0.5, 0.75, 1.0),
}


def repeated(n, e):
    """Muennighoff et al. with R = 6."""
    return 0.1 + 5 * (n * (1 + 6 * (1 - np.exp(-(e - 1) / 6)))) ** -0.5


def stepped(n, e):
    """Too little data and too few steps."""
    return 0.1 + 4 * n**-0.4 + 60 * (n * e) ** -0.9


def multiplied(n, s):
    """Zhang et al."""
    return 1.0 + 20 * n**-0.3 * s**-0.2


def added(n, s):
    """Hoffmann et al."""
    return 1.0 + 4 * n**-0.3 + 20 * s**-0.3


def mixed(n, q):
    """Hashimoto, two terms; the best share is 0.42."""
    c = 0.4 / (q + 0.1 * (1 - q)) + 0.6 / (0.05 * q + 1 - q)
    return 0.1 + 5 * n**-0.5 * c**0.6


def capped(n, q):
    """Shukor et al., the mixture added to the law in n."""
    return 0.1 + 5 * n**-0.6 + 0.1 * (0.5 / (q + 0.1 * (1 - q)) + 0.5 / (0.1 * q + 1 - q))


#: The surface, its input, the form that holds it, and what of its parameters is known.
TRUTHS = {
    "decay": (repeated, "epochs", {"floor": 0.1, "r": 6.0, "b": 0.5}),
    "bottleneck of epochs": (stepped, "epochs", {"floor": 0.1, "a": 0.9, "gamma": 0.4, "b": 0.4}),
    "multiplicative": (multiplied, "size", {"floor": 1.0, "a": 0.2 / 0.3, "b": 0.3}),
    "bottleneck": (added, "size", {"floor": 1.0, "a": 0.3, "gamma": 0.3, "b": 0.3}),
    "multiplicative of shares": (
        mixed,
        "share",
        {"floor": 0.1, "w": 0.4, "r1": 0.1, "r2": 0.05, "a": 1.2, "b": 0.5},
    ),
    "bottleneck of shares": (capped, "share", {"b": 0.6, "gamma": 0.6, "a": 1.0}),
}


def rows(surface, by, sizes=SIZES, others=None, noise=0.0, seeds=1, rng=0) -> list[dict]:
    luck = np.random.default_rng(rng).standard_normal
    return [
        {"n": n, by: z, "value": surface(n, z) * math.exp(noise * luck()), "seed": s}
        for n, z, s in product(sizes, others or E[by], range(seeds))
    ]


@cache
def fitted(name: str) -> JointLaw:
    """To a noiseless table."""
    surface, by, _ = TRUTHS[name]
    return fit_joint_law(rows(surface, by), by=by, bounds=LOSS)


@pytest.mark.parametrize("name", TRUTHS)
def test_a_form_recovers_its_own_surface(name: str) -> None:
    surface, by, known = TRUTHS[name]
    law = fitted(name)
    held = f"{name.split()[0]}, power"
    found = next(p for p in law.posteriors if p.name == held).parameters()
    for parameter, value in known.items():
        low, middle, high = np.quantile(found[parameter], [0.005, 0.5, 0.995])
        assert low <= value <= high or middle == pytest.approx(value, rel=0.05), parameter
        assert middle == pytest.approx(value, rel=0.3, abs=0.02), parameter
    assert law.weights[held] == max(law.weights.values())
    n, other = np.array(list(product(SIZES, E[by]))).T
    np.testing.assert_allclose(law.predict(n, other).mean, surface(n, other), rtol=0.02)


@pytest.mark.parametrize(
    ("name", "target", "cost"),
    [
        ("decay", 0.2, lambda n, e: n * (e + 1)),
        ("decay", 0.25, lambda n, e: n * (0.1 * e + 3)),
        ("bottleneck of epochs", 0.5, lambda n, e: n * (e + 1)),
        ("multiplicative", 1.12, lambda n, s: n * 1e4 + s),
        ("multiplicative of shares", 0.3, lambda n, q: n * (1 + q)),
        ("bottleneck of shares", 0.5, lambda n, q: n),
    ],
)
def test_the_cheapest_combination_is_that_of_a_search_by_force(name: str, target: float, cost) -> None:
    surface = TRUTHS[name][0]
    answer = fitted(name).invert(target, cost)
    n = np.geomspace(1, 1e6, 200_001)
    truth = {}
    for option in answer.options:
        met = n[surface(n, option.other) <= target]
        truth[option.other] = cost(met[0], option.other) if len(met) else math.inf
    least = min(truth.values())
    assert answer.best is not None
    assert truth[answer.best.other] <= 1.05 * least
    assert answer.best.cost == pytest.approx(least, rel=0.15)
    assert answer.cost == pytest.approx(least, rel=0.1)
    assert surface(answer.best.buy, answer.best.other) <= target * 1.01
    assert answer.p_unreachable < 0.05


def test_the_best_share_lies_inside() -> None:
    answer = fitted("multiplicative of shares").invert(0.3)
    assert answer.best is not None
    assert answer.best.other == pytest.approx(0.42, abs=0.06)
    assert sum(option.p_cheapest for option in answer.options) == pytest.approx(1 - answer.p_unreachable)
    # The optimum is flat: shares that cost nearly the same lie far apart, and the answer says so.
    assert len(answer.equal) > 3
    assert {o.other for o in answer.equal} == {
        o.other for o in answer.options if o.cost <= 1.1 * answer.best.cost
    }
    assert answer.apart == max(o.buy for o in answer.equal) / min(o.buy for o in answer.equal)
    assert f"{len(answer.equal)} combinations cost within 10 % of it" in answer.sentence()


def test_the_intervals_hold_as_often_as_they_say() -> None:
    """90 % intervals of the cheapest cost on noisy tables of a law that is known; true costs by the formula."""
    held = 0
    others = np.array(E["epochs"][:4], float)
    worth = 1 + 6 * (1 - np.exp(-(others - 1) / 6))
    truth = float((((0.35 - 0.1) / 5) ** -2 / worth * (others + 1)).min())
    for seed in range(20):
        table = rows(repeated, "epochs", (50, 100, 200), (1, 2, 4, 8), noise=0.03, seeds=2, rng=seed)
        runs = [(float(r["epochs"]), Observation(r["n"], r["value"])) for r in table]
        cells = Cells.of(runs, INPUTS["epochs"], 1.0, 0.0)
        posterior = fit_form(epochs.decay, LAWS["power"], cells)
        law = JointLaw("epochs", cells, [posterior], {posterior.name: 1.0}, False, LOSS)
        answer = law.invert(0.35, others=others.tolist())
        held += answer.cost_low <= truth <= answer.cost_high
    assert held >= binom.ppf(0.001, 20, 0.9)


def test_one_epoch_is_the_plain_law() -> None:
    log_n = np.log([10.0, 1000.0])
    np.testing.assert_allclose(epochs.log_decay(log_n, np.zeros(1), np.array([[15.4]])), [log_n], rtol=1e-12)
    # Half an epoch has seen half of the data; without end it is worth 1 + R times as much.
    for passes, factor in ((0.5, 0.5), (1e9, 16.4)):
        found = epochs.log_decay(log_n, np.log([passes]), np.array([[15.4]]))
        np.testing.assert_allclose(found, [log_n + math.log(factor)])
    # A short repetition is as good as new data.
    found = epochs.log_decay(log_n, np.log([3.0]), np.array([[1e6]]))
    np.testing.assert_allclose(found, [log_n + math.log(3)], rtol=1e-6)


def test_the_forms_are_the_published_formulas() -> None:
    log_n, b = np.log(np.geomspace(10, 1e5, 7)), np.array([[0.3]])
    n, log_size = np.exp(log_n), np.array([1.3])
    power = LAWS["power"].log_shape
    k, a = np.array([[0.7]]), np.array([[0.4]])
    additive = n**-0.3 + 0.7 * np.exp(-0.4 * 1.3)
    found = power(size.log_bottleneck(log_n, log_size, k, a, b), np.log(b))
    np.testing.assert_allclose(np.exp(found[0]), additive, rtol=1e-10)
    kaplan = (1 / n + 0.7 * np.exp(-0.4 * 1.3)) ** 0.3
    found = power(size.log_bottleneck(log_n, log_size, k, a, np.array([[1.0]])), np.log(b))
    np.testing.assert_allclose(np.exp(found[0]), kaplan, rtol=1e-10)
    zhang = n**-0.3 * np.exp(1.3) ** (-0.3 * 0.4)
    found = power(size.log_product(log_n, log_size, a), np.log(b))
    np.testing.assert_allclose(np.exp(found[0]), zhang, rtol=1e-10)
    # A source of the whole, of things that it alone teaches, is the plain law in its own examples.
    one, q = np.array([[1.0]]), np.array([0.25])
    found = share.log_product(log_n, q, one, np.array([[1e-12]]), one, one)
    np.testing.assert_allclose(found[0], np.log(0.25 * n), rtol=1e-9)


def test_the_order_of_the_rows_does_not_matter() -> None:
    table = rows(repeated, "epochs", (50, 100, 200), (1, 4, 8), noise=0.03, seeds=2)
    shuffled = [table[i] for i in np.random.default_rng(1).permutation(len(table))]
    one, other = (fit_joint_law(t, bounds=LOSS) for t in (table, shuffled))
    assert one.to_json() == other.to_json()
    assert one.invert(0.3).to_json() == other.invert(0.3).to_json()


def test_the_units_do_not_matter() -> None:
    """Thousands of examples, sizes in millions and a loss in other units: the same law, to rounding."""
    table = rows(multiplied, "size", (100, 200, 400, 800), (1e6, 4e6, 16e6), noise=0.005, seeds=2)
    small = [{**r, "n": r["n"] / 1000, "size": r["size"] / 1e6, "value": 7 * r["value"]} for r in table]
    one, other = (fit_joint_law(t, by="size", bounds=LOSS) for t in (table, small))
    n, s = np.array([300.0, 3000.0]), np.array([2e6, 3e7])
    a, b = one.predict(n, s), other.predict(n / 1000, s / 1e6)
    np.testing.assert_allclose(7 * a.mean, b.mean, rtol=2e-3)
    np.testing.assert_allclose(7 * a.quantiles, b.quantiles, rtol=5e-3)


def test_a_metric_where_higher_is_better_is_turned_round() -> None:
    table = rows(lambda n, e: 1 - repeated(n, e), "epochs")
    up = fit_joint_law(table, higher_is_better=True, bounds=(0, 1))
    down = fitted("decay")
    assert up.predict(400, 4).mean == pytest.approx(1 - down.predict(400, 4).mean, abs=2e-3)
    quantiles = up.predict(6400, 16).quantiles[:, 0]
    assert (np.diff(quantiles) >= 0).all()
    mine, theirs = up.invert(0.8).best, down.invert(0.2).best
    assert mine is not None
    assert theirs is not None
    assert mine.cost == pytest.approx(theirs.cost, rel=0.02)
    assert "at least 0.8" in up.invert(0.8).sentence()


def test_what_no_combination_reaches_is_said() -> None:
    answer = fitted("decay").invert(0.05)
    assert answer.status == "unreachable"
    assert answer.p_unreachable > 0.95
    assert answer.best is None
    assert answer.equal == ()
    assert math.isnan(answer.apart)
    assert "out of reach" in answer.sentence()
    written = json.loads(json.dumps(answer.to_json(), allow_nan=False))
    assert written["n"] is None
    assert written["best"] is None


def test_reached_and_extrapolated() -> None:
    law = fitted("decay")
    assert law.invert(0.2).status == "reached"
    far = law.invert(0.13, others=[1, 4])
    assert far.status == "extrapolated"
    assert [option.other for option in far.options] == [1, 4]
    assert "past the range" in far.sentence()
    json.dumps(far.to_json(), allow_nan=False)
    assert far.samples.shape[1] == 3


def test_a_few_noisy_cells_leave_it_open() -> None:
    """Forms that fit alike beyond the data are told apart by nobody."""
    table = rows(repeated, "epochs", (50, 100), (1, 2, 4), noise=0.1, seeds=2)
    law = fit_joint_law(table, bounds=LOSS)
    assert "Two values of n do not show how its effect bends" in law.warnings[0]
    answer = law.invert(0.15)
    assert answer.status == "unidentified"
    assert answer.cost_high > 16 * answer.cost_low


def test_checkpoints_of_one_run_count_as_one() -> None:
    """Twenty checkpoints over four factors of two in n do not hold twenty runs' evidence."""
    table = rows(multiplied, "size", np.geomspace(100, 1600, 21).tolist())
    dense = Cells.of([(r["size"], Observation(r["n"], r["value"])) for r in table], INPUTS["size"], 1.0, 0.0)
    weight = dense.weight.reshape(4, 21)
    # Two on either side are nearer than half a factor of two.
    np.testing.assert_allclose(weight[:, 10], 1 / 5)
    np.testing.assert_allclose(weight[:, 0], 1 / 3)
    np.testing.assert_allclose(fitted("multiplicative").cells.weight, 1.0)


def test_the_noise_of_a_run_goes_with_the_loss() -> None:
    """Relative noise of 10 % on a surface that falls tenfold."""
    table = rows(lambda n, e: 50 * n**-0.5 * e**-0.3, "epochs", noise=0.1, seeds=4)
    law = fit_joint_law(table, bounds=LOSS)
    at = law.predict([100, 1600], [1, 16])
    np.testing.assert_allclose(at.noise / at.mean, 0.1, rtol=0.35)
    runs = Budgets.of([Observation(r["n"], r["value"]) for r in table], 1.0, 0.0)
    noise = Noise.of(runs)
    around = np.broadcast_to(runs.mean, (len(noise.tau2), len(runs)))
    new = noise.new_run(np.arange(len(noise.tau2)), around, runs.log_n, int(runs.count[0]))
    np.testing.assert_allclose(new, noise.variance, rtol=1e-9)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"by": "lr"}, "no joint law for 'lr'"),
        ({"form": "cube"}, "no joint law for 'cube'"),
        ({"bounds": (1, 0)}, "not a range"),
        ({"bounds": (0, 0.2)}, "outside the bounds 0 to 0.2"),
        ({"table": [{"n": 1, "epochs": 1, "value": 1.0}]}, "all at n = 1"),
        ({"table": [{"n": n, "epochs": 2, "value": 1.0} for n in (1, 2, 3, 4)]}, "all at epochs = 2"),
        ({"table": [{"n": n, "epochs": n, "value": 1.0} for n in (1, 2, 3)]}, "3 combinations"),
        (
            {"table": [{"n": n, "epochs": -1, "value": 1.0} for n in (1, 2)]},
            "epochs is -1; it must be above 0",
        ),
        ({"table": [{"n": n, "epochs": "two", "value": 1.0} for n in (1, 2)]}, "epochs is 'two' at n = 1"),
        ({"table": [{"n": n, "share": 1.5, "value": 1.0} for n in (1, 2)], "by": "share"}, "between 0 and 1"),
        ({"table": [{"n": 1, "value": 1.0}]}, "no column 'epochs'"),
    ],
)
def test_bad_input_is_said_in_one_line(change: dict, said: str) -> None:
    given = {"table": rows(repeated, "epochs", (50, 100), (1, 2)), "bounds": LOSS} | change
    with pytest.raises(InputError, match=said) as error:
        fit_joint_law(**given)
    assert "\n" not in str(error.value)


def test_bad_questions_are_refused() -> None:
    law = fitted("decay")
    for ask, said in (
        (lambda: law.invert(-1), "outside the metric's range"),
        (lambda: law.invert(0.2, level=90), "level 90"),
        (lambda: law.invert(0.2, others=[]), "no values of epochs"),
        (lambda: law.invert(0.2, others=[0]), "epochs is 0"),
        (lambda: law.invert(0.2, cost=lambda n, e: -n), "must be above 0"),
        (lambda: law.predict(0, 1), "n is 0"),
    ):
        with pytest.raises(InputError, match=said):
            ask()


def test_a_column_of_another_name_is_told_what_it_is() -> None:
    table = [{"n": r["n"], "parameters": r["size"], "value": r["value"]} for r in rows(multiplied, "size")]
    law = fit_joint_law(table, by="parameters", form="size", bounds=LOSS)
    assert law.cells.input is INPUTS["size"]
    assert law.to_json()["cells"][0]["parameters"] == 1e6
