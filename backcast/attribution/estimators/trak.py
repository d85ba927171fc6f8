"""TRAK: the linear model of the outputs that the gradients make, one example left out."""

from __future__ import annotations

from functools import reduce
from operator import add

import numpy as np

from backcast.attribution.estimators.blocks import Blocks
from backcast.attribution.estimators.solve import along, damped_solve, slopes
from backcast.attribution.problem import Problem


def trak(problem: Problem, damping: float = 1.0) -> Blocks:
    """score(x, z) = Q̄(x) · (1/C) Σ_c φ_c(x)ᵀ (Φ_cᵀΦ_c + λI)⁻¹ φ_c(z) over C checkpoints, or separately trained models.

    φ = ∇f is the gradient of the model output f, and Q = −∂ℓ/∂f, averaged over the checkpoints: 1 − p for
    f = log p/(1 − p) (``collect(..., of="output")``). It estimates how far f(z) falls where x is left out. Of a store
    of losses, f = −ℓ and Q = 1, which is `influence` there.

    Args:
        damping: λ is this times the mean of ‖φ(x)‖² over the training examples. The paper has none, which takes
            k < n: where the sketch has as many numbers as there are examples, what is left is noise.

    Source: Park et al. 2023, TRAK: attributing model behavior at scale, arXiv 2303.14186, equation 17.

    Raises:
        InputError: stores are wanted, and a positive damping.
    """
    train = problem.stores[0]
    models = range(len(train.checkpoints))
    ones = np.ones(len(train))
    sign = -1 if train.header.origin["of"] == "output" else 1  # the rows of losses are gradients of −f
    pulls = sign * np.mean([slopes(train, c) for c in models], axis=0)
    terms = (damped_solve(train, c, ones, problem.sketches[c], damping) / len(models) for c in models)
    return reduce(add, [along(train, c, pulls, towards) for c, towards in enumerate(terms)])
