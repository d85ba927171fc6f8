"""Influence functions: one Newton step away from an example, in sketch space."""

from __future__ import annotations

from functools import reduce
from operator import add

import numpy as np

from backcast.attribution.estimators.blocks import Blocks
from backcast.attribution.estimators.solve import along, damped_solve, slopes, wanted
from backcast.attribution.problem import Problem


def influence(problem: Problem, damping: float = 1.0) -> Blocks:
    """score(x, z) = (1/C) Σ_c ∇ℓ_c(z)ᵀ (H_c + λI)⁻¹ ∇ℓ_c(x) over C checkpoints, or separately trained models.

    It estimates how far ℓ(z) rises where x is left out. Of a store of losses, H = Σ_i ∇ℓ_i ∇ℓ_iᵀ, the empirical Fisher
    matrix. Of a store of outputs f = log p/(1 − p), H = Σ_i (1 − p_i) ∇f_i ∇f_iᵀ: the Gauss-Newton matrix, whose
    weights are ℓ″ = p(1 − p), and the empirical Fisher matrix, whose weights are ℓ′² = (1 − p)², added up. The first
    takes examples that the model has wrong for flat, the second those that it has right; the sum predicted retraining
    best, or nearly so, wherever the three were compared.

    Args:
        damping: λ is this times the mean trace of H's n terms, which for a store of losses is the mean of ‖∇ℓ(x)‖².
            1 is near the best for subsets of half the data, whatever k; for single examples less can be better.
            Larger is nearer to `grad_dot`.

    Sources: Koh & Liang 2017, Understanding black-box predictions via influence functions, equation 2; Martens 2020,
    New insights and perspectives on the natural gradient method, for the two parts of H.

    Raises:
        InputError: stores are wanted, and a positive damping.
    """
    train = problem.stores[0]
    models = range(len(train.checkpoints))
    terms = []
    for c in models:
        own = slopes(train, c)
        step = damped_solve(train, c, np.abs(own), wanted(problem, c), damping)
        terms.append(along(train, c, own, step / len(models)))
    return reduce(add, terms)
