"""What a collection hook needs of a sketch: one linear layer's operator, in two halves."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from backcast.kernels.precision import no_autocast, wide
from backcast.kernels.random import key
from backcast.kernels.spec import SketchSpec

#: Numbers of whole per-example gradients that a flat kind holds at a time.
MAX_GRADIENTS = 2**26


class LayerSketch(ABC):
    """S_l for one linear layer with input X (B, T, I) and output gradient D (B, T, O).

    Example b's gradient is G_b = D_bᵀ X_b, of shape (O, I) as the layer's weight; the sketch is S_l
    vec(G_b). The first half runs in the forward hook, so that what waits for the backward may be smaller
    than X.
    """

    @abstractmethod
    def keep(self, X: Tensor) -> Tensor:
        """What the backward will need of the input X (B, T, I), of any float dtype; detached from its graph."""

    @abstractmethod
    def sketch(self, kept: Tensor, D: Tensor) -> Tensor:
        """(B, k) sketches, float32 (float64 for float64 inputs), from what `keep` gave and D (B, T, O)."""


class FlatSketch(LayerSketch):
    """A kind that takes each example's whole gradient, some examples at a time; it keeps X as it is."""

    kind: ClassVar[str]

    def __init__(
        self, spec: SketchSpec, layer_name: str, out_features: int, in_features: int, device: torch.device
    ) -> None:
        self.dim = spec.dim
        self.key = key(spec, layer_name, self.kind)
        self.at_once = max(1, MAX_GRADIENTS // (out_features * in_features))

    @abstractmethod
    def project(self, G: Tensor) -> Tensor:
        """(B, k) sketches of flat gradients G (B, O·I)."""

    def keep(self, X: Tensor) -> Tensor:
        return X.detach()

    def sketch(self, kept: Tensor, D: Tensor) -> Tensor:
        parts = zip(kept.split(self.at_once), D.split(self.at_once), strict=True)
        return torch.cat([self.project(gradients(X, D).flatten(1)) for X, D in parts])


def gradients(X: Tensor, D: Tensor) -> Tensor:
    """The per-example weight gradients D_bᵀ X_b (B, O, I) of X (B, T, I) and D (B, T, O)."""
    with no_autocast(X):
        return wide(D).mT @ wide(X)
