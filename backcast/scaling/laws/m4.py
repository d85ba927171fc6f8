"""M4: (y - c) / (y0 - y)^α ∝ n^(-b), with y0 = c + A the value before any learning.

Source: estimator M4 of Alabdulmohsin, Neyshabur, Zhai 2022, "Revisiting neural scaling laws in language and vision"
(arXiv 2209.06640). With s = (y - c)/A it reads s/(1 - s)^α = (n/n0)^(-b): α → 0 is a power law, α = 1 the Hill curve.
"""

from __future__ import annotations

import numpy as np

from backcast.scaling.laws.form import Form, Parameter

#: Leaves an error below 1e-4 in log s for α from 0.06 to 16, four sds of its prior, and below 1e-12 near 1.
NEWTON_STEPS = 5


def log_shape(log_n: np.ndarray, log_b: np.ndarray, log_n0: np.ndarray, log_alpha: np.ndarray) -> np.ndarray:
    """log s(n), solving log s - α log(1 - s) = -b log(n/n0) by Newton in z = logit s.

    The left side's slope in z goes monotonically from 1 to α, so that Newton converges from anywhere; it starts on the
    two asymptotes.
    """
    right = -np.exp(log_b) * (log_n - log_n0)
    alpha = np.exp(log_alpha)
    z = np.where(right < 0, right, right / alpha)
    for _ in range(NEWTON_STEPS):
        log_s, log_rest = _log_logistic(z)
        s = np.exp(log_s)
        z = z - (log_s - alpha * log_rest - right) / (1.0 - s + alpha * s)
    return _log_logistic(z)[0]


def _log_logistic(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """log s and log(1 - s) of s = 1/(1 + e^(-z))."""
    tail = np.log1p(np.exp(-np.abs(z)))
    return np.minimum(z, 0.0) - tail, -np.maximum(z, 0.0) - tail


m4 = Form(
    "m4",
    log_shape,
    (Parameter("b", 0.0, 1.1), Parameter("n0", 1.5, 2.5, place=True), Parameter("alpha", 0.0, 0.7)),
)
