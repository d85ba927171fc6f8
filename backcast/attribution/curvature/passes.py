"""Passes over examples through a model at rest, with an operator for each of its matrices."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from backcast.attribution.collect import batches_of, evaluation_mode, tracked, uncompiled
from backcast.attribution.gradients import GradientCapture, opened, tracked_parts
from backcast.attribution.gradients.parts import LinearPart, Part
from backcast.data import Examples
from backcast.errors import InputError
from backcast.kernels import LayerSketch
from backcast.kernels.precision import wide_dtype
from backcast.progress import progress
from backcast.tasks import Batch, Task, on_device

log = logging.getLogger("backcast")

L = TypeVar("L", bound=LayerSketch)

#: For each matrix by its layer's name, g matrices like it: (g, O, I).
Matrices = dict[str, Tensor]


class MatrixOperators(ABC, Generic[L]):
    """Operators of matrices alone; the layers with one weight share one, as their gradients add up."""

    def __init__(self) -> None:
        self.layers: dict[str, L] = {}

    @abstractmethod
    def make(self, name: str, outputs: int, inputs: int, device: torch.device) -> L:
        """The operator of a weight (outputs, inputs)."""

    def matrix(self, name: str, outputs: int, inputs: int, device: torch.device) -> L:
        if name not in self.layers:
            self.layers[name] = self.make(name, outputs, inputs, device)
        return self.layers[name]

    def table(self, name: str, rows: int, width: int, device: torch.device) -> LayerSketch:
        raise NotImplementedError  # no tables among `matrices`

    def vector(self, name: str, device: torch.device) -> Callable[[Tensor], Tensor]:
        raise NotImplementedError  # nor vectors

    def begin(self, places: Sequence[int], batch: Batch) -> None:
        """Told before a batch's forward, with the places of its examples in what is passed over."""
        return

    def end(self) -> None:
        """Told after its backward."""
        return


@dataclass(frozen=True)
class Passes:
    """A model at rest and its matrices; see `at_rest`.

    Attributes:
        model: the model, its fused modules opened.
        task: what an example's loss is.
        modules: the modules whose weights are the matrices.
        batch_size: examples in a forward, as for `backcast.collect`.
    """

    model: nn.Module
    task: Task
    modules: Mapping[str, nn.Module]
    batch_size: int

    @property
    def parts(self) -> dict[str, Part]:
        """Each matrix once, by the name of the first layer that has it."""
        first: dict[Tensor, tuple[str, Part]] = {}
        for name, (part,) in tracked_parts(self.modules).items():
            first.setdefault(part.parameters[0], (name, part))
        return dict(first.values())

    @property
    def dtype(self) -> torch.dtype:
        """What sums over gradients are kept in: float32, or float64 for a model in it."""
        return wide_dtype(*self.model.parameters())

    def run(
        self,
        operators: MatrixOperators,
        examples: Examples,
        description: str,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """(n, k): what the operators make of the n examples' gradients.

        Args:
            operators: of each matrix; those that only gather give (B, 1) zeros.
            examples: what to pass over, once.
            description: for the progress bar.
            generator: draws labels from the model's predictions in the examples' place.
        """
        rows: list[Tensor] = []
        packs = self.batches(examples)
        with (
            GradientCapture(self.model, self.modules, operators) as capture,
            progress(description, len(examples)) as done,
        ):
            for places in packs:
                batch = self.batch(examples[places])
                if generator is not None:
                    with torch.no_grad():
                        batch = self.task.sampled(self.model, batch, generator)
                operators.begin(places, batch)
                rows.append(capture.sketches(self.task.loss(self.model, batch)))
                operators.end()
                done(len(places))
        order = torch.tensor([place for places in packs for place in places], device=rows[0].device)
        return torch.cat(rows)[order.argsort()]

    def batches(self, examples: Examples) -> list[list[int]]:
        """The places of the examples of each batch."""
        return batches_of(self.model, self.task, examples, self.batch_size)

    def batch(self, examples: Examples) -> Batch:
        """One batch, on the model's device."""
        return on_device(self.task.collate(examples), self.model)


@contextmanager
def at_rest(model: nn.Module, task: Task, batch_size: int = 32) -> Iterator[Passes]:
    """The model in evaluation mode, as it was on leaving, with what its task holds constant computed.

    Raises `InputError` where the task tracks no matrix.
    """
    model = getattr(model, "_orig_mod", model)  # what torch.compile wraps: hooks need the modules as written
    with evaluation_mode(model), uncompiled(model), opened(model):
        task.prepare(model)
        yield Passes(model, task, matrices(model, task), batch_size)


def matrices(model: nn.Module, task: Task) -> dict[str, nn.Module]:
    """The task's modules whose weights multiply rows: Linear, GPT-2's Conv1D, Conv2d, experts.

    Their biases, vectors and tables are not among them; a weight that is a table's too is left out with it.

    Raises:
        InputError: there is none.
    """
    modules = tracked(model, task)
    parts = tracked_parts(modules)
    others = {
        id(p)
        for found in parts.values()
        for q in found
        if not isinstance(q, LinearPart)
        for p in q.parameters
    }
    chosen = {
        name: modules[name]
        for name, (part, *_) in parts.items()
        if isinstance(part, LinearPart) and id(part.parameters[0]) not in others
    }
    if not chosen:
        raise InputError(
            f"{type(task).__name__} tracks no weight matrix, which curvature needs; name Linear or Conv2d layers "
            "in Task.modules"
        )
    if left := parts.keys() - chosen.keys():
        log.info(f"curvature is of matrices: {len(left)} other modules are left out ({min(left)} for one)")
    return chosen
