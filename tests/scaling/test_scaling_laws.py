"""Every law against its plain formula."""

import numpy as np
import pytest

from backcast.scaling import LAWS

N = np.geomspace(3, 1e5, 40)
B, N0, ALPHA, F = 0.7, 400.0, 1.8, 0.6

FORMULAS = {
    "power": ((B,), N**-B),
    "hill": ((B, N0), 1 / (1 + (N / N0) ** B)),
    "exponential": ((B, N0), np.exp(-((N / N0) ** B))),
    "bnsl": ((0.2, B, N0, F), N**-0.2 * (1 + (N / N0) ** (1 / F)) ** (-(B - 0.2) * F)),
}


def shape(name: str, *parameters: float) -> np.ndarray:
    columns = [np.array([[np.log(p)]]) for p in parameters]
    return np.exp(LAWS[name].log_shape(np.log(N), *columns))[0]


@pytest.mark.parametrize("name", FORMULAS)
def test_shape_is_the_formula(name: str) -> None:
    parameters, expected = FORMULAS[name]
    np.testing.assert_allclose(shape(name, *parameters), expected, rtol=1e-10)


@pytest.mark.parametrize("alpha", [0.1, 0.5, ALPHA, 8.0])
def test_m4_solves_its_equation(alpha: float) -> None:
    s = shape("m4", B, N0, alpha)
    np.testing.assert_allclose(s / (1 - s) ** alpha, (N / N0) ** -B, rtol=2e-4)


def test_laws_contain_one_another() -> None:
    np.testing.assert_allclose(shape("m4", B, N0, 1.0), shape("hill", B, N0), rtol=1e-12)
    np.testing.assert_allclose(shape("bnsl", B, B, N0, F), shape("power", B), rtol=1e-12)


def test_every_law_improves_with_n_and_broadcasts_over_samples() -> None:
    rng = np.random.default_rng(0)
    for form in LAWS.values():
        columns = [p.mean + p.sd * rng.standard_normal((50, 1)) for p in form.parameters]
        log_s = form.log_shape(np.log(N), *columns)
        assert log_s.shape == (50, len(N))
        assert (np.diff(log_s, axis=1) <= 0).all(), form.name
        assert (log_s[:, -1] < log_s[:, 0]).all(), form.name


def test_the_parameters_of_a_law_are_those_of_its_formula() -> None:
    for form in LAWS.values():
        assert form.log_shape.__code__.co_varnames[1 : 1 + len(form.parameters)] == tuple(
            f"log_{p.name}" for p in form.parameters
        )
