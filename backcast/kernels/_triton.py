"""Triton where it is installed; elsewhere names that let the kernels be defined, and no op that uses them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = tl = None


def jit(kernel: Callable[..., None]) -> Any:
    """``triton.jit``, or the bare function."""
    return kernel if triton is None else triton.jit(kernel)


def upcast(x: Tensor) -> bool:
    """Whether a kernel multiplies in float32: for float32, and in the interpreter, whose bf16 is wrong."""
    return x.dtype == torch.float32 or triton.knobs.runtime.interpret


def block(size: int, most: int) -> int:
    """A block length for an axis of `size`: a power of two, from what ``tl.dot`` takes to `most`."""
    return min(max(triton.next_power_of_2(size), 16), most)


def usable(x: Tensor) -> bool:
    """Whether the kernels take `x`; float64 is the torch reference's alone."""
    return triton is not None and x.dtype != torch.float64


@jit
def _sum_splits_kernel(
    PARTIAL: tl.tensor, OUT: tl.tensor, splits: tl.int64, size: tl.int64, BLOCK: tl.constexpr
) -> None:
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < size
    source = PARTIAL + i
    total = tl.zeros((BLOCK,), tl.float32)
    split = 0
    while split < splits:  # one after the other: the order of a sum is part of its result
        total += tl.load(source, mask=inside, other=0.0)
        source += size
        split += 1
    tl.store(OUT + i, total, mask=inside)


def sum_splits(partial: Tensor) -> Tensor:
    """Sum (splits, ...) float32 over the first axis, in order."""
    out = torch.empty_like(partial[0])
    _sum_splits_kernel[(triton.cdiv(out.numel(), 256),)](
        partial, out, len(partial), out.numel(), BLOCK=256, num_warps=4
    )
    return out
