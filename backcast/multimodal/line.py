"""The score of examples as a function of their contents: ⟨w, ∇_θ ℓ(contents)⟩ along one direction w."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from captum.attr import IntegratedGradients
from torch import Tensor, nn

from backcast.multimodal.task import Contents, MultimodalTask, take
from backcast.tasks import Batch
from backcast.tasks.twice import twice_differentiable

#: Half the distance, in weight space, between the two losses of the central difference.
EPSILON = 1e-3


class Line(ABC):
    """s(x) = ⟨w, ∇_θ ℓ(x)⟩ for the tracked weights θ, and its integrated gradients by x's contents.

    Args:
        model, task: whose loss ℓ is.
        weights: θ.
        w: of the same shapes.
    """

    def __init__(
        self, model: nn.Module, task: MultimodalTask, weights: Sequence[Tensor], w: Sequence[Tensor]
    ) -> None:
        self.model, self.task = model, task
        self.weights, self.w = list(weights), list(w)

    @abstractmethod
    def scores(self, batch: Batch, contents: Sequence[Contents]) -> list[Tensor]:
        """(B,) float64 for each of the contents that the batch's examples are given."""

    @abstractmethod
    def attributions(
        self, batch: Batch, own: Contents, baseline: Contents, steps: int, at_once: int
    ) -> dict[str, Tensor]:
        """Integrated gradients of s along the straight line from ``baseline`` to ``own``, shaped like these, float64.

        Source: Sundararajan et al. 2017, Axiomatic attribution for deep networks, equation 1; Captum's implementation.
        """

    def _integrated(
        self,
        scalar: Callable[[Batch, Contents], Tensor],
        batch: Batch,
        own: Contents,
        baseline: Contents,
        steps: int,
        at_once: int,
    ) -> dict[str, Tensor]:
        names = list(own)

        def function(*inputs: Tensor) -> Tensor:
            *contents, rows = inputs
            return scalar(take(batch, rows), dict(zip(names, contents, strict=True)))

        rows = torch.arange(len(own[names[0]]))
        found = IntegratedGradients(function).attribute(
            tuple(own[m] for m in names),
            tuple(baseline[m] for m in names),
            additional_forward_args=(rows,),
            n_steps=steps,
            internal_batch_size=max(at_once, len(rows)),
        )
        return {m: values.double() for m, values in zip(names, found, strict=True)}


class Difference(Line):
    """s as [ℓ(θ + εu) − ℓ(θ − εu)] ‖w‖ / 2ε with u = w/‖w‖: first derivatives only, so fast attention stays on.

    Integrated gradients are linear, so each of the two losses is integrated by itself.
    """

    def __init__(
        self, model: nn.Module, task: MultimodalTask, weights: Sequence[Tensor], w: Sequence[Tensor]
    ) -> None:
        super().__init__(model, task, weights, w)
        length = math.sqrt(sum(d.double().square().sum().item() for d in w))
        self.scale = length / (2 * EPSILON)
        self.step = [d * (EPSILON / max(length, 1e-30)) for d in w]

    @torch.no_grad()
    def scores(self, batch: Batch, contents: Sequence[Contents]) -> list[Tensor]:
        def losses() -> list[Tensor]:
            return [self.task.loss_at(self.model, batch, given).double() for given in contents]

        return self._difference(losses)

    def attributions(
        self, batch: Batch, own: Contents, baseline: Contents, steps: int, at_once: int
    ) -> dict[str, Tensor]:
        def loss(some: Batch, contents: Contents) -> Tensor:
            return self.task.loss_at(self.model, some, contents)

        def integrated() -> list[Tensor]:
            return list(self._integrated(loss, batch, own, baseline, steps, at_once).values())

        return dict(zip(own, self._difference(integrated), strict=True))

    def _difference(self, values: Callable[[], list[Tensor]]) -> list[Tensor]:
        """The derivative along w of ``values``, a function of the weights."""
        with self._shifted(1):
            above = values()
        with self._shifted(-1):
            below = values()
        return [(a - b) * self.scale for a, b in zip(above, below, strict=True)]

    @contextmanager
    def _shifted(self, sign: int) -> Iterator[None]:
        """The model at θ ± εu; its own weights again on leaving, bit for bit."""
        own = [weight.detach().clone() for weight in self.weights]
        try:
            with torch.no_grad():
                for weight, step in zip(self.weights, self.step, strict=True):
                    weight.add_(step, alpha=sign)
            yield
        finally:
            with torch.no_grad():
                for weight, value in zip(self.weights, own, strict=True):
                    weight.copy_(value)


class Exact(Line):
    """s and its gradients by a backward pass through the backward pass: slow, and what `Difference` is checked by.

    With a weight v_b = 1 for each example, h = ⟨w, ∇_θ Σ_b v_b ℓ_b⟩ = Σ_b v_b s_b, so that ∂h/∂v_b = s_b, and
    ∂h/∂e_b = ∂s_b/∂e_b. All of it is second order and reverse mode: of PyTorch's layer norm neither a third derivative
    nor a mixture with forward mode is right.
    """

    def scores(self, batch: Batch, contents: Sequence[Contents]) -> list[Tensor]:
        found = []
        for given in contents:
            with self._twice() as sums:
                h, v = sums(batch, given)
                found.append(torch.autograd.grad(h, v)[0].double())
        return found

    def attributions(
        self, batch: Batch, own: Contents, baseline: Contents, steps: int, at_once: int
    ) -> dict[str, Tensor]:
        with self._twice() as sums:

            def shares(some: Batch, contents: Contents) -> Tensor:
                h, v = sums(some, contents)
                return (h / len(v)).expand(len(v))  # the gradient of their sum is all that is asked of them

            return self._integrated(shares, batch, own, baseline, steps, at_once)

    @contextmanager
    def _twice(self) -> Iterator[Callable[[Batch, Contents], tuple[Tensor, Tensor]]]:
        """(h, v) of contents."""

        def sums(batch: Batch, contents: Contents) -> tuple[Tensor, Tensor]:
            losses = self.task.loss_at(self.model, batch, contents)
            v = torch.ones_like(losses, requires_grad=True)
            gradients = torch.autograd.grad(
                (v * losses).sum(), self.weights, create_graph=True, allow_unused=True
            )
            pairs = zip(gradients, self.w, strict=True)
            return torch.stack([(g * w).sum() for g, w in pairs if g is not None]).sum(), v

        with torch.enable_grad(), twice_differentiable(), _requiring_grad(self.weights):
            yield sums


#: How s is computed, by name.
LINES: dict[str, type[Line]] = {"difference": Difference, "exact": Exact}


def gradient(
    model: nn.Module,
    task: MultimodalTask,
    weights: Sequence[Tensor],
    batches: Iterable[tuple[Batch, Tensor]],
) -> list[Tensor]:
    """Σ_b amounts_b ∇_θ ℓ_b over (batch, amounts (B,)), shaped like ``weights``."""
    total = [torch.zeros_like(weight) for weight in weights]
    with _requiring_grad(weights):
        for batch, amounts in batches:
            losses = task.loss(model, batch)
            gradients = torch.autograd.grad((losses * amounts.to(losses)).sum(), weights, allow_unused=True)
            for sums, g in zip(total, gradients, strict=True):
                if g is not None:
                    sums += g
    return total


@contextmanager
def _requiring_grad(weights: Sequence[Tensor]) -> Iterator[None]:
    before = [weight.requires_grad for weight in weights]
    for weight in weights:
        weight.requires_grad_(True)
    try:
        yield
    finally:
        for weight, flag in zip(weights, before, strict=True):
            weight.requires_grad_(flag)
