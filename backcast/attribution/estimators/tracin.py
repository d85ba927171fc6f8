"""Influence summed over the checkpoints of a training run."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, reduce
from operator import add

import numpy as np

from backcast.attribution.estimators.blocks import Blocks, blocks
from backcast.attribution.estimators.solve import wanted
from backcast.attribution.problem import Problem
from backcast.attribution.store import unit_rows


def tracin(problem: Problem, cosine: bool = False) -> Blocks:
    """score(x, z) = Σ_c η_c ⟨∇ℓ_c(x), ∇ℓ_c(z)⟩ over the checkpoints c with learning rates η_c.

    Args:
        cosine: normalise both gradients at every checkpoint, so that neither outliers nor early, steep checkpoints
            outweigh the rest.

    Sources: Pruthi et al. 2020, Estimating training data influence by tracing gradient descent (TracInCP); for the
    cosine, Xia et al. 2024, LESS, section 3.2.
    """
    norm = unit_rows if cosine else np.asarray
    train = problem.stores[0]
    steps = [
        blocks(train, c, partial(_project, norm, np.float32(rate) * norm(wanted(problem, c)).T))
        for c, rate in enumerate(train.learning_rates)
    ]
    return reduce(add, steps)


def _project(norm: Callable[[np.ndarray], np.ndarray], towards: np.ndarray, g: np.ndarray) -> np.ndarray:
    return norm(g) @ towards
