"""Power law with a floor: y = c + A n^(-b).

Source: Cortes et al. 1993, "Learning curves: asymptotic values and rate of convergence"; Hestness et al. 2017, "Deep
learning scaling is predictable, empirically" (arXiv 1712.00409).
"""

from __future__ import annotations

import numpy as np

from backcast.scaling.laws.form import Form, Parameter


def log_shape(log_n: np.ndarray, log_b: np.ndarray) -> np.ndarray:
    """log s(n), with s = n^(-b)."""
    return -np.exp(log_b) * log_n


power = Form("power", log_shape, (Parameter("b", np.log(0.4), 0.8),))
