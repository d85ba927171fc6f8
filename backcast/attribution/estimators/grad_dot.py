"""Inner products of gradients at the last checkpoint."""

from __future__ import annotations

from backcast.attribution.estimators.blocks import Blocks, blocks
from backcast.attribution.estimators.solve import wanted
from backcast.attribution.problem import Problem


def grad_dot(problem: Problem) -> Blocks:
    """score(x, z) = ⟨∇ℓ(x), ∇ℓ(z)⟩: how far a step on x lowers z's loss, to first order.

    Source: Pruthi et al. 2020, Estimating training data influence by tracing gradient descent: one step of TracIn.
    """
    towards = wanted(problem, -1).T
    return blocks(problem.stores[0], -1, lambda g: g @ towards)
