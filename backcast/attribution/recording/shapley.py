"""In-run data Shapley: what each example of a step's batch does to the targets' loss in that very step.

A step on the batch B moves θ by Σ_{i∈B} Δ_i with Δ_i = −a ⊙ c s_i ∇ℓ_i: s_i is the micro-batch's scale, c the factor of
gradient clipping, a the optimizer's gain, η for SGD. Take as the value of a subset S ⊆ B how much a target's loss L
falls when only S moves θ; to second order in the move

    v(S) = L(θ) − L(θ + Σ_{i∈S} Δ_i) ≈ − Σ_{i∈S} ⟨∇L, Δ_i⟩ − ½ Σ_{i,j∈S} ⟨Δ_i, H Δ_j⟩,

a game whose Shapley values are, with H = ∇²L,

    φ_i = − ⟨∇L, Δ_i⟩ − ½ ⟨Δ_i, H Σ_{j∈B} Δ_j⟩.

Both terms are inner products of example i's gradient with a direction that is common to all examples, a ⊙ ∇L and
a ⊙ H (a ⊙ G), G being the gradient that the optimizer is given. They are taken layer by layer from what the training
backward meets, ⟨D_bᵀ X_b, U⟩ = Σ_t D_btᵀ U X_bt, and no example's gradient is formed. (Wang et al. 2024, Data Shapley
in one training run, arXiv 2406.11011, section 4; there the value is the rise of the loss, here its fall.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backcast.attribution.collect import evaluation_mode
from backcast.attribution.gradients.capture import tracked_parts
from backcast.attribution.gradients.parts import Conv1DPart
from backcast.attribution.recording.watch import Watch
from backcast.data import Examples
from backcast.errors import InputError
from backcast.kernels import LayerSketch
from backcast.kernels.precision import no_autocast, wide
from backcast.tasks import Batch, Task, on_device
from backcast.tasks.twice import twice_differentiable

#: Targets in a forward.
TARGETS = 32

Product = Callable[[], Tensor]


class InnerProducts:
    """`Operators` of ⟨G_b, U_j⟩ for g directions U_j, which may change from backward to backward.

    Args:
        modules: those tracked, by name.
        again: whether what the backwards meet is kept in ``met``, for directions that are known only later.
    """

    def __init__(self, modules: Mapping[str, nn.Module], again: bool) -> None:
        parts = [part for found in tracked_parts(modules, biases=True).values() for part in found]
        self.parameters = {part.name: part.parameters for part in parts}
        self._transposed = {part.name for part in parts if isinstance(part, Conv1DPart)}
        self._again = again
        #: parameter → (g, ...) of its shape.
        self.directions: dict[Tensor, Tensor] = {}
        #: (B, g) each: the products with the directions of the time of calling.
        self.met: list[Product] = []

    def matrix(self, name: str, outputs: int, inputs: int, device: torch.device) -> LayerSketch:
        return _MatrixProduct(self, name, (outputs, inputs))

    def table(self, name: str, rows: int, width: int, device: torch.device) -> LayerSketch:
        return _TableProduct(self, name, (rows, width))

    def vector(self, name: str, device: torch.device) -> Callable[[Tensor], Tensor]:
        return lambda gradients: self.meet(lambda: gradients @ self.direction(name).to(gradients.dtype).T)

    def direction(self, name: str) -> Tensor:
        """(g, n) flat, laid out as the gradient."""
        own = [self.directions[p] for p in self.parameters[name]]
        return torch.cat([(u.mT if name in self._transposed else u).flatten(1) for u in own], 1)

    def meet(self, product: Product) -> Tensor:
        if self._again:
            self.met.append(product)
        return product()


class _MatrixProduct(LayerSketch):
    """Σ_t D_btᵀ U X_bt"""

    def __init__(self, owner: InnerProducts, name: str, shape: tuple[int, int]) -> None:
        self.owner, self.name, self.shape = owner, name, shape

    def keep(self, X: Tensor) -> Tensor:
        return X.detach()

    def sketch(self, kept: Tensor, D: Tensor) -> Tensor:
        return self.owner.meet(partial(self._product, kept, D))

    def _product(self, X: Tensor, D: Tensor) -> Tensor:
        U = self.owner.direction(self.name).view(-1, *self.shape)
        with no_autocast(X):
            return torch.stack([((wide(D) @ u) * X).sum((1, 2)) for u in U.to(wide(D).dtype)], 1)


class _TableProduct(_MatrixProduct):
    """The same with one-hot X, which pick the rows of U."""

    def _product(self, X: Tensor, D: Tensor) -> Tensor:
        U = self.owner.direction(self.name).view(-1, *self.shape)
        return torch.stack([(F.embedding(X, u) * wide(D)).sum((1, 2)) for u in wide(U)], 1)


class InRunShapley(Watch):
    """φ_i of every use of an example for g targets, the two orders' terms side by side: (B, order·g).

    The gain a is η for SGD, and the values are exact to the Taylor order. With momentum μ it is
    η (1 − dampening)/(1 − μ), what a gradient moves in all; for Adam η/(√v̂ + ε) with the second moments as they stand
    before the step, so that the first step, which has none, counts for nothing.

    Args:
        model: every trained parameter must lie in a module that can be tracked.
        optimizer: of the model's parameters.
        task: the targets' loss is its `loss`, in evaluation mode.
        targets: the g groups' examples; a group's loss is the mean of theirs.
        order: 1 or 2.
        clipped: whether the gradients are scaled down before the step.
        series: where the values go.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        task: Task,
        targets: Sequence[Examples],
        order: int,
        clipped: bool,
        series: Path,
    ) -> None:
        modules = {
            name: module
            for name, module in model.named_modules()
            if any(p.requires_grad for p in module.parameters(recurse=False))
        }
        self.model, self.optimizer, self.task = model, optimizer, task
        self.targets, self.order = targets, order
        self.inner = InnerProducts(modules, again=order == 2)
        super().__init__(model, modules, self.inner, True, series)
        self.parameters = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
        covered = {p for own in self.inner.parameters.values() for p in own}
        names = {p: name for name, p in model.named_parameters()}
        if left := [names[p] for p in self.parameters if p not in covered]:
            raise InputError(
                f"{left[0]}: its per-example gradients cannot be had, so values would not be exact; "
                "freeze it, or record without target="
            )
        self._still = covered - set(self.parameters)
        self._norms: dict[Tensor, Tensor] = {}  # of the gradients before they are clipped
        self._handles = [p.register_post_accumulate_grad_hook(self._note) for p in self.parameters if clipped]

    def begin_step(self) -> None:
        super().begin_step()
        self._met: list[list[Product]] = []
        self._rates = self._present_rates()
        self._gains = dict(self._each_gain())
        self._aim([self._gradients(group) for group in self.targets])

    def expect(self, examples: int) -> None:
        super().expect(examples)
        self.inner.met = []

    def take(self, scale: float) -> None:
        super().take(scale)
        self._met.append(self.inner.met)

    def end_step(self, step: int, rows: Sequence[int]) -> None:
        if self._present_rates() != self._rates:
            raise InputError(
                f"step {step}: the learning rate changed between the forward and the step; set it before the forward"
            )
        clip = self._clip()
        terms = [torch.cat(self._taken) * clip]
        if self.order == 2:
            move = [
                self._gains[p] * (torch.zeros_like(p) if p.grad is None else p.grad) for p in self.parameters
            ]
            self._aim([self._gradients(group, along=move) for group in self.targets])
            products = torch.cat([torch.stack([product() for product in met]).sum(0) for met in self._met])
            terms.append(-0.5 * clip * products)
        self._taken = [torch.cat(terms, 1)]
        super().end_step(step, rows)

    def close(self) -> None:
        super().close()
        for handle in self._handles:
            handle.remove()

    def _aim(self, gradients: Sequence[Sequence[Tensor]]) -> None:
        """Directions a ⊙ u for the g groups' u; zeros for what the optimizer does not move."""
        each = zip(self.parameters, *gradients, strict=True)
        still = {p: torch.zeros_like(p).expand(len(gradients), *p.shape) for p in self._still}
        self.inner.directions = still | {p: self._gains[p] * torch.stack(own) for p, *own in each}

    def _gradients(self, group: Examples, along: Sequence[Tensor] | None = None) -> list[Tensor]:
        """∇L of a group's mean loss, or H v for ``along`` = v."""
        total = [torch.zeros_like(p) for p in self.parameters]
        with evaluation_mode(self.model), torch.enable_grad():
            self.task.prepare(self.model)
            for start in range(0, len(group), TARGETS):
                batch = self.task.collate(group[start : start + TARGETS])
                for sum_, part in zip(total, self._part(batch, len(group), along), strict=True):
                    sum_ += part
        return total

    def _part(self, batch: Batch, count: int, along: Sequence[Tensor] | None) -> Sequence[Tensor]:
        with twice_differentiable() if along else nullcontext():
            loss = self.task.loss(self.model, on_device(batch, self.model)).sum() / count
            gradients = torch.autograd.grad(
                loss, self.parameters, create_graph=along is not None, materialize_grads=True
            )
        if along is None:
            return gradients
        slope = torch.stack([(g * v).sum() for g, v in zip(gradients, along, strict=True)]).sum()
        return torch.autograd.grad(slope, self.parameters, materialize_grads=True)

    def _present_rates(self) -> list[float]:
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    def _each_gain(self) -> Iterator[tuple[Tensor, Tensor | float]]:
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            for p in group["params"]:
                if "betas" not in group:
                    yield p, rate * (1 - group["dampening"]) / (1 - group["momentum"])
                elif state := self.optimizer.state.get(p):
                    root = (state["exp_avg_sq"] / (1 - group["betas"][1] ** float(state["step"]))).sqrt()
                    yield p, rate / (root + group["eps"])
                else:
                    yield p, 0.0

    def _note(self, p: Tensor) -> None:
        assert p.grad is not None
        self._norms[p] = p.grad.norm()

    def _clip(self) -> float:
        """By what the gradients were scaled down since the backward."""
        if not self._norms:
            return 1.0
        before = torch.stack(list(self._norms.values())).norm()
        after = torch.stack([p.grad.norm() for p in self._norms if p.grad is not None]).norm()
        return float(after / before) if before > 0 else 1.0
