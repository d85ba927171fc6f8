"""The noise's filter against the Gaussian that its docstring states, written out in full."""

import math

import numpy as np
import pytest
from scipy.stats import multivariate_normal, norm

from backcast.scaling.budgets import Budgets
from backcast.scaling.noise import DIM, FALL, LENGTH, OMEGA, SIGMA, TAU, Noise
from backcast.scaling.table import Observation

SIZES = [40.0, 55.0, 160.0, 161.0, 700.0, 5000.0]


def curve(n: np.ndarray) -> np.ndarray:
    return 0.2 + 2.0 * n**-0.4


def budgets(seeds: int = 1, se: float | None = None) -> Budgets:
    """Six uneven budgets; the last has one seed more, where there are several."""
    rng = np.random.default_rng(3)
    runs = [
        Observation(n, curve(n) + 0.02 * rng.standard_normal(), se=None if se is None else se * (1 + k))
        for k, n in enumerate(SIZES)
        for _ in range(seeds + (seeds > 1 and n == SIZES[-1]))
    ]
    return Budgets.of(runs, 1.0, best=0.0)


TABLES = {"single": budgets(), "seeds": budgets(seeds=3), "se": budgets(se=0.01)}


#: Twelve hypotheses' coordinates.
X = np.random.default_rng(1).standard_normal((12, DIM))


@pytest.fixture(params=TABLES)
def noise(request: pytest.FixtureRequest) -> Noise:
    """Twelve hypotheses as the prior draws them."""
    return Noise.of(TABLES[request.param], X)


def misfit_covariance(noise: Noise, s: int, log_n: np.ndarray) -> np.ndarray:
    """(K, K) of u: τ² e^(-|Δ log n|/ℓ)."""
    return noise.tau2[s] * np.exp(-np.abs(log_n[:, None] - log_n[None, :]) / noise.length[s])


def profile(noise: Noise, s: int, log_n: np.ndarray) -> np.ndarray:
    """(K,) g = (n/n̄)^(-h)."""
    middle = np.exp(np.log(noise.budgets.n).mean())
    return (np.exp(log_n) / middle) ** -noise.fall[s]


def white(noise: Noise, s: int) -> np.ndarray:
    """(K,) variances of g e."""
    b = noise.budgets
    own = noise.omega2[s] + noise.sigma2[s] / b.count
    return profile(noise, s, b.log_n) ** 2 * own + b.se**2


def covariance(noise: Noise, s: int) -> np.ndarray:
    """(K, K) of the budgets' means around the curve."""
    log_n = noise.budgets.log_n
    g = profile(noise, s, log_n)
    return g[:, None] * misfit_covariance(noise, s, log_n) * g[None, :] + np.diag(white(noise, s))


def residuals(noise: Noise) -> np.ndarray:
    """(S, K) something to filter, of the noise's own size."""
    rng = np.random.default_rng(2)
    return noise.budgets.spread * 0.03 * rng.standard_normal((len(noise.tau2), len(noise.budgets)))


def test_coordinates_are_standard_normal_scores_of_the_priors() -> None:
    b = TABLES["seeds"]
    x = np.array([[0.0] * DIM, [1.0, -1.0, 2.0, -2.0, 0.5]])
    noise = Noise.of(b, x)
    for found, (mean, sd), unit, column in (
        (np.sqrt(noise.tau2) / b.spread, TAU, np.log, 0),
        (np.sqrt(noise.omega2) / b.spread, OMEGA, np.log, 1),
        (noise.length, LENGTH, np.log, 2),
        (noise.fall, FALL, np.asarray, 3),
        (np.sqrt(noise.sigma2) / b.seed_noise, SIGMA, np.log, 4),
    ):
        np.testing.assert_allclose(unit(found), mean + sd * x[:, column], atol=1e-12)


def test_the_density_of_the_means_is_that_of_one_dense_gaussian(noise: Noise) -> None:
    r = residuals(noise)
    found = noise.log_density(r)
    assert found.shape == r.shape
    b = noise.budgets
    for s in range(len(r)):
        # The scatter's density, Gaussian with each budget's own σ g, over that under the pooled noise.
        g = profile(noise, s, b.log_n)
        expected = np.zeros(len(b))
        if b.freedom:
            variance = noise.sigma2[s] * g**2
            expected = -0.5 * (b.scatter / variance + b.free * np.log(variance))
            expected += 0.5 * (b.scatter / b.seed_noise**2 + b.free * np.log(b.seed_noise**2))
        c = covariance(noise, s)
        for k in range(1, len(b) + 1):  # every prefix: each budget's density is given those before it alone
            joint = multivariate_normal.logpdf(r[s, :k], np.zeros(k), c[:k, :k])
            assert found[s, :k].sum() == pytest.approx(joint + expected[:k].sum(), rel=1e-9, abs=1e-9)


