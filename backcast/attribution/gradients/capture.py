"""Hooks that turn a backward pass into one gradient sketch an example."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from backcast.attribution.gradients.operators import Operators, SketchOperators
from backcast.attribution.gradients.parts import LinearPart, Part, parts_of
from backcast.errors import InputError
from backcast.kernels import SketchSpec
from backcast.tasks.owners import Owners, forget, owners_of

#: What makes autograd keep the tickets of layers whose inputs need no gradient.
_ANCHOR = torch.ones(0, requires_grad=True)


class GradientCapture:
    """Sketches per-example gradients as a backward pass runs; a context manager around forward and backward.

    For sketches alone no weight gradient is computed: every parameter is frozen inside the context, and only gradients
    by activations flow. In a training loop, whose backward computes both, nothing is frozen. The uses of a module that
    is called several times add up, and so do those of modules with one weight. Works under autocast and with gradient
    checkpointing.

    Args:
        model: the model that holds the modules.
        modules: the modules to track, by name; a module's name enters its sketch's random signs.
        operators: what is made of each gradient; a spec's sketches, or others.
        biases: whether the biases of linear layers and convolutions count.
        frozen: whether the parameters are frozen meanwhile.
    """

    def __init__(
        self,
        model: nn.Module,
        modules: Mapping[str, nn.Module],
        operators: SketchSpec | Operators,
        biases: bool = False,
        frozen: bool = True,
    ) -> None:
        self.model = model
        self.frozen = frozen
        if isinstance(operators, SketchSpec):
            operators = SketchOperators(operators)
        self.parts = tracked_parts(modules, biases)
        self._modules = {name: modules[name] for name in self.parts}
        device = next(model.parameters()).device
        first: dict[Tensor, str] = {}  # a shared weight has one operator, or its gradients would not add up
        for part in (part for parts in self.parts.values() for part in parts):
            part.name = first.setdefault(part.parameters[0], part.name)
            part.bind(operators, device)
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._frozen: list[nn.Parameter] = []
        self._sum: Tensor | None = None
        self._ran: dict[str, bool] = {}  # by a layer's name, whether it ran with gradients too
        self._differentiating = False

    def __enter__(self) -> GradientCapture:
        self._frozen = [p for p in self.model.parameters() if p.requires_grad and self.frozen]
        for parameter in self._frozen:
            parameter.requires_grad_(False)
        self._handles = [
            module.register_forward_hook(partial(self._on_forward, self.parts[name]), with_kwargs=True)
            for name, module in self._modules.items()
        ]
        forget(self._modules.values())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        for parameter in self._frozen:
            parameter.requires_grad_(True)

    def sketches(self, losses: Tensor, scale: float = 1.0) -> Tensor:
        """(B, k) float32 sketches of ∇ losses[b], from the forward that gave ``losses`` (B,).

        Args:
            losses: of the B examples.
            scale: the losses are multiplied by it for the backward, and the sketches divided: float16 gradients
                would else underflow. A power of two changes nothing else.

        Raises:
            InputError: no tracked module took part, or one saw other rows than the B examples.
        """
        self.expect(len(losses))
        if losses.requires_grad:
            (losses * scale).sum().backward()
        return self.take().div_(scale)

    def expect(self, examples: int) -> None:
        """The number B of examples in the backward that comes next, where it is not `sketches` that runs it."""
        self._batch = examples
        self._sum = None

    def take(self) -> Tensor:
        """(B, k) float32 sketches from the backward that has just run; raises as `sketches`."""
        constant = [name for name, with_gradients in self._ran.items() if not with_gradients]
        self._ran.clear()
        if constant:
            raise InputError(
                f"layer {constant[0]} only ran without gradients, as under reentrant checkpointing of an input that "
                "needs none; checkpoint with use_reentrant=False, or leave the layer out in Task.modules"
            )
        if self._sum is None and all(self._sees_nothing(module) for module in self._modules.values()):
            self._sum = self._zeros()
        forget(self._modules.values())
        if self._sum is None:
            raise InputError("the loss depends on none of the tracked modules; choose others in Task.modules")
        return self._sum

    def _sees_nothing(self, module: nn.Module) -> bool:
        """Whether the batch has no rows for a module, such as a vision tower's layer where no example has an image."""
        owners = owners_of(module)
        return owners is not None and len(owners) == 0 and owners.examples == self._batch

    def _zeros(self) -> Tensor | None:
        """(B, k) sketches of zero gradients."""
        matrices = (part for parts in self.parts.values() for part in parts if isinstance(part, LinearPart))
        part = next(matrices, None)
        if part is None:
            return None
        outputs, inputs = part.sizes()
        X, D = (part.parameters[0].new_zeros(self._batch, 1, size) for size in (inputs, outputs))
        return part.layer.sketch(part.layer.keep(X), D)

    def _on_forward(
        self,
        parts: list[Part],
        module: nn.Module,
        arguments: tuple[Any, ...],
        keywords: dict[str, Any],
        output: Any,
    ) -> Any:
        name = parts[0].name
        if self._differentiating:  # a part differentiates its module again: no use of it
            return output
        self._ran[name] = self._ran.get(name, False) or torch.is_grad_enabled()
        if not torch.is_grad_enabled():  # a constant of the loss, such as a reference model's answer
            return output
        if not isinstance(output, Tensor):
            raise InputError(
                f"layer {name}: a {type(module).__name__} of several outputs cannot be tracked; "
                "leave it out in Task.modules"
            )
        inputs = (*arguments, *keywords.values())
        tickets = [_Kept.apply(_ANCHOR, *part.keep(*inputs)) for part in parts]
        if not output.requires_grad:
            # The first tracked layer: gradients start to flow here. The copy lets later layers work in place on it.
            output = output.detach().requires_grad_().clone()
        output.register_hook(partial(self._on_backward, parts, tickets, owners_of(module)))
        return output

    def _on_backward(
        self, parts: list[Part], tickets: list[Tensor], owners: Owners | None, D: Tensor
    ) -> None:
        # All of it first: a checkpointed forward may run again for it.
        kept = [_kept(ticket, part.name) for part, ticket in zip(parts, tickets, strict=True)]
        self._differentiating = True
        try:
            for part, tensors in zip(parts, kept, strict=True):
                sketch = part.sketch(tensors, D.detach(), self._batch, owners)
                self._sum = sketch if self._sum is None else self._sum.add_(sketch)
        finally:
            self._differentiating = False


