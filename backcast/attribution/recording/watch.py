"""What is taken of each example from the very backward that trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from backcast.attribution.collect import tracked
from backcast.attribution.gradients.attention import is_fused_attention
from backcast.attribution.gradients.capture import GradientCapture
from backcast.attribution.gradients.experts import is_fused_experts
from backcast.attribution.gradients.operators import Operators
from backcast.attribution.recording.series import Series
from backcast.errors import InputError
from backcast.kernels import SketchSpec
from backcast.tasks import Task


class Watch:
    """Numbers of each example from a training step's backwards, appended to a `Series`.

    The hooks are on the model between the call of `expect` and that of `take` only, so that an evaluation meets none.

    Args:
        model: in training, as it was written.
        modules: the modules whose gradients count, by name.
        operators: what is made of them.
        biases: whether those of linear layers and convolutions count.
        series: where the numbers go.

    Raises:
        InputError: a model whose per-example gradients cannot be had while it trains.
    """

    def __init__(
        self,
        model: nn.Module,
        modules: Mapping[str, nn.Module],
        operators: SketchSpec | Operators,
        biases: bool,
        series: Path,
    ) -> None:
        _check_open(model)
        self.capture = GradientCapture(model, modules, operators, biases, frozen=False)
        self.series = Series(series)
        self._mixing = {
            n: m for n, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)
        }
        self._taken: list[Tensor] = []

    def begin_step(self) -> None:
        """Before the step's first forward."""
        self._taken = []

    def expect(self, examples: int) -> None:
        """Before the forward of a micro-batch of B examples."""
        if mixing := [name for name, module in self._mixing.items() if module.training]:
            raise InputError(
                f"layer {mixing[0]}: batch norm in training mode mixes the batch's examples, so their gradients "
                "cannot be told apart; put it into evaluation mode, or record without spec= and target="
            )
        self.capture.expect(examples)
        self.capture.__enter__()

    def take(self, scale: float) -> None:
        """After the micro-batch's backward, in which the sum of the losses was multiplied by ``scale``."""
        self.capture.__exit__(None, None, None)
        self._taken.append(self.capture.take())

    def end_step(self, step: int, rows: Sequence[int]) -> None:
        """Before the optimizer's step on all the micro-batches' rows, their gradients being there."""
        self.series.append(step, rows, torch.cat(self._taken))

    def close(self) -> None:
        """Take the hooks away, and write what waits."""
        self.capture.__exit__(None, None, None)
        self.series.flush()


class Sketching(Watch):
    """Sketches of each example's own gradient ∇ℓ_r: the backward's is scale · ∇ℓ_r."""

    def __init__(self, model: nn.Module, task: Task, spec: SketchSpec, series: Path) -> None:
        super().__init__(model, tracked(model, task), spec, task.biases, series)

    @property
    def layers(self) -> dict[str, list[int]]:
        """The tracked layers by name, and their weights' shapes."""
        return {part.name: part.shape for parts in self.capture.parts.values() for part in parts}

    def take(self, scale: float) -> None:
        super().take(scale)
        self._taken[-1] /= scale


def _check_open(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if hasattr(module, "_orig_mod") or module._compiled_call_impl is not None:
            raise InputError(
                "a compiled model calls no hooks, so no gradients can be watched; train it uncompiled, or record "
                "without spec= and target="
            )
        if is_fused_attention(module) or is_fused_experts(module):
            raise InputError(
                f"layer {name}: the gradients of a fused {type(module).__name__} cannot be watched while it trains; "
                "record without spec= and target=, and collect from checkpoints"
            )
