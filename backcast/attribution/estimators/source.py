"""Differentiation through training, approximated by segments in each of which gradients and curvature stand still."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from backcast.attribution.checkpoints import Checkpoint
from backcast.attribution.collect import visiting
from backcast.attribution.curvature import (
    Corrections,
    Covariances,
    Curvature,
    InnerProducts,
    Passes,
    at_rest,
    chunks,
    labels,
    mean_gradients,
)
from backcast.attribution.problem import Problem
from backcast.errors import InputError
from backcast.kernels.precision import wide_dtype


@dataclass(frozen=True)
class Segment:
    """A stretch of the run: its checkpoints, and how far gradient flow goes in it, Σ_k η_k."""

    checkpoints: Sequence[Checkpoint]
    time: float

    def decay(self, eigenvalues: Tensor) -> Tensor:
        """exp(−ηK Λ): what is left at the segment's end of a change at its start."""
        return torch.exp(-self.time * eigenvalues)

    def response(self, eigenvalues: Tensor) -> Tensor:
        """(1 − exp(−ηK Λ)) / Λ: what a constant force has changed at the segment's end."""
        x = self.time * eigenvalues
        return self.time * torch.where(x > 0, -torch.expm1(-x) / x, 1)


def source(
    problem: Problem,
    steps: int | Sequence[int] | None = None,
    segments: int | None = None,
    fisher: str = "empirical",
    seed: int = 0,
    batch_size: int = 32,
) -> np.ndarray:
    """score(x, z) = 1/n Σ_l ∇ℓ(z; θ_T)ᵀ S_L ⋯ S_{l+1} r_l ḡ_l(x), over the segments l = 1, ..., L of the run.

    In segment l, of K steps of mean learning rate η, S_l = exp(−ηK F_l) and r_l = (1 − exp(−ηK F_l)) F_l⁻¹ with F_l the
    EK-FAC matrix, and ḡ_l(x) x's gradient, both means over the segment's checkpoints. That is −∂ℓ(z)/∂w_x of a weight
    w_x of x's loss in the mean over all examples, under SGD; biases, norms and embeddings are not covered. Three
    passes over the training examples a checkpoint.

    Args:
        steps: K: the optimizer's steps that a segment stands for; one number for all, or one for each.
        segments: L, which must divide the number of checkpoints; unless given, each checkpoint is a segment.
        fisher: as for `ekfac`; "true" is nearer to the Hessian, whose absolute size counts here.
        seed: of the labels drawn.
        batch_size: examples in a forward, as for `backcast.collect`.

    Raises:
        InputError: no checkpoints, steps or segments that do not fit them, or as `ekfac`.

    Source: Bae et al. 2024, Training data attribution via approximate unrolled differentiation, arXiv 2405.12186,
    section 3.
    """
    model, task = problem.trained
    train, target = problem.examples
    stretches = _segments(problem, steps, segments)

    @contextmanager
    def at(checkpoint: Checkpoint | None) -> Iterator[Passes]:
        with visiting(model, checkpoint), at_rest(model, task, batch_size) as passes:
            yield passes

    def over(segment: Segment, gather: Callable[[Passes], Tensor]) -> Tensor:
        """The mean over the segment's checkpoints."""
        total = torch.zeros(())
        for checkpoint in segment.checkpoints:
            with at(checkpoint) as passes:
                total = total + gather(passes)
        return total / len(segment.checkpoints)

    def fit(segment: Segment) -> Curvature:
        covariances = Covariances(wide_dtype(*model.parameters()))
        over(segment, lambda p: p.run(covariances, train, "factors", labels(p, fisher, seed)))
        corrections = Corrections(covariances.bases())
        over(segment, lambda p: p.run(corrections, train, "eigenvalues", labels(p, fisher, seed)))
        return corrections.curvature()

    curvatures = [fit(segment) for segment in stretches]
    columns = []
    for member in chunks(problem.member, curvatures[0].size):
        with at(None) as passes:
            wanted = mean_gradients(passes, target, member)
        scores = torch.zeros(())
        for segment, curvature in reversed(list(zip(stretches, curvatures, strict=True))):
            products = InnerProducts(curvature.apply(segment.response, wanted))
            scores = scores + over(segment, lambda p, to=products: p.run(to, train, "scores"))  # type: ignore[misc]
            wanted = curvature.apply(segment.decay, wanted)
        columns.append(scores)
    return (torch.cat(columns, 1) / len(train)).cpu().numpy()


def _segments(problem: Problem, steps: int | Sequence[int] | None, segments: int | None) -> list[Segment]:
    points = list(problem.checkpoints or [])
    count = len(points) if segments is None else segments
    if not points:
        raise InputError(f"method {problem.method!r} goes back over checkpoints: give checkpoints=")
    if count < 1 or len(points) % count:
        raise InputError(f"{len(points)} checkpoints do not make {count} equal segments; give a divisor")
    if steps is None:
        raise InputError("give steps=, the number of the optimizer's steps that each segment stands for")
    lengths = list(steps) if isinstance(steps, Iterable) else [steps] * count
    if len(lengths) != count or min(lengths) < 1:
        raise InputError(
            f"steps {steps} do not fit {count} segments; give one number above zero, or one for each"
        )
    size = len(points) // count
    return [
        Segment(part, float(np.mean([c.learning_rate for c in part])) * length)
        for part, length in zip(
            (points[i : i + size] for i in range(0, len(points), size)), lengths, strict=True
        )
    ]
