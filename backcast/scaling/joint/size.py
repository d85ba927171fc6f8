"""The size N of the model.

`multiplicative`: n_eff = n · N^a. Into a power law of exponent b it gives A / (N^(ab) · n^b) + E, the law of
fine-tuning of Zhang et al. 2024, "When Scaling Meets LLM Finetuning" (arXiv 2402.17193), equation 1.

`bottleneck`: n_eff = (n^(-γ) + k · N^(-a))^(-1/γ): a model of size N makes use of so much data and no more. Into a
power law of exponent b it is Kaplan et al. 2020, "Scaling Laws for Neural Language Models" (arXiv 2001.08361), equation
1.5, at γ = 1, and the additive law A/n^b + B/N^a + E of Hoffmann et al. 2022 (arXiv 2203.15556), at γ = b.
"""

from __future__ import annotations

import numpy as np

from backcast.scaling.joint.form import Coefficient, Input, JointForm, limited


def log_product(log_n: np.ndarray, log_size: np.ndarray, a: np.ndarray) -> np.ndarray:
    """log n_eff of `multiplicative`."""
    return log_n + a * log_size


def log_bottleneck(
    log_n: np.ndarray, log_size: np.ndarray, k: np.ndarray, a: np.ndarray, gamma: np.ndarray
) -> np.ndarray:
    """log n_eff of `bottleneck`."""
    return limited(log_n, np.log(k) - a * log_size, gamma)


def cost(n: float, size: float) -> float:
    """Proportional to the operations of training."""
    return n * size


def grid(seen: np.ndarray) -> np.ndarray:
    """The sizes there are."""
    return seen


multiplicative = JointForm("multiplicative", log_product, (Coefficient("a", np.log(0.7), 1.0),))
bottleneck = JointForm(
    "bottleneck",
    log_bottleneck,
    (Coefficient("k", 0.0, 2.0), Coefficient("a", np.log(0.5), 0.8), Coefficient("gamma", np.log(0.6), 0.7)),
)

size = Input("size", (multiplicative, bottleneck), cost, lambda s: f"size {s:.4g}", grid, relative=True)
