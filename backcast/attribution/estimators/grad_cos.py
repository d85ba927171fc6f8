"""Cosines of gradients at the last checkpoint."""

from __future__ import annotations

from backcast.attribution.estimators.blocks import Blocks, blocks
from backcast.attribution.estimators.solve import wanted
from backcast.attribution.problem import Problem
from backcast.attribution.store import unit_rows


def grad_cos(problem: Problem) -> Blocks:
    """score(x, z) = ⟨∇ℓ(x), ∇ℓ(z)⟩ / ‖∇ℓ(x)‖‖∇ℓ(z)‖: `grad_dot` for which no example is loud.

    Source: Charpiat et al. 2019, Input similarity from the neural network perspective; there of the output, not the
    loss.
    """
    towards = unit_rows(wanted(problem, -1)).T
    return blocks(problem.stores[0], -1, lambda g: unit_rows(g) @ towards)
