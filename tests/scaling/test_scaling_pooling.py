"""Pooling against its formula summed by brute force, its limits, and groups drawn from a known population."""

import itertools
import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from scipy.stats import norm, qmc

from backcast.errors import InputError
from backcast.scaling import Law, fit_law, pool, pooling

SIZES = (50, 100, 200, 400)


def power(floor: float, gain: float = 0.5, b: float = 0.5):
    return lambda n: floor + gain * (n / 50) ** -b


def fit(curve, rng: int, sizes=SIZES, noise=0.01, sign=1, bounds=(0, math.inf), laws=("power",)) -> Law:
    draw = np.random.default_rng(rng).standard_normal
    rows = [{"n": n, "value": sign * (curve(n) + noise * draw()), "seed": s} for n in sizes for s in range(3)]
    return fit_law(rows, bounds=bounds, higher_is_better=sign < 0, laws=list(laws))


@cache
def groups() -> dict[str, Law]:
    """Three curves of one floor and exponent."""
    return {
        name: fit(power(0.2, gain), i) for i, (name, gain) in enumerate([("b", 0.6), ("a", 0.3), ("c", 0.4)])
    }


@cache
def sure() -> Law:
    return fit(power(0.2), 1, sizes=(50, 100, 200, 400, 800, 1600), noise=0.003)


@cache
def vague() -> Law:
    return fit(power(0.2), 2, sizes=(100, 200), noise=0.02)


def floors(law: Law) -> np.ndarray:
    return np.concatenate([part.parameters()["floor"] for part in law.form_draws])


def width(samples: np.ndarray) -> float:
    return float(np.ptp(np.quantile(samples, [0.05, 0.95])))


def assert_same(one: Law, other: Law) -> None:
    assert one.weights == pytest.approx(other.weights, abs=1e-12)
    for p, q in zip(one.posteriors, other.posteriors, strict=True):
        np.testing.assert_array_equal(p.x, q.x)
        np.testing.assert_array_equal(p.drift, q.drift)
        np.testing.assert_array_equal(p.misfit, q.misfit)


def test_one_group_is_left_as_it_is() -> None:
    law = groups()["a"]
    assert pool({"a": law}) == {"a": law}
    assert pool({}) == {}


def test_with_no_end_to_the_spread_every_group_keeps_its_own_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    laws = {name: fit(power(0.2, gain), 3, laws=("power", "hill")) for name, gain in (("a", 0.3), ("b", 0.6))}
    monkeypatch.setattr(pooling, "SPREADS", np.array([np.inf]))
    for name, law in pool(laws).items():
        assert_same(law, laws[name])


def test_groups_that_are_surely_alone_keep_their_own_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pooling, "ALONE", 1.0)
    for name, law in pool(groups()).items():
        assert_same(law, groups()[name])


def test_the_order_of_the_groups_says_nothing() -> None:
    one = pool(groups())
    other = pool(dict(reversed(groups().items())))
    assert list(one) == ["b", "a", "c"]
    assert list(other) == ["c", "a", "b"]
    for name, law in one.items():
        assert_same(law, other[name])


def test_a_mirrored_metric_pools_the_same() -> None:
    mirrored = {
        name: fit(power(0.2, gain), i, sign=-1, bounds=(-math.inf, 0))
        for i, (name, gain) in enumerate([("b", 0.6), ("a", 0.3), ("c", 0.4)])
    }
    for name, law in pool(mirrored).items():
        assert_same(law, pool(groups())[name])


