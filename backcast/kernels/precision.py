"""The references' arithmetic: float32 sums whatever the inputs, float64 for float64, autocast or not."""

from __future__ import annotations

import torch
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """`x` in float32, or in float64 if it is."""
    return x.to(wide_dtype(x))


def wide_dtype(x: Tensor) -> torch.dtype:
    """float64 for a float64 tensor, else float32."""
    return torch.promote_types(x.dtype, torch.float32)


def no_autocast(x: Tensor) -> torch.autocast:
    """Autocast reaches into custom ops and would round their products to bfloat16; this keeps it out."""
    return torch.autocast(x.device.type, enabled=False)
