"""The trend against the Gaussian process that its equations state, and on curves whose course is known."""

import math
from functools import cache

import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import multivariate_normal, norm

from backcast.scaling import trend
from backcast.scaling.budgets import Budgets
from backcast.scaling.stacking import prefixes
from backcast.scaling.table import Observation
from backcast.scaling.trend import Trend, fit_trend

SIZES = [40.0, 55.0, 160.0, 161.0, 700.0, 5000.0, 8000.0]
DOUBLING = [50.0 * 2**k for k in range(8)]


def runs(
    curve, sizes=SIZES, seeds: int = 1, noise: float = 0.02, se: float | None = None
) -> list[Observation]:
    """The curve's runs, with noise relative to it."""
    rng = np.random.default_rng(3)
    return [
        Observation(n, curve(n) * (1 + noise * rng.standard_normal()), se=se)
        for n in sizes
        for _ in range(seeds)
    ]


def falling(n: float) -> float:
    return 2.0 * n**-0.3


TABLES = {
    "best": Budgets.of(runs(falling), 1.0, best=0.0),
    "no best": Budgets.of(runs(falling), 1.0, best=-math.inf),
    "seeds": Budgets.of(runs(falling, seeds=3), 1.0, best=0.1),
    "se": Budgets.of(runs(falling, se=0.01), 1.0, best=0.0),
}


@pytest.fixture(params=TABLES)
def budgets(request: pytest.FixtureRequest) -> Budgets:
    return TABLES[request.param]


def coordinate(b: Budgets) -> tuple[np.ndarray, np.ndarray]:
    """z of the means, and dz/dy."""
    if math.isinf(b.best):
        return b.mean / b.spread, np.full(len(b), 1 / b.spread)
    return np.log(b.mean - b.best), 1 / (b.mean - b.best)


