"""Sketch operators: random projections of per-example gradients to k numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from backcast.kernels.kinds import KINDS, default_kind, sketcher
from backcast.kernels.layer import LayerSketch
from backcast.kernels.spec import SketchSpec

if TYPE_CHECKING:
    from backcast.kernels.trak import TrakProjector

__all__ = ["KINDS", "LayerSketch", "SketchSpec", "TrakProjector", "default_kind", "sketcher"]


def __getattr__(name: str) -> Any:
    if name == "TrakProjector":  # traker is imported by those who use it
        from backcast.kernels.trak import TrakProjector

        return TrakProjector
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
