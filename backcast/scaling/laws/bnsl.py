"""One-break BNSL: y = c + A n^(-b0) (1 + (n/n0)^(1/f))^(-(b1 - b0) f).

A power law of exponent b0 that bends, at n0 and over a width f in log n, into one of exponent b1. Source: Caballero et
al. 2023, "Broken neural scaling laws" (arXiv 2210.14891), eq. 1 with one break and c1 = b1 - b0; here b0, b1 > 0, so
that the curve is monotone.
"""

from __future__ import annotations

import numpy as np

from backcast.scaling.laws.form import Form, Parameter


def log_shape(
    log_n: np.ndarray, log_b0: np.ndarray, log_b1: np.ndarray, log_n0: np.ndarray, log_f: np.ndarray
) -> np.ndarray:
    """log s(n), with s = n^(-b0) (1 + (n/n0)^(1/f))^(-(b1 - b0) f)."""
    b0, b1, f = np.exp(log_b0), np.exp(log_b1), np.exp(log_f)
    return -b0 * log_n - (b1 - b0) * f * np.logaddexp(0.0, (log_n - log_n0) / f)


bnsl = Form(
    "bnsl",
    log_shape,
    (
        Parameter("b0", np.log(0.1), 1.3),
        Parameter("b1", 0.0, 1.2),
        Parameter("n0", 1.0, 1.5, place=True),
        Parameter("f", np.log(0.5), 0.5),
    ),
)
