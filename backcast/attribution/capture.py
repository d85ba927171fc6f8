"""Hooks that turn a backward pass into one gradient sketch an example."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import TracebackType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backcast.errors import InputError
from backcast.kernels import LayerSketch, SketchSpec, sketcher


def _linear_input(module: nn.Module, x: Tensor) -> Tensor:
    return x.flatten(1, -2) if x.dim() > 2 else x.unsqueeze(1)


def _linear_output(module: nn.Module, d: Tensor) -> Tensor:
    return d.flatten(1, -2) if d.dim() > 2 else d.unsqueeze(1)


def _conv2d_input(module: nn.Conv2d, x: Tensor) -> Tensor:
    if isinstance(module.padding, str):
        x = F.pad(x, module._reversed_padding_repeated_twice)
    padding = 0 if isinstance(module.padding, str) else module.padding
    return F.unfold(x, module.kernel_size, module.dilation, padding, module.stride).mT


def _conv2d_output(module: nn.Module, d: Tensor) -> Tensor:
    return d.flatten(2).mT


#: module type → how its input becomes X (B, T, I) and its output's gradient D (B, T, O), with G_b = D_bᵀ X_b.
AS_LINEAR: dict[type[nn.Module], tuple[Callable, Callable]] = {
    nn.Linear: (_linear_input, _linear_output),
    nn.Conv2d: (_conv2d_input, _conv2d_output),
}


def trackable(module: nn.Module) -> bool:
    """Whether the per-example gradient of the module's weight can be formed from its input and output gradient."""
    if isinstance(module, nn.Conv2d):
        return module.groups == 1 and module.padding_mode == "zeros"
    return isinstance(module, nn.Linear)


class GradientCapture:
    """Sketches per-example gradients as a backward pass runs; a context manager around forward and backward.

    No weight gradient is computed: every parameter is frozen inside the context, and only gradients by activations
    flow. The uses of a module that is called several times add up, and so do those of modules with one weight.

    Args:
        model: the model that holds the modules.
        modules: the modules to track, by name; a module's name enters its sketch's random signs.
        spec: the sketch.
    """

    def __init__(self, model: nn.Module, modules: Mapping[str, nn.Module], spec: SketchSpec) -> None:
        self.model = model
        self.modules = modules
        self.spec = spec
        device = next(model.parameters()).device
        weights: dict[str, Tensor] = {name: m.weight for name, m in modules.items()}  # type: ignore[misc]
        first: dict[Tensor, str] = {}  # a shared weight has one operator, or its gradients would not add up
        self._sketchers = {
            name: sketcher(spec, first.setdefault(w, name), w.shape[0], w[0].numel(), device)
            for name, w in weights.items()
        }
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._frozen: list[nn.Parameter] = []
        self._sum: Tensor | None = None

    def __enter__(self) -> GradientCapture:
        self._frozen = [p for p in self.model.parameters() if p.requires_grad]
        for parameter in self._frozen:
            parameter.requires_grad_(False)
        self._handles = [
            module.register_forward_hook(partial(self._on_forward, name))
            for name, module in self.modules.items()
        ]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        for parameter in self._frozen:
            parameter.requires_grad_(True)

    def sketches(self, losses: Tensor) -> Tensor:
        """(B, k) float32 sketches of ∇ losses[b], from the forward that gave ``losses`` (B,).

        Raises `InputError` when no tracked module took part, or when one saw other rows than the B examples.
        """
        self._batch = len(losses)
        self._sum = None
        if losses.requires_grad:
            losses.sum().backward()
        if self._sum is None:
            raise InputError("the loss depends on none of the tracked modules; choose others in Task.modules")
        return self._sum

    def _on_forward(self, name: str, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return output  # a constant of the loss, such as a reference model's answer
        to_input, to_output = next(v for t, v in AS_LINEAR.items() if isinstance(module, t))
        layer = self._sketchers[name]
        kept = layer.keep(to_input(module, args[0].detach()))
        if not output.requires_grad:
            # The first tracked layer: gradients start to flow here. The copy lets later layers work in place on it.
            output = output.detach().requires_grad_().clone()
        version = kept._version
        output.register_hook(
            lambda gradient: self._add(name, layer, kept, version, to_output(module, gradient))
        )
        return output

    def _add(self, name: str, layer: LayerSketch, kept: Tensor, version: int, D: Tensor) -> None:
        if kept._version != version:  # where it is a view of the input, frozen weights leave that unguarded
            raise InputError(
                f"layer {name}: its input was overwritten in place before the backward; "
                "make that operation out of place, or sketch with kind kron"
            )
        if len(D) != self._batch:
            raise InputError(
                f"layer {name} sees {len(D)} rows for {self._batch} examples, so their gradients cannot be told "
                "apart; leave it out in Task.modules"
            )
        sketch = layer.sketch(kept, D.detach())
        self._sum = sketch if self._sum is None else self._sum + sketch
