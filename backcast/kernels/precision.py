"""The references' arithmetic: float32 sums whatever the inputs, float64 for float64, autocast or not."""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """`x` in float32, or in float64 if it is."""
    return x.to(wide_dtype(x))


def wide_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 where a tensor is, else float32."""
    return reduce(torch.promote_types, (x.dtype for x in tensors), torch.float32)


def no_autocast(x: Tensor) -> torch.autocast:
    """Autocast reaches into custom ops and would round their products to bfloat16; this keeps it out."""
    return torch.autocast(x.device.type, enabled=False)
