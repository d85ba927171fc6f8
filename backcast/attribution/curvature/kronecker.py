"""A layer's curvature as a Kronecker-factored eigenbasis and eigenvalues that are measured in it (EK-FAC).

For a weight with gradients G_b = D_bᵀ X_b (O, I) of example b, the Fisher matrix F = E[vec(G_b) vec(G_b)ᵀ] is
approximated by

    F ≈ (U_S ⊗ U_A) diag(Λ) (U_S ⊗ U_A)ᵀ,   Λ = E[(U_Sᵀ G_b U_A)²] elementwise,

with U_A the eigenvectors of A = E[x xᵀ] and U_S those of S = E[d dᵀ] over all examples' positions: K-FAC's basis
(Martens & Grosse 2015, arXiv 1503.05671) with the eigenvalues that are best for it (George et al. 2018, arXiv
1806.03884; for influence, Grosse et al. 2023, arXiv 2308.03296). Layers are held independent of each other.

All positions count alike in A and S but padding, which a batch's ``attention_mask`` (B, T) tells of layers with as many
positions: the conventions of kronfluence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from backcast.attribution.curvature.passes import Matrices, MatrixOperators, Passes
from backcast.data import Examples
from backcast.errors import InputError
from backcast.kernels import LayerSketch
from backcast.kernels.layer import MAX_GRADIENTS, gradients
from backcast.kernels.precision import wide, wide_dtype
from backcast.tasks import Batch

#: The damping that is taken where none is given, of a layer's mean eigenvalue.
DAMPING = 0.1


@dataclass(frozen=True)
class Basis:
    """A layer's eigenvectors, as columns: of S (O, O) and of A (I, I)."""

    outputs: Tensor
    inputs: Tensor

    def enter(self, G: Tensor) -> Tensor:
        """U_Sᵀ G U_A of G (..., O, I)."""
        return self.outputs.mT @ (G @ self.inputs)

    def leave(self, G: Tensor) -> Tensor:
        """U_S G U_Aᵀ of G (..., O, I)."""
        return self.outputs @ (G @ self.inputs.mT)


@dataclass(frozen=True)
class LayerCurvature:
    """A layer's part of the Fisher matrix: its basis, and its eigenvalues Λ (O, I)."""

    basis: Basis
    eigenvalues: Tensor

    def apply(self, values: Tensor, G: Tensor) -> Tensor:
        """The matrix with this basis and the eigenvalues ``values`` (O, I), times G (..., O, I)."""
        return self.basis.leave(self.basis.enter(G) * values)


@dataclass(frozen=True)
class Curvature:
    """The Fisher matrix F of all matrices, by layer."""

    layers: Mapping[str, LayerCurvature]

    @property
    def size(self) -> int:
        """Numbers in a vector that F multiplies."""
        return sum(layer.eigenvalues.numel() for layer in self.layers.values())

    def apply(self, function: Callable[[Tensor], Tensor], vectors: Matrices) -> Matrices:
        """f(F) v for each of the g vectors, of a function of eigenvalues."""
        return {
            name: layer.apply(function(layer.eigenvalues), vectors[name])
            for name, layer in self.layers.items()
        }

    def dampings(self, given: float | None) -> dict[str, float]:
        """λ of each layer: as given, or a tenth of its mean eigenvalue."""
        if given is not None:
            return dict.fromkeys(self.layers, given)
        return {name: DAMPING * float(layer.eigenvalues.mean()) for name, layer in self.layers.items()}

    def solve(self, vectors: Matrices, dampings: Mapping[str, float]) -> Matrices:
        """(F + λI)⁻¹ v for each of the g vectors; zero in a layer that has neither F nor λ."""
        inverses = {
            name: (1 / (layer.eigenvalues + dampings[name])).nan_to_num(posinf=0)
            for name, layer in self.layers.items()
        }
        return {name: layer.apply(inverses[name], vectors[name]) for name, layer in self.layers.items()}


