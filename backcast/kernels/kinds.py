"""The kinds of sketch by name, and the one way to make a layer's."""

from __future__ import annotations

from collections.abc import Callable

import torch

from backcast.errors import InputError
from backcast.kernels.dense import DenseSketch
from backcast.kernels.kron import KronSketch
from backcast.kernels.layer import LayerSketch
from backcast.kernels.sjlt import SjltSketch
from backcast.kernels.spec import SketchSpec
from backcast.kernels.tile import TileSketch

#: kind → its operator for a layer: (spec, layer name, out_features, in_features, device) → LayerSketch.
KINDS: dict[str, Callable[[SketchSpec, str, int, int, torch.device], LayerSketch]] = {
    "kron": KronSketch,
    "sjlt": SjltSketch,
    "dense": DenseSketch,
    "tile": TileSketch,
}


def sketcher(
    spec: SketchSpec,
    layer_name: str,
    out_features: int,
    in_features: int,
    device: torch.device | str = "cpu",
) -> LayerSketch:
    """The operator S_l of the linear layer `layer_name`, whose weight is (out_features, in_features).

    Raises `InputError` for a kind that is not in `KINDS`, and for a dim that the kind cannot have.
    """
    if spec.kind not in KINDS:
        raise InputError(
            f"sketch kind {spec.kind!r} does not exist; choose one of {', '.join(sorted(KINDS))}"
        )
    if spec.dim < 1:
        raise InputError(f"sketch dim {spec.dim} must be at least 1")
    return KINDS[spec.kind](spec, layer_name, out_features, in_features, torch.device(device))


def default_kind(device: torch.device | str = "cpu") -> str:
    """The kind that `collect` takes where the user names none."""
    return "kron"
