"""Hill curve: y = c + A / (1 + (n/n0)^b).

A plateau at c + A, then a power law of exponent b, then the floor c. Source: Hill 1910; for fine-tuning, Lin et al.
2024, "Selecting large language model to fine-tune via rectified scaling law" (arXiv 2402.02314), B/(D_l + D^β) + E.
"""

from __future__ import annotations

import numpy as np

from backcast.scaling.laws.form import Form, Parameter


def log_shape(log_n: np.ndarray, log_b: np.ndarray, log_n0: np.ndarray) -> np.ndarray:
    """log s(n), with s = 1/(1 + (n/n0)^b)."""
    return -np.logaddexp(0.0, np.exp(log_b) * (log_n - log_n0))


hill = Form("hill", log_shape, (Parameter("b", 0.0, 1.1), Parameter("n0", 1.5, 2.5, place=True)))
