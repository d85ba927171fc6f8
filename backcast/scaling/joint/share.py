"""The share q of one source in the n examples, the rest being of another.

Two things are to be learnt, with weights w and 1 - w. An example of the source teaches the first in full and the second
to r2; an example of the rest teaches the second in full and the first to r1. Each excess is inverse to the examples
that teach it:

    C(q) = w / (q + r1 (1 - q)) + (1 - w) / (r2 q + (1 - q)).

With both weights above 0 the best share may lie inside; with w = 1 the rest is only worse data.

`multiplicative`: n_eff = n · C(q)^(-a). Into a power law of exponent b it gives A · C(q)^(ab) / n^b + E, the law of
Hashimoto 2021, "Model Performance Scaling with Multiple Data Sources" (PMLR 139): the mixture multiplies the power law
in n by a sum of inverse linear terms, here two.

`bottleneck`: n_eff = (n^(-γ) + k · C(q)^a)^(-1/γ): the mixture says where the curve in n ends, as where wrong labels
teach a wrong confidence. Into a power law of exponent b = γ it gives A/n^b + B · C(q)^a + E, as in the additive law of
Shukor et al. 2025, "Scaling Laws for Optimal Data Mixtures" (arXiv 2507.09404).

The exponential mixing law of Ye et al. 2024 (arXiv 2403.16952) is monotone in q for one validation set, so that its
optimum is always at an end. Why it is inside where excesses go as 1/n: Medvedev et al. 2025 (arXiv 2510.25108).
"""

from __future__ import annotations

import numpy as np
from scipy.special import expit

from backcast.scaling.joint.form import Coefficient, Input, JointForm, limited


def log_mixture(q: np.ndarray, w: np.ndarray, r1: np.ndarray, r2: np.ndarray) -> np.ndarray:
    """log C(q)."""
    return np.log(w / (q + r1 * (1.0 - q)) + (1.0 - w) / (r2 * q + 1.0 - q))


def log_product(
    log_n: np.ndarray, q: np.ndarray, w: np.ndarray, r1: np.ndarray, r2: np.ndarray, a: np.ndarray
) -> np.ndarray:
    """log n_eff of `multiplicative`."""
    return log_n - a * log_mixture(q, w, r1, r2)


def log_bottleneck(
    log_n: np.ndarray,
    q: np.ndarray,
    w: np.ndarray,
    r1: np.ndarray,
    r2: np.ndarray,
    a: np.ndarray,
    k: np.ndarray,
    gamma: np.ndarray,
) -> np.ndarray:
    """log n_eff of `bottleneck`."""
    return limited(log_n, np.log(k) + a * log_mixture(q, w, r1, r2), gamma)


def cost(n: float, q: float) -> float:
    """Examples, whichever they are."""
    return n


def grid(seen: np.ndarray) -> np.ndarray:
    """Twenty steps over the observed range, beside the shares observed."""
    return np.union1d(seen, np.linspace(seen.min(), seen.max(), 21).round(4))


mixture = (
    Coefficient("w", 0.0, 2.0, expit),
    Coefficient("r1", -2.0, 2.0, expit),
    Coefficient("r2", -2.0, 2.0, expit),
    Coefficient("a", 0.0, 0.5),
)
multiplicative = JointForm("multiplicative", log_product, mixture)
bottleneck = JointForm(
    "bottleneck",
    log_bottleneck,
    (*mixture, Coefficient("k", 0.0, 2.0), Coefficient("gamma", np.log(0.6), 0.7)),
)

share = Input("share", (multiplicative, bottleneck), cost, lambda q: f"a share of {q:.3g}", grid, share=True)