def prior(z0: float, t: np.ndarray, damping: float, rate: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of z at times t since the first budget: what v(0) and each moment's dW make of it.

    A slope of 1 adds h(x) = ∫ e^(-s/λ) ds over s < x to z after x: z(t) = z(0) + h(t) v(0) + q ∫ h(t - u) dW(u).
    """

    def h(x: np.ndarray) -> np.ndarray:
        return damping * (1 - np.exp(-np.maximum(x, 0.0) / damping))

    mean, sd = trend.SLOPE
    nodes, weights = np.polynomial.legendre.leggauss(24)
    cov = np.empty((len(t), len(t)))
    for i in range(len(t)):
        for j in range(len(t)):
            end = min(t[i], t[j])
            u = 0.5 * end * (nodes + 1)
            cov[i, j] = 1 + sd**2 * h(t[i]) * h(t[j])
            cov[i, j] += rate**2 * 0.5 * end * (weights * h(t[i] - u) * h(t[j] - u)).sum()
    return z0 + h(t) * mean, cov


class Dense:
    """Every hypothesis (λ, q, ω) as one Gaussian of z at the budgets and at ``past``, with its prior weight."""

    def __init__(self, b: Budgets, past: np.ndarray) -> None:
        self.z, slope = coordinate(b)
        self.jacobian = np.log(np.abs(slope))
        t = np.concatenate([b.log_n, b.log_n[-1] + past]) - b.log_n[0]
        known = (b.seed_noise**2 / b.count + b.se**2) * slope**2
        self.hypotheses, log_prior = [], []
        for damping in trend.LAMBDAS:
            for rate in trend.RATES:
                mean, cov = prior(self.z[0], t, damping, rate)
                for luck in trend.LUCKS:
                    self.hypotheses.append((mean, cov, luck**2 + known, luck))
                    log_prior.append(
                        norm.logpdf(math.log(rate), *trend.RATE_PRIOR)
                        + norm.logpdf(math.log(luck), *trend.LUCK_PRIOR)
                    )
        self.log_prior = np.array(log_prior) - logsumexp(log_prior)

    def log_density(self, end: int) -> np.ndarray:
        """(T,) of the first ``end`` means under each hypothesis."""
        return (
            np.array(
                [
                    multivariate_normal.logpdf(
                        self.z[:end], mean[:end], cov[:end, :end] + np.diag(white[:end])
                    )
                    for mean, cov, white, _ in self.hypotheses
                ]
            )
            + self.jacobian[:end].sum()
        )

    def log_weight(self, end: int) -> np.ndarray:
        found = self.log_prior + self.log_density(end)
        return found - logsumexp(found)

    def given(self, end: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Mean and covariance of all z given the first ``end`` means, under each hypothesis."""
        found = []
        for mean, cov, white, _ in self.hypotheses:
            gain = cov[:, :end] @ np.linalg.inv(cov[:end, :end] + np.diag(white[:end]))
            found.append((mean + gain @ (self.z[:end] - mean[:end]), cov - gain @ cov[:end]))
        return found


@cache
def doubled(curve, best: float = 0.0, noise: float = 0.003) -> Trend:
    return fit_trend(Budgets.of(runs(curve, DOUBLING, noise=noise), 1.0, best=best))


def test_the_evidence_sums_every_hypothesis(budgets: Budgets) -> None:
    dense = Dense(budgets, np.array([]))
    expected = logsumexp(dense.log_prior + dense.log_density(len(budgets)))
    assert fit_trend(budgets).log_evidence == pytest.approx(expected, abs=2e-4)


def test_the_scores_are_the_dense_predictive_densities(budgets: Budgets) -> None:
    dense, ends = Dense(budgets, np.array([])), prefixes(len(budgets))[:-1]
    scores = fit_trend(budgets).scores
    assert len(scores) == len(ends)
    for end, score in zip(ends, scores, strict=True):
        each = [
            norm.logpdf(dense.z, mean, np.sqrt(np.diag(cov) + white))[end:]
            for (mean, cov), (_, _, white, _) in zip(dense.given(end), dense.hypotheses, strict=True)
        ]
        expected = logsumexp(np.array(each) + dense.log_weight(end)[:, None], axis=0) + dense.jacobian[end:]
        np.testing.assert_allclose(score, expected, atol=2e-4)


def test_the_paths_are_draws_of_the_dense_posterior(
    budgets: Budgets, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mean and covariance at every budget and at some sizes past them, within 5 standard errors of 20000 draws."""
    monkeypatch.setattr(trend, "DRAWS", 20000)
    found = fit_trend(budgets)
    assert len(found) == 20000
    steps = np.array([0, 7, 29, 40, len(trend.PAST) - 1])
    path = found.path[:, np.concatenate([np.arange(len(budgets)), len(budgets) + steps])]
    dense = Dense(budgets, trend.PAST[steps])
    weight = np.exp(dense.log_weight(len(budgets)))
    means, covs = (np.array(part) for part in zip(*dense.given(len(budgets)), strict=True))
    mean = weight @ means
    off = means - mean
    cov = np.tensordot(weight, covs, 1) + (weight[:, None] * off).T @ off
    sd = np.sqrt(np.diag(cov))
    assert (np.abs(path.mean(axis=0) - mean) < 5 * sd / math.sqrt(20000)).all()
    np.testing.assert_allclose(np.cov((path / sd).T), cov / np.outer(sd, sd), atol=0.08)
    # The hypotheses are drawn by a comb: each as often as its weight says, to one draw.
    lucks = np.array([luck for *_, luck in dense.hypotheses])
    for luck in trend.LUCKS:
        expected = 20000 * weight[lucks == luck].sum()
        assert abs(np.isclose(found.luck, luck).sum() - expected) <= 1 + (lucks == luck).sum()


def test_curves_are_the_paths_and_go_on_at_both_ends() -> None:
    one = doubled(falling)
    np.testing.assert_array_equal(one.log_n[: len(DOUBLING)], np.log(DOUBLING))
    np.testing.assert_allclose(one.curve(one.log_n), np.exp(one.path), rtol=1e-12)
    middle = 0.5 * (one.log_n[3] + one.log_n[4])
    np.testing.assert_allclose(one.curve(np.array([middle]))[:, 0], np.exp(one.path[:, 3:5].mean(axis=1)))
    np.testing.assert_allclose(one.curve(one.log_n[:1] - 2.0), np.exp(one.path[:, :1]), rtol=1e-12)
    np.testing.assert_allclose(one.curve(one.log_n[-1:] + 9.0), np.exp(one.path[:, -1:]), rtol=1e-12)


def test_a_straight_line_in_log_log_is_continued_and_then_fades() -> None:
    one = doubled(falling)
    n = DOUBLING[-1] * np.array([2.0, 4.0, 8.0, 64.0])
    z = np.log(one.curve(np.log(n)))
    low, middle, high = np.quantile(z, [0.05, 0.5, 0.95], axis=0)
    true, now = np.log(falling(n)), math.log(falling(DOUBLING[-1]))
    assert ((low < true) & (true < high))[:3].all()
    went = (middle - now) / (true - now)  # share of the way that the line goes
    assert 0.75 < went[0] < 1.05
    assert (np.diff(went) < 0).all()
    assert went[-1] > 0.3
    assert (np.diff(high - low) > 0).all()
    assert (high - low)[0] < 0.25


def test_a_curve_that_turns_is_followed() -> None:
    """A law improves with n for ever; this does not."""

    def turning(n: float) -> float:
        return 0.3 + 0.05 * (math.log(n / 800)) ** 2

    one = doubled(turning)
    last, ahead = one.curve(np.log([DOUBLING[-1], 2 * DOUBLING[-1]])).T
    assert (ahead > last).mean() > 0.95
    assert np.median(ahead) == pytest.approx(turning(2 * DOUBLING[-1]), rel=0.15)

    def stalling(n: float) -> float:
        return 0.3 + max(0.0, 0.1 * math.log(800 / n))

    flat = doubled(stalling)
    assert np.median(flat.curve(np.log([4 * DOUBLING[-1]]))) == pytest.approx(0.3, rel=0.05)


def test_the_best_value_is_never_crossed_and_needs_not_be_known() -> None:
    far = np.log(DOUBLING[-1]) + np.linspace(0, 13, 20)
    bounded, free = doubled(falling, best=0.05), doubled(falling, best=-math.inf)
    assert (bounded.curve(far) > 0.05).all()
    assert (free.curve(far) < 0.0).any()
    np.testing.assert_allclose(
        bounded.curve(np.log(DOUBLING)).mean(axis=0), falling(np.array(DOUBLING)), rtol=0.02
    )
    np.testing.assert_allclose(
        free.curve(np.log(DOUBLING)).mean(axis=0), falling(np.array(DOUBLING)), rtol=0.02
    )


def test_a_mean_at_the_best_value_is_no_infinity() -> None:
    b = Budgets.of(runs(lambda n: max(0.0, 1 - n / 800), DOUBLING, noise=0.0), 1.0, best=0.0)
    assert b.mean[-1] == b.best
    one = fit_trend(b)
    assert np.isfinite(one.log_evidence)
    assert np.isfinite(one.curve(np.log(DOUBLING))).all()


def test_units_of_n_and_of_the_metric_do_not_matter() -> None:
    """z only shifts with a factor on what lies above the best value; without one, with any straight map."""
    for best, scale, shift in ((0.05, 30.0, 0.0), (-math.inf, 30.0, -7.0)):
        given = runs(falling, DOUBLING)
        other = [Observation(1000 * run.n, shift + scale * run.value) for run in given]
        one = fit_trend(Budgets.of(given, 1.0, best=best))
        two = fit_trend(Budgets.of(other, 1.0, best=shift + scale * best))
        log_n = np.log([30.0, 400.0, 2000.0, 90000.0])
        np.testing.assert_allclose(
            two.curve(log_n + math.log(1000)), shift + scale * one.curve(log_n), rtol=1e-6, atol=1e-6
        )
        changed = len(DOUBLING) * math.log(scale)
        assert one.log_evidence - two.log_evidence == pytest.approx(changed, abs=1e-6)


def test_the_noise_of_fresh_runs_is_luck_and_the_seeds() -> None:
    log_n = np.log([100.0, 20000.0])
    b = TABLES["seeds"]
    one = fit_trend(b)
    above = one.curve(log_n) - 0.1
    for seeds in (1, 4):
        expected = (one.luck[:, None] * above) ** 2 + b.seed_noise**2 / seeds
        np.testing.assert_allclose(one.run_variance(log_n, seeds), expected, rtol=1e-12)
    free = fit_trend(TABLES["no best"])
    expected = np.tile((free.luck[:, None] * TABLES["no best"].spread) ** 2, 2)
    np.testing.assert_allclose(free.run_variance(log_n, 1), expected, rtol=1e-12)


def test_the_same_runs_in_any_order_give_the_same_trend() -> None:
    given = runs(falling, seeds=3)
    shuffled = [given[i] for i in np.random.default_rng(0).permutation(len(given))]
    one, other = (fit_trend(Budgets.of(rows, 1.0, best=0.0)) for rows in (given, shuffled))
    np.testing.assert_array_equal(one.path, other.path)
    np.testing.assert_array_equal(one.luck, other.luck)
    assert one.log_evidence == other.log_evidence


def test_taken_curves_are_the_same_ones() -> None:
    one, index = doubled(falling), np.array([5, 900, 5])
    log_n = np.log([70.0, 1e5])
    np.testing.assert_array_equal(one.take(index).curve(log_n), one.curve(log_n)[index])
    np.testing.assert_array_equal(one.take(index).run_variance(log_n, 2), one.run_variance(log_n, 2)[index])
