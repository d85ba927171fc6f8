"""The length of each training example's gradient."""

from __future__ import annotations

import numpy as np

from backcast.attribution.estimators.blocks import Blocks, blocks
from backcast.attribution.problem import Problem


def grad_norm(problem: Problem) -> Blocks:
    """score(x, z) = ‖∇ℓ(x)‖ at the last checkpoint, whatever the target: the loudest comes first.

    Its square, of the sketch, is right on average.

    Source: Paul et al. 2021, Deep learning on a data diet, section 2 (GraNd).
    """
    groups = len(problem.names)

    def norms(g: np.ndarray) -> np.ndarray:
        return np.repeat(np.linalg.norm(g, axis=1, keepdims=True), groups, axis=1)

    return blocks(problem.stores[0], -1, norms)
