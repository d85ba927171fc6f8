"""DataInf: influence with the mean and the inverse of the curvature swapped."""

from __future__ import annotations

from functools import reduce
from operator import add

import numpy as np

from backcast.attribution.estimators.blocks import Blocks
from backcast.attribution.estimators.solve import along, check_damping, slopes, wanted
from backcast.attribution.problem import Problem
from backcast.attribution.store import SketchStore


def datainf(problem: Problem, damping: float = 0.1) -> Blocks:
    """score(x, z) = (1/C) Σ_c ∇ℓ_c(z)ᵀ [(1/n) Σ_i (g_i g_iᵀ + λI)⁻¹] ∇ℓ_c(x) / n over C checkpoints, g_i = ∇ℓ_c(x_i).

    `influence` with the empirical Fisher matrix has the inverse of the mean. The mean of the inverses has a closed
    form, (1/λ)(I − (1/n) Σ_i g_i g_iᵀ / (λ + ‖g_i‖²)), which takes n·k·g multiplications and no k × k matrix; where
    the gradients have many directions it is close to a multiple of the identity, and the scores to `grad_dot`'s. Here
    the sketch of all layers is one block; the paper has one for each layer.

    Args:
        damping: λ is this times the mean of ‖g_i‖²/k; the paper's value is 0.1.

    Source: Kwon et al. 2024, DataInf: efficiently estimating data influence in LoRA-tuned LLMs and diffusion models,
    arXiv 2310.00902, equation 5 and appendix E.

    Raises:
        InputError: stores are wanted, and a positive damping.
    """
    check_damping(damping)
    train = problem.stores[0]
    models = range(len(train.checkpoints))
    terms = []
    for c in models:
        own = slopes(train, c)
        step = _mean_of_inverses(train, c, own, wanted(problem, c).T, damping)
        terms.append(along(train, c, own, step / len(models)))
    return reduce(add, terms)


def _mean_of_inverses(
    train: SketchStore, checkpoint: int, own: np.ndarray, towards: np.ndarray, damping: float
) -> np.ndarray:
    """(k, g) float32: (1/n²) Σ_i (g_i g_iᵀ + λI)⁻¹ towards, of (k, g) towards; one pass for λ, one for the sum."""
    n, k = len(train), train.spec.dim
    lengths = np.square(own) * np.concatenate(
        [np.square(part, dtype=np.float64).sum(axis=1) for _, part in train.shards(checkpoint)]
    )
    level = damping * lengths.mean() / k or 1.0  # where all rows are zero, so are the scores
    taken = np.zeros(towards.shape)
    for rows, part in train.shards(checkpoint):
        g = own[rows, None] * part
        taken += g.T @ ((g @ towards) / (level + lengths[rows, None]))
    return ((towards - taken / n) / (n * level)).astype(np.float32)
