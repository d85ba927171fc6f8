"""Passes over the same n examples.

`decay`: n_eff = n · (1 + R · (1 - e^(-(epochs - 1)/R))). The first pass counts in full, further ones less and less;
R is how many more are ever worth it. Below one epoch the data that were seen count. Muennighoff et al. 2023, "Scaling
Data-Constrained Language Models" (arXiv 2305.16264), the data term of their law; R is 15.4 for their models.

`bottleneck`: n_eff = (n^(-γ) + k · (n · epochs)^(-a))^(-1/γ): so many steps make use of so much data and no more, and
any number of them of n examples only. Into a power law of exponent b = γ it gives A/n^b + B/(n · epochs)^a + E: an
error of too little data and one of too few steps, the latter as in Kaplan et al. 2020 (arXiv 2001.08361), equation 1.6.

Repetition that does harm is in neither (Lovelace et al. 2026, arXiv 2605.01640, add a penalty for that).
"""

from __future__ import annotations

import numpy as np

from backcast.scaling.joint.form import Coefficient, Input, JointForm, limited


def log_decay(log_n: np.ndarray, log_epochs: np.ndarray, r: np.ndarray) -> np.ndarray:
    """log n_eff of `decay`."""
    first, more = np.minimum(np.exp(log_epochs), 1.0), np.expm1(np.maximum(log_epochs, 0.0))
    return log_n + np.log(first - r * np.expm1(-more / r))


def log_bottleneck(
    log_n: np.ndarray, log_epochs: np.ndarray, k: np.ndarray, a: np.ndarray, gamma: np.ndarray
) -> np.ndarray:
    """log n_eff of `bottleneck`."""
    return limited(log_n, np.log(k) - a * (log_n + log_epochs), gamma)


def cost(n: float, epochs: float) -> float:
    """In passes of one example: training, and as much as one pass for having the example."""
    return n * (epochs + 1.0)


def grid(seen: np.ndarray) -> np.ndarray:
    """Whole numbers of epochs, about twelve to the observed range, beside those observed."""
    between = np.geomspace(max(seen.min(), 1.0), max(seen.max(), 1.0), 12).round()
    return np.union1d(seen, between[between <= seen.max()])


decay = JointForm("decay", log_decay, (Coefficient("r", np.log(10.0), 1.2),))
bottleneck = JointForm(
    "bottleneck",
    log_bottleneck,
    (Coefficient("k", 0.0, 2.0), Coefficient("a", 0.0, 0.8), Coefficient("gamma", np.log(0.6), 0.7)),
)

epochs = Input("epochs", (decay, bottleneck), cost, lambda e: f"{e:.4g} epoch" + "s" * (e != 1), grid)
