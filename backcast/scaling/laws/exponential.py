"""Stretched exponential: y = c + A exp(-(n/n0)^b).

The fast way down to a floor. Source: the Weibull form among those that Viering and Loog 2023 review, "The shape of
learning curves: a review" (arXiv 2103.10948).
"""

from __future__ import annotations

import numpy as np

from backcast.scaling.laws.form import Form, Parameter


def log_shape(log_n: np.ndarray, log_b: np.ndarray, log_n0: np.ndarray) -> np.ndarray:
    """log s(n), with s = exp(-(n/n0)^b)."""
    return -np.exp(np.minimum(np.exp(log_b) * (log_n - log_n0), 500.0))


exponential = Form(
    "exponential", log_shape, (Parameter("b", np.log(0.6), 0.7), Parameter("n0", 1.0, 2.5, place=True))
)
