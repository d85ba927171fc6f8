"""Mean gradients of groups, whole, and the inner products of examples' gradients with given vectors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from backcast.attribution.curvature.passes import Matrices, MatrixOperators, Passes
from backcast.data import Examples
from backcast.kernels import LayerSketch
from backcast.kernels.layer import MAX_GRADIENTS, gradients
from backcast.kernels.precision import wide
from backcast.tasks import Batch

#: Numbers of the groups' gradients in memory at a time; more of them take more passes.
MEMORY = 2**28


def chunks(member: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Rows of ``member`` (g, m), as many at a time as vectors of ``size`` numbers fit in `MEMORY`."""
    at_once = max(1, MEMORY // size)
    for start in range(0, len(member), at_once):
        yield member[start : start + at_once]


def mean_gradients(passes: Passes, examples: Examples, member: np.ndarray) -> Matrices:
    """The gradients of the means over g groups of m examples.

    Args:
        passes: the model.
        examples: m examples.
        member: (g, m), each column with at most one entry that is not zero: `Problem.member`, or some of its rows.
    """
    inside = np.flatnonzero(member.any(0))
    group, weight = member[:, inside].argmax(0), member[:, inside].max(0)
    operators = GroupSums(len(member), torch.as_tensor(group), torch.as_tensor(weight).to(passes.dtype))
    passes.run(operators, examples[inside.tolist()], "target gradients")
    return {name: layer.total for name, layer in operators.layers.items()}


class GroupSums(MatrixOperators["LayerGroupSums"]):
    """Gathers weighted sums of gradients; ``group`` and ``weight`` are each example's."""

    def __init__(self, groups: int, group: Tensor, weight: Tensor) -> None:
        super().__init__()
        self.groups, self.group, self.weight = groups, group, weight

    def make(self, name: str, outputs: int, inputs: int, device: torch.device) -> LayerGroupSums:
        shape = (self.groups, outputs, inputs)
        return LayerGroupSums(torch.zeros(shape, device=device, dtype=self.weight.dtype))

    def begin(self, places: Sequence[int], batch: Batch) -> None:
        for layer in self.layers.values():
            device = layer.total.device
            layer.group, layer.weight = self.group[places].to(device), self.weight[places].to(device)


class LayerGroupSums(LayerSketch):
    group: Tensor
    weight: Tensor

    def __init__(self, total: Tensor) -> None:
        self.total = total

    def keep(self, X: Tensor) -> Tensor:
        return X.detach()

    def sketch(self, kept: Tensor, D: Tensor) -> Tensor:
        D = wide(D) * self.weight[:, None, None]
        at_once = max(1, MAX_GRADIENTS // self.total[0].numel())
        for group, x, d in zip(*(v.split(at_once) for v in (self.group, kept, D)), strict=True):
            self.total.index_add_(0, group, gradients(x, d))
        return D.new_zeros(len(D), 1)


class InnerProducts(MatrixOperators["LayerInnerProducts"]):
    """(B, g) inner products of the examples' gradients with g vectors."""

    def __init__(self, vectors: Matrices) -> None:
        super().__init__()
        self.vectors = vectors

    def make(self, name: str, outputs: int, inputs: int, device: torch.device) -> LayerInnerProducts:
        return LayerInnerProducts(self.vectors[name])


class LayerInnerProducts(LayerSketch):
    """⟨D_bᵀ X_b, V_j⟩ = Σ_t d_tᵀ V_j x_t of V (g, O, I), held with its longer side last."""

    def __init__(self, V: Tensor) -> None:
        self.turned = V.shape[1] > V.shape[2]
        self.V = V.mT.contiguous() if self.turned else V

    def keep(self, X: Tensor) -> Tensor:
        return X.detach()

    def sketch(self, kept: Tensor, D: Tensor) -> Tensor:
        long, short = (wide(D), wide(kept)) if self.turned else (wide(kept), wide(D))
        (g, S, L), T = self.V.shape, long.shape[1]
        if T * g * S <= S * L:  # what lies between two products on rows is no larger than a gradient
            between = (long @ self.V.flatten(0, 1).T).unflatten(2, (g, S))
            return (between * short[:, :, None]).sum((1, 3))
        at_once = max(1, MAX_GRADIENTS // (S * L))
        parts = zip(long.split(at_once), short.split(at_once), strict=True)
        return torch.cat([gradients(x, d).flatten(1) @ self.V.flatten(1).T for x, d in parts])
