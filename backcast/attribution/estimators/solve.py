"""What the estimators with curvature share: the loss's gradients, and solves with their second moment, by shards."""

from __future__ import annotations

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve
from scipy.linalg.blas import dsyrk

from backcast.attribution.estimators.blocks import Blocks
from backcast.attribution.problem import Problem
from backcast.attribution.store import SketchStore
from backcast.errors import InputError


def slopes(store: SketchStore, checkpoint: int) -> np.ndarray:
    """(n,) float32: what the rows are to be multiplied by to be loss gradients; 1 in a store of losses."""
    if store.header.origin["of"] == "output":
        return store.slopes(checkpoint)
    return np.ones(len(store), dtype=np.float32)


def wanted(problem: Problem, checkpoint: int) -> np.ndarray:
    """(g, k) float32: the groups' mean loss gradients."""
    target = problem.stores[1]
    return problem.means(slopes(target, checkpoint)[:, None] * target.sketches(checkpoint))


def damped_solve(
    store: SketchStore, checkpoint: int, weights: np.ndarray, towards: np.ndarray, damping: float
) -> np.ndarray:
    """(k, g) float32: (Σ_i w_i φ_i φ_iᵀ + λI)⁻¹ towardsᵀ over the rows φ_i, λ = damping · (1/n) Σ_i w_i ‖φ_i‖².

    λ is so the mean diagonal entry of the n × n matrix of inner products, whatever k. One pass, one shard in memory
    beside the k × k matrix, in float64; then k³/3 multiplications.

    Args:
        store: the rows, (n, k).
        checkpoint: where.
        weights: (n,), none negative.
        towards: (g, k).
        damping: relative to the rows' mean squared length; positive.

    Raises:
        InputError: a damping that is not positive, or so small that the matrix is singular to rounding.
    """
    check_damping(damping)
    roots = np.sqrt(weights.astype(np.float64))
    # The upper triangle alone, summed in place.
    moment = np.zeros((store.spec.dim, store.spec.dim), order="F")
    for rows, sketches in store.shards(checkpoint):
        moment = dsyrk(1.0, (roots[rows, None] * sketches).T, beta=1.0, c=moment, overwrite_c=True)
    scale = np.trace(moment) / len(store) or 1.0  # where all rows are zero, so are the scores
    moment[np.diag_indices_from(moment)] += damping * scale
    try:
        factor = cho_factor(moment, overwrite_a=True)
    except LinAlgError:
        raise InputError(f"damping {damping} leaves the curvature singular; give a larger one") from None
    return cho_solve(factor, towards.T.astype(np.float64)).astype(np.float32)


def check_damping(damping: float) -> None:
    """Raises `InputError` unless it is positive and finite."""
    if not 0 < damping < np.inf:
        raise InputError(f"damping {damping} gives no curvature to divide by; give a positive number")


def along(store: SketchStore, checkpoint: int, factors: np.ndarray, towards: np.ndarray) -> Blocks:
    """(n, g): factors_i · ⟨φ_i, towards_j⟩ of the rows φ_i, ``factors`` (n,), ``towards`` (k, g)."""
    return Blocks(
        lambda: (factors[rows, None] * (sketches @ towards) for rows, sketches in store.shards(checkpoint))
    )
