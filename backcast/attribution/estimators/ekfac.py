"""Influence functions with Kronecker-factored curvature."""

from __future__ import annotations

import numpy as np
import torch

from backcast.attribution.curvature import InnerProducts, at_rest, chunks, fit, mean_gradients, refine
from backcast.attribution.estimators.solve import check_damping
from backcast.attribution.problem import Problem
from backcast.data import Examples
from backcast.errors import InputError


def ekfac(
    problem: Problem,
    damping: float | None = None,
    iterations: int = 0,
    fisher: str = "empirical",
    rows: int | None = None,
    seed: int = 0,
    batch_size: int = 32,
) -> np.ndarray:
    """score(x, z) = ∇ℓ(z)ᵀ (F + λI)⁻¹ ∇ℓ(x) with F the EK-FAC matrix of the tracked weight matrices.

    Three passes over the training examples: for the factors, for the eigenvalues, for the scores. Biases, norms and
    embeddings are not covered.

    Args:
        damping: λ of every layer; unless given, a tenth of the layer's mean eigenvalue.
        iterations: of conjugate gradients towards (H + λI)⁻¹ ∇ℓ(z), with H the Hessian of the mean training loss by
            all covered weights together; the EK-FAC solve is their preconditioner. λ is raised fourfold as often as
            H + λI is found not to be positive definite. A product costs about g gradients of each example.
        fisher: "empirical", from the losses' own gradients, or "true", with labels drawn from the model's
            predictions, where the task has ``sampled(model, batch, generator)``.
        rows: of how many training examples, drawn by ``seed``, the curvature is taken; of all unless given.
        seed: of that draw and of the labels.
        batch_size: examples in a forward, as for `backcast.collect`.

    Raises:
        InputError: parameters out of range, a task that cannot draw labels, or one that tracks no matrix.

    Sources: George et al. 2018, Fast approximate natural gradient descent in a Kronecker-factored eigenbasis; Grosse et
    al. 2023, Studying large language model generalization with influence functions, section 2.2; for the refinement,
    Martens 2010, Deep learning via Hessian-free optimization.
    """
    if damping is not None:
        check_damping(damping)
    if iterations < 0:
        raise InputError(f"iterations {iterations} must be zero or more")
    model, task = problem.trained
    train, target = problem.examples
    seen = sample(train, rows, seed)
    with at_rest(model, task, batch_size) as passes:
        curvature = fit(passes, seen, fisher, seed)
        dampings = curvature.dampings(damping)
        scores = []
        for member in chunks(problem.member, curvature.size * (5 if iterations else 1)):
            wanted = mean_gradients(passes, target, member)
            if iterations:
                solved = refine(passes, seen, curvature, wanted, dampings, iterations)
            else:
                solved = curvature.solve(wanted, dampings)
            scores.append(passes.run(InnerProducts(solved), train, "scores"))
    return torch.cat(scores, 1).cpu().numpy()


def sample(examples: Examples, rows: int | None, seed: int) -> Examples:
    """``rows`` of the examples, without replacement, in their order; all of them where there are no more."""
    if rows is None or rows >= len(examples):
        return examples
    if rows < 1:
        raise InputError(f"rows {rows} must be at least 1")
    return examples[np.sort(np.random.default_rng(seed).choice(len(examples), rows, replace=False))]