def tracked_parts(modules: Mapping[str, nn.Module], biases: bool = False) -> dict[str, list[Part]]:
    """The parts of each module that can be tracked."""
    tables = {id(m.weight) for m in modules.values() if isinstance(m, nn.Embedding)}
    matrices = {id(m.weight) for m in modules.values() if isinstance(m, nn.Linear)}
    parts = {
        name: parts_of(name, module, biases, tied=id(getattr(module, "weight", None)) in tables & matrices)
        for name, module in modules.items()
    }
    return {name: found for name, found in parts.items() if found}


class _Kept(torch.autograd.Function):
    """Saves tensors as autograd saves its own, so that gradient checkpointing drops and recomputes them, and one that
    was overwritten in place is noticed."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, *kept: Tensor) -> Tensor:
        ctx.save_for_backward(*kept)
        return anchor.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> None:
        raise NotImplementedError  # nothing is computed from a ticket


def _kept(ticket: Tensor, name: str) -> tuple[Tensor, ...]:
    try:
        return ticket.grad_fn.saved_tensors  # type: ignore[union-attr]
    except RuntimeError as error:
        if "modified by an inplace operation" not in str(error):
            raise
        raise InputError(
            f"layer {name}: its input was overwritten in place before the backward; "
            "make that operation out of place, or sketch with kind kron"
        ) from None
