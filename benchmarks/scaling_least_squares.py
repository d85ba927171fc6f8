"""A law's form fitted by least squares: the point fits that the inverter is set beside."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares

from backcast.scaling.laws import Form

STARTS = 12
#: How far a shape's parameter may go from its prior's mean, in standard deviations.
WIDEST = 4.0


@dataclass(frozen=True)
class PointFit:
    """y(n) = e^floor + e^gain · s(n) / s(first), above the metric's best value.

    Attributes:
        x: (2 + parameters,) log floor, log gain, logs of the shape's parameters.
        first: the smallest log n.
    """

    form: Form
    x: np.ndarray
    first: float

    def curve(self, log_n: np.ndarray) -> np.ndarray:
        """(K,) y at log n."""
        shape = self.x[2:]
        ratio = self.form.log_shape(log_n, *shape) - self.form.log_shape(np.array([self.first]), *shape)
        return np.exp(self.x[0]) + np.exp(self.x[1] + np.minimum(ratio, 60.0))

    def log_n_at(self, y: float, low: float, high: float) -> float:
        """Where the curve comes down to y, within ``low`` to ``high`` in log n; their ends where it does not."""
        grid = np.linspace(low, high, 2000)
        return float(np.interp(-y, -self.curve(grid), grid))


def fit(form: Form, n: np.ndarray, y: np.ndarray, logs: bool) -> PointFit:
    """The least squares of y - y(n), or of their logs, over `STARTS` random starts; y is above 0."""
    log_n, rng = np.log(n), np.random.default_rng(0)
    middle, half = 0.5 * (log_n[0] + log_n[-1]), 0.5 * (log_n[-1] - log_n[0])
    mean = np.array([p.mean + (middle if p.place else 0.0) for p in form.parameters])
    sd = np.array([p.sd + (half if p.place else 0.0) for p in form.parameters])
    scale = np.ptp(y) or y[0]
    floor, most = np.log(1e-9 * y.max()), np.log(4 * y.max())
    low, high = (
        np.concatenate([[floor, floor], mean - WIDEST * sd]),
        np.concatenate([[most, most], mean + WIDEST * sd]),
    )

    def residual(x: np.ndarray) -> np.ndarray:
        found = PointFit(form, x, float(log_n[0])).curve(log_n)
        return np.log(found / y) if logs else (found - y) / scale

    def start() -> np.ndarray:
        left = rng.uniform(0.02, 0.98) * y.min()
        x = np.array([np.log(left), np.log(max(y[0] - left, 1e-3 * y[0])), *rng.normal(mean, sd)])
        return np.clip(x, low + 1e-6, high - 1e-6)

    tries = [least_squares(residual, start(), bounds=(low, high), max_nfev=300) for _ in range(STARTS)]
    return PointFit(form, min(tries, key=lambda one: one.cost).x, float(log_n[0]))