def test_the_weights_are_those_of_the_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every pair (μ₁, τ₁), (μ₂, τ₂) in a plain loop, for two groups of few curves."""
    monkeypatch.setattr(pooling, "SPREADS", np.array([0.5, 2.0]))
    monkeypatch.setattr(pooling, "STEP", 0.8)
    monkeypatch.setattr(pooling, "KEPT", 0.0)
    laws = {}
    for name, gain in (("a", 0.3), ("b", 0.6)):
        law = fit(power(0.2, gain), 5, laws=("power", "hill"))
        few = [p.take(np.arange(0, len(p.x), 24)) for p in law.posteriors]
        laws[name] = replace(law, posteriors=few, weights={"power": 0.15, "hill": 0.35, "trend": 0.5})

    def shared(model, x):
        shape = model.shape(x)
        log_s = model.form.log_shape(np.log([400.0, 1600.0]), *shape)
        return np.stack([model.level(x) - model.gain(x), np.exp(log_s[:, 1] - log_s[:, 0])])

    def draws(dim):
        return norm.ppf(qmc.Sobol(dim, scramble=False).random(512) + 0.5 / 512)

    phi = [np.hstack([shared(p.model, p.x) for p in law.posteriors]) for law in laws.values()]
    prior = [
        np.hstack([shared(p.model, draws(p.model.dim)) for p in law.posteriors]) for law in laws.values()
    ]
    own = np.repeat([0.3 / 40, 0.7 / 40], 40)
    scales, grids = [], []
    for k in range(2):
        both = np.hstack([phi[0][k], phi[1][k]])
        order = both.argsort()
        rank = np.hstack([own, own])[order].cumsum() / 2
        first, low, middle, high, last = (
            both[order][(rank < q).sum()] for q in (0.01, 0.16, 0.5, 0.84, 0.99)
        )
        scales.append((middle, (high - low) / 2))
        start, end = np.arcsinh((np.array([first, last]) - middle) / scales[k][1])
        grids.append([(mu, tau) for tau in (0.5, 2.0) for mu in np.arange(start, end + 0.8, 0.8)])

    def kernel(values, pairs):
        log = 0.0
        for k, (mu, tau) in enumerate(pairs):
            log = log - 0.5 * ((np.arcsinh((values[k] - scales[k][0]) / scales[k][1]) - mu) / tau) ** 2
        return np.exp(log)

    cells = list(itertools.product(*grids))
    z = np.array([[kernel(p, cell).mean() for p in prior] for cell in cells])
    inside = [
        [np.isclose([c[0][1], c[1][1]], [cell[0][1], cell[1][1]]).all() for c in cells] for cell in cells
    ]
    hyperprior = z.mean(axis=1) / (np.array(inside) @ z.mean(axis=1))
    joint = np.zeros((2, 80))
    for cell, of_cell, chance in zip(cells, z, hyperprior, strict=True):
        likelihoods = [0.8 * kernel(phi[g], cell) / of_cell[g] + 0.2 for g in range(2)]
        for g in range(2):
            joint[g] += chance * own * likelihoods[g] * (own @ likelihoods[1 - g])
    for g, law in enumerate(pool(laws).values()):
        expected = joint[g] / joint[g].sum()
        assert law.weights == pytest.approx(
            {"power": 0.5 * expected[:40].sum(), "hill": 0.5 * expected[40:].sum(), "trend": 0.5}, rel=1e-9
        )
        assert law.weights["hill"] != pytest.approx(0.35, abs=1e-3)
        for p, was, part in zip(law.posteriors, laws["ab"[g]].posteriors, np.split(expected, 2), strict=True):
            chosen = (p.x[:, None] == was.x).all(axis=2).sum(axis=0)
            np.testing.assert_allclose(chosen, 40 * part / part.sum(), atol=1.0 + 1e-9)


def test_groups_of_one_population_are_foreseen_better_and_with_narrower_intervals() -> None:
    """12 groups in two populations, three sizes each: the curve at eight times the largest n."""
    gained, widths, held = [], [], []
    for seed in range(2):
        rng = np.random.default_rng(seed)
        curves = {
            str(i): power(rng.normal(0.2, 0.01), rng.uniform(0.3, 0.6), rng.lognormal(math.log(0.5), 0.1))
            for i in range(6)
        }
        apart = {name: fit(curve, 10 * seed + i) for i, (name, curve) in enumerate(curves.items())}
        together = pool(apart)
        for name, curve in curves.items():
            values = [laws[name].curves(8 * SIZES[-1])[:, 0] for laws in (apart, together)]
            true = curve(8 * SIZES[-1])
            before, after = (np.log(norm.pdf(true, x, 0.01).mean()) for x in values)
            gained.append(after - before)
            narrowed = [
                width(np.concatenate([p.curve(np.log([8.0 * SIZES[-1]])) for p in laws[name].form_draws]))
                for laws in (apart, together)
            ]
            widths.append(narrowed[1] / narrowed[0])
            low, high = np.quantile(values[1], [0.05, 0.95])
            held.append(low <= true <= high)
    assert np.mean(gained) > 0.1
    assert np.median(widths) < 0.95
    assert sum(held) >= 9  # P(fewer of 12 | 90 %) < 3 %


def test_groups_alike_share_their_floor_and_an_outlier_keeps_its_own() -> None:
    laws = {
        str(i): fit(power(floor, b=0.6), 50 + i, sizes=(50, 100, 200, 400, 800, 1600), noise=0.004)
        for i, floor in enumerate([0.1, 0.1, 0.1, 0.1, 0.5])
    }
    pooled = pool(laws)
    for name in "0123":
        assert width(floors(pooled[name])) < 0.7 * width(floors(laws[name]))
        assert abs(np.median(floors(pooled[name])) - 0.1) < 0.015
    moved = np.median(floors(pooled["4"])) - np.median(floors(laws["4"]))
    assert abs(moved) < 0.1 * width(floors(laws["4"]))


def test_a_group_that_knows_little_leaves_the_others_alone_and_learns_from_them() -> None:
    pooled = pool({"sure": sure(), "vague": vague()})
    assert width(floors(pooled["sure"])) == pytest.approx(width(floors(sure())), rel=0.2)
    assert width(floors(pooled["vague"])) < 0.9 * width(floors(vague()))


def test_groups_without_progress_neither_give_nor_take() -> None:
    flat = fit(lambda n: 0.5 + 0 * n, 2, noise=0.02)
    assert flat.budgets.flat
    pooled = pool({"flat": flat, **groups()})
    assert pooled["flat"] is flat
    for name, law in pool(groups()).items():
        assert_same(law, pooled[name])
    assert pool({"flat": flat, "a": groups()["a"]})["a"] is groups()["a"]


def test_weights_that_leave_too_few_curves_are_flattened(monkeypatch: pytest.MonkeyPatch) -> None:
    laws = {"sure": sure(), "vague": vague()}
    free = width(floors(pool(laws)["vague"]))
    monkeypatch.setattr(pooling, "KEPT", 0.95)
    guarded = width(floors(pool(laws)["vague"]))
    assert free < guarded < width(floors(laws["vague"]))


def test_curves_of_different_metrics_are_refused() -> None:
    other = fit(power(0.2), 1, bounds=(0, 2))
    with pytest.raises(InputError, match="the groups a, other differ in the metric's direction or bounds"):
        pool({"a": groups()["a"], "other": other})