def test_the_scatter_tells_the_noise_between_runs() -> None:
    """As a function of σ and h the scatter's part is the density of the runs themselves around their means."""
    rng = np.random.default_rng(5)
    runs = [Observation(n, 1.0 + 0.1 * rng.standard_normal()) for n in SIZES for _ in range(4)]
    b = Budgets.of(runs, 1.0, best=0.0)
    noise = Noise.of(b, np.random.default_rng(6).standard_normal((5, DIM)))
    r = np.zeros((5, len(b)))
    means = np.array(
        [multivariate_normal.logpdf(r[s], np.zeros(len(b)), covariance(noise, s)) for s in range(5)]
    )
    found = noise.log_density(r).sum(axis=1) - means
    within = []
    for s in range(5):
        total = 0.0
        for k, n in enumerate(SIZES):
            y = np.array([run.value for run in runs if run.n == n])
            sd = math.sqrt(noise.sigma2[s]) * profile(noise, s, b.log_n)[k]
            # Runs around their mean: all of them, over the mean's own density.
            total += norm.logpdf(y, 0, sd).sum() - norm.logpdf(y.mean(), 0, sd / math.sqrt(len(y)))
        within.append(total)
    np.testing.assert_allclose(np.diff(found), np.diff(within), rtol=1e-9)


def test_runs_that_agree_exactly_leave_the_density_finite() -> None:
    runs = [Observation(n, 1.0 / n) for n in (32.0, 64.0, 128.0) for _ in range(2)]
    b = Budgets.of(runs, 1.0, best=0.0)
    assert b.freedom == 3
    assert b.seed_noise == 0.0
    noise = Noise.of(b, np.zeros((1, DIM)))
    r = np.array([[0.001, -0.001, 0.0005]])
    joint = multivariate_normal.logpdf(r[0], np.zeros(3), covariance(noise, 0))
    assert noise.log_density(r).sum() == pytest.approx(joint, rel=1e-9)


def test_draws_of_the_misfit_are_the_dense_conditional(noise: Noise) -> None:
    """Mean and covariance of u given the residuals, within 5 standard errors of 20000 draws."""
    draws = 20000
    one = Noise.of(noise.budgets, X[np.full(draws, 4)])
    r = residuals(noise)[4]
    u = one.misfit(np.tile(r, (draws, 1)), np.random.default_rng(0))
    log_n = noise.budgets.log_n
    prior = misfit_covariance(noise, 4, log_n) * profile(noise, 4, log_n)  # of u with g u
    gain = prior @ np.linalg.inv(covariance(noise, 4))
    mean, after = gain @ r, misfit_covariance(noise, 4, log_n) - gain @ prior.T
    sd = np.sqrt(np.diag(after))
    assert (np.abs(u.mean(axis=0) - mean) < 5 * sd / math.sqrt(draws)).all()
    np.testing.assert_allclose(np.cov((u / sd).T), after / np.outer(sd, sd), atol=0.05)


def test_what_is_foreseen_is_the_dense_conditional(noise: Noise) -> None:
    """Mean and variance of each later budget's mean, given the first three."""
    r, log_n, end = residuals(noise), noise.budgets.log_n, 3
    mean, unsure = noise.last_known(r[:, :end])
    kept = noise.kept(log_n[end:] - log_n[end - 1])
    g = noise.profile_at(log_n)
    found, variance = g[:, end:] * kept * mean[:, None], noise.foreseen(end, kept, unsure)
    for s in range(len(r)):
        c = covariance(noise, s)
        gain = c[end:, :end] @ np.linalg.inv(c[:end, :end])
        np.testing.assert_allclose(found[s], gain @ r[s, :end], rtol=1e-8, atol=1e-12)
        expected = np.diag(c[end:, end:] - gain @ c[:end, end:])
        np.testing.assert_allclose(variance[s], expected, rtol=1e-8)


def test_fresh_runs_past_the_data_vary_by_the_misfit_that_the_last_budget_does_not_tell(noise: Noise) -> None:
    last = noise.budgets.log_n[-1]
    log_n = last + np.array([0.0, 0.3, 2.0])
    for seeds in (1, 3):
        found = noise.fresh(log_n, seeds)
        for s in range(len(found)):
            for k, there in enumerate(log_n):
                c = misfit_covariance(noise, s, np.array([last, there]))
                new = c[1, 1] - c[0, 1] ** 2 / c[0, 0]
                own = noise.omega2[s] + noise.sigma2[s] / seeds
                expected = profile(noise, s, log_n[k : k + 1])[0] ** 2 * (new + own)
                assert found[s, k] == pytest.approx(expected, rel=1e-9)