class Covariances(MatrixOperators["LayerCovariances"]):
    """Gathers A and S of every layer, up to their scale, on which eigenvectors do not depend."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def make(self, name: str, outputs: int, inputs: int, device: torch.device) -> LayerCovariances:
        S, A = (torch.zeros(side, side, device=device, dtype=self.dtype) for side in (outputs, inputs))
        return LayerCovariances(S, A)

    def begin(self, places: Sequence[int], batch: Batch) -> None:
        mask = batch.get("attention_mask")
        for layer in self.layers.values():
            layer.mask = None if mask is None or mask.all() else mask.bool()

    def bases(self) -> dict[str, Basis]:
        """Their eigenvectors, taken in float64; raises `InputError` where they are not finite."""
        for name, layer in self.layers.items():
            if not (layer.S.isfinite().all() and layer.A.isfinite().all()):
                raise InputError(
                    f"layer {name}: its inputs or gradients are not finite; look for a loss that overflows"
                )
        return {name: Basis(_vectors(layer.S), _vectors(layer.A)) for name, layer in self.layers.items()}


class LayerCovariances(LayerSketch):
    mask: Tensor | None = None

    def __init__(self, S: Tensor, A: Tensor) -> None:
        self.S, self.A = S, A

    def keep(self, X: Tensor) -> Tensor:
        return X.detach()

    def sketch(self, kept: Tensor, D: Tensor) -> Tensor:
        masked = self.mask is not None and self.mask.shape == kept.shape[:2]
        x, d = wide(kept[self.mask] if masked else kept.flatten(0, 1)), wide(D).flatten(0, 1)
        self.A.addmm_(x.T, x)
        self.S.addmm_(d.T, d)
        return d.new_zeros(len(D), 1)


def _vectors(matrix: Tensor) -> Tensor:
    return torch.linalg.eigh(matrix.double()).eigenvectors.to(matrix.dtype)


class Corrections(MatrixOperators["LayerCorrection"]):
    """Gathers Λ in given bases."""

    def __init__(self, bases: Mapping[str, Basis]) -> None:
        super().__init__()
        self.bases = bases
        self.examples = 0

    def make(self, name: str, outputs: int, inputs: int, device: torch.device) -> LayerCorrection:
        return LayerCorrection(self.bases[name])

    def begin(self, places: Sequence[int], batch: Batch) -> None:
        self.examples += len(places)

    def end(self) -> None:
        for layer in self.layers.values():
            layer.settle()

    def curvature(self) -> Curvature:
        return Curvature(
            {
                name: LayerCurvature(layer.basis, layer.total / self.examples)
                for name, layer in self.layers.items()
            }
        )


class LayerCorrection(LayerSketch):
    """Adds the square of each example's rotated gradient once all uses of the layer in a batch are known."""

    def __init__(self, basis: Basis) -> None:
        self.basis = basis
        self.total = basis.inputs.new_zeros(len(basis.outputs), len(basis.inputs))
        self.uses = 0
        self.waiting: list[tuple[Tensor, Tensor]] = []

    def keep(self, X: Tensor) -> Tensor:
        self.uses += 1
        return X.detach()

    def sketch(self, kept: Tensor, D: Tensor) -> Tensor:
        self.waiting.append((kept, D))
        if self.uses == 1:
            self.settle()
        return D.new_zeros(len(D), 1, dtype=wide_dtype(D))

    def settle(self) -> None:
        if self.waiting:
            X, D = (
                torch.cat(rows, 1) if len(rows) > 1 else rows[0] for rows in zip(*self.waiting, strict=True)
            )
            self._add(wide(X), wide(D))
        self.uses = 0
        self.waiting.clear()

    def _add(self, X: Tensor, D: Tensor) -> None:
        """X (B, T, I) and D (B, T, O): rows are rotated, or gradients, whichever is less work."""
        U_S, U_A = self.basis.outputs, self.basis.inputs
        outputs, inputs, T = len(U_S), len(U_A), X.shape[1]
        by_rows = T * (outputs**2 + inputs**2) <= outputs * inputs * (outputs + inputs)
        if by_rows:
            X, D = X @ U_A, D @ U_S
        if T == 1:  # the square of an outer product is the outer product of the squares
            self.total.addmm_(D[:, 0].square().T, X[:, 0].square())
            return
        at_once = max(1, MAX_GRADIENTS // self.total.numel())
        for x, d in zip(X.split(at_once), D.split(at_once), strict=True):
            G = gradients(x, d)
            self.total += (G if by_rows else self.basis.enter(G)).square_().sum(0)


def fit(passes: Passes, examples: Examples, fisher: str, seed: int) -> Curvature:
    """The curvature in two passes over the examples.

    Args:
        passes: the model.
        examples: what the means are over.
        fisher: "empirical", of the losses' own gradients, or "true", of labels drawn from the model's predictions.
        seed: of the labels.
    """
    covariances = Covariances(passes.dtype)
    passes.run(covariances, examples, "factors", labels(passes, fisher, seed))
    corrections = Corrections(covariances.bases())
    passes.run(corrections, examples, "eigenvalues", labels(passes, fisher, seed))
    return corrections.curvature()


def labels(passes: Passes, fisher: str, seed: int) -> torch.Generator | None:
    """What draws the labels, on the model's device; None for the empirical Fisher matrix."""
    if fisher not in ("empirical", "true"):
        raise InputError(f"fisher {fisher!r} does not exist; choose empirical or true")
    device = next(passes.model.parameters()).device
    return torch.Generator(device).manual_seed(seed) if fisher == "true" else None
