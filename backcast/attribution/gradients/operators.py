"""What is made of each parameter's per-example gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from backcast.kernels import LayerSketch, SketchSpec, sketcher
from backcast.kernels.embedding import EmbeddingSketch
from backcast.kernels.random import key
from backcast.kernels.sjlt import sjlt


class Operators(Protocol):
    """For each parameter by name, a linear map of its per-example gradients to k numbers, which are then added up."""

    def matrix(self, name: str, outputs: int, inputs: int, device: torch.device) -> LayerSketch:
        """Of a weight (outputs, inputs) that multiplies rows."""

    def table(self, name: str, rows: int, width: int, device: torch.device) -> LayerSketch:
        """Of an embedding's (rows, width), from the ids seen."""

    def vector(self, name: str, device: torch.device) -> Callable[[Tensor], Tensor]:
        """Of gradients (B, n) that are formed whole."""


@dataclass(frozen=True)
class SketchOperators:
    """Those of a sketch spec."""

    spec: SketchSpec

    def matrix(self, name: str, outputs: int, inputs: int, device: torch.device) -> LayerSketch:
        return sketcher(self.spec, name, outputs, inputs, device)

    def table(self, name: str, rows: int, width: int, device: torch.device) -> LayerSketch:
        return EmbeddingSketch(self.spec, name, rows, width, device)

    def vector(self, name: str, device: torch.device) -> Callable[[Tensor], Tensor]:
        """A count-sketch whatever the spec's kind: Kronecker signs need a matrix."""
        signs = key(self.spec, name, "vector")
        return lambda gradients: sjlt(gradients, self.spec.dim, signs)
