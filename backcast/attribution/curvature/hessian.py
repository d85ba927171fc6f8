"""Solves with the loss's own second derivatives, which the factored curvature is an approximation of."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from backcast.attribution.curvature.kronecker import Curvature
from backcast.attribution.curvature.passes import Matrices, Passes
from backcast.attribution.gradients.parts import Conv1DPart, Part
from backcast.data import Examples
from backcast.progress import progress
from backcast.tasks.twice import twice_differentiable

log = logging.getLogger("backcast")


def hessian_products(passes: Passes, examples: Examples, vectors: Matrices) -> Matrices:
    """H v for each of g vectors, with H the second derivatives, by all matrices together, of the examples' mean loss.

    Double backward: about 2 + 2g gradients' cost.
    """
    parts = passes.parts
    weights = [part.parameters[0] for part in parts.values()]
    totals = {name: torch.zeros_like(V) for name, V in vectors.items()}
    g = len(next(iter(vectors.values())))
    directions = [[_like_weight(part, vectors[name][j]) for name, part in parts.items()] for j in range(g)]
    with _differentiable(passes.model, weights), twice_differentiable():
        for places in passes.batches(examples):
            loss = passes.task.loss(passes.model, passes.batch(examples[places])).sum() / len(examples)
            slopes = torch.autograd.grad(loss, weights, create_graph=True, materialize_grads=True)
            for j, direction in enumerate(directions):
                along = torch.stack([(slope * v).sum() for slope, v in zip(slopes, direction, strict=True)])
                bends = torch.autograd.grad(along.sum(), weights, retain_graph=True, materialize_grads=True)
                for (name, part), bend in zip(parts.items(), bends, strict=True):
                    totals[name][j] += _like_matrix(part, bend)
    return totals


@contextmanager
def _differentiable(model: nn.Module, weights: list[Tensor]) -> Iterator[None]:
    """The weights alone require gradients, until leaving."""
    required = {p: p.requires_grad for p in model.parameters()}
    for p in required:
        p.requires_grad_(any(p is w for w in weights))
    try:
        yield
    finally:
        for p, was in required.items():
            p.requires_grad_(was)


def _like_weight(part: Part, V: Tensor) -> Tensor:
    """An (O, I) matrix in the shape in which the module holds it."""
    return (V.T if isinstance(part, Conv1DPart) else V).reshape(part.shape)


def _like_matrix(part: Part, weight: Tensor) -> Tensor:
    return weight.T if isinstance(part, Conv1DPart) else weight.flatten(1)


def conjugate_gradients(
    product: Callable[[Tensor], Tensor],
    precondition: Callable[[Tensor], Tensor],
    wanted: Tensor,
    iterations: int,
) -> Tensor | None:
    """The g solutions x of A x = b after so many steps from zero, for b (g, N) and A symmetric.

    None where A is found not to be positive definite. What is solved to the last digit is left alone.

    Args:
        product: (g, N) → A times it.
        precondition: (g, N) → roughly A⁻¹ times it.
        wanted: b.
        iterations: products at most.
    """
    x, residual = torch.zeros_like(wanted), wanted
    step = precondition(residual)
    energy = first = (residual * step).sum(1)
    with progress("conjugate gradients", iterations) as done:
        for _ in range(iterations):
            going = energy > torch.finfo(wanted.dtype).eps ** 2 * first
            product_of_step = product(step)
            bend = (step * product_of_step).sum(1)
            if (going & (bend <= 0)).any():
                return None
            length = torch.where(going, energy / bend, 0)[:, None]
            x += length * step
            residual = residual - length * product_of_step
            new = precondition(residual)
            before, energy = energy, (residual * new).sum(1)
            step = new + torch.where(going, energy / before, 0)[:, None] * step
            done(1)
    return x


def refine(
    passes: Passes,
    examples: Examples,
    curvature: Curvature,
    vectors: Matrices,
    dampings: Mapping[str, float],
    iterations: int,
) -> Matrices:
    """(H + λI)⁻¹ v of the g vectors by conjugate gradients, preconditioned with (F + λI)⁻¹; λ is each layer's.

    Where H + λI is found not to be positive definite, the dampings are raised fourfold, until it is.
    """
    raised = 1

    def product(flat: Tensor) -> Tensor:
        v = _split(flat, vectors)
        Hv = hessian_products(passes, examples, v)
        return _flat({name: Hv[name] + raised * dampings[name] * v[name] for name in v})

    def precondition(flat: Tensor) -> Tensor:
        scaled = {name: raised * damping for name, damping in dampings.items()}
        return _flat(curvature.solve(_split(flat, vectors), scaled))

    while (solved := conjugate_gradients(product, precondition, _flat(vectors), iterations)) is None:
        raised *= 4
        log.warning(f"the loss is not convex here: damping is raised {raised}-fold")
    return _split(solved, vectors)


def _flat(vectors: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([V.flatten(1) for V in vectors.values()], 1)


def _split(flat: Tensor, like: Mapping[str, Tensor]) -> Matrices:
    parts = flat.split([V[0].numel() for V in like.values()], 1)
    return {name: part.view_as(V) for part, (name, V) in zip(parts, like.items(), strict=True)}
