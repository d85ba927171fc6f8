"""`dense`: the ±1 Johnson-Lindenstrauss projection of a flat gradient.

S g = Rᵀg / √k with N × k independent signs R (Achlioptas 2003), made in blocks from 128 signs a Philox call
and never held whole.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from backcast.kernels._triton import jit, sum_splits, tl, triton, upcast, usable
from backcast.kernels.layer import FlatSketch
from backcast.kernels.linear import register_linear
from backcast.kernels.precision import no_autocast, wide, wide_dtype
from backcast.kernels.random import BITS, sign_words, unpack_signs

#: Signs that the reference holds at a time.
_AT_ONCE = 2**22
#: The most partial sums that the kernel cuts N into, and the least coordinates of each.
_MAX_SPLITS, _MIN_SPAN = 64, 256


class DenseSketch(FlatSketch):
    """`dense` for one layer."""

    kind = "dense"

    def project(self, G: Tensor) -> Tensor:
        return dense_jl(G, self.dim, self.key)


# What is meant.


def dense_jl_reference(g: Tensor, k: int, key: int) -> Tensor:
    """The projection Rᵀg / √k (B, k) of g (B, N)."""
    out = torch.zeros(len(g), k, dtype=wide_dtype(g), device=g.device)
    with no_autocast(g):
        for coordinates, R in _sign_blocks(g.shape[1], k, key, out):
            out += wide(g[:, coordinates]) @ R
    return out * k**-0.5


def dense_jl_adjoint_reference(h: Tensor, n: int, key: int) -> Tensor:
    """The adjoint Rh / √k (B, N) of h (B, k)."""
    out = torch.empty(len(h), n, dtype=wide_dtype(h), device=h.device)
    with no_autocast(h):
        for coordinates, R in _sign_blocks(n, h.shape[1], key, out):
            out[:, coordinates] = wide(h) @ R.mT
    return out * h.shape[1] ** -0.5


def _sign_blocks(n: int, k: int, key: int, like: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """R's rows, some at a time, in the dtype and on the device of `like`."""
    columns = torch.arange(-(-k // BITS), device=like.device)
    rows = max(1, _AT_ONCE // k)
    for start in range(0, n, rows):
        stop = min(start + rows, n)
        words = sign_words(key, torch.arange(start, stop, device=like.device), columns)
        yield slice(start, stop), unpack_signs(words, k).to(like.dtype)


# The same in Triton. A program multiplies some examples with a span of coordinates and the 128 columns of R
# that one Philox call a coordinate gives, as four products of 32 columns; the spans' partial sums are added
# in order.


@jit
def _dense_jl_kernel(
    G: tl.tensor,
    PARTIAL: tl.tensor,
    batch: tl.int64,
    n: tl.int64,
    key: tl.int64,
    K: tl.constexpr,
    SPAN: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    b = tl.program_id(0).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    columns = tl.program_id(1)
    split = tl.program_id(2).to(tl.int64)
    zero = tl.zeros((BLOCK_N,), tl.int32)
    t0 = tl.zeros((BLOCK_B, 32), tl.float32)
    t1 = tl.zeros((BLOCK_B, 32), tl.float32)
    t2 = tl.zeros((BLOCK_B, 32), tl.float32)
    t3 = tl.zeros((BLOCK_B, 32), tl.float32)
    for start in range(0, SPAN, BLOCK_N):
        i = split * SPAN + start + tl.arange(0, BLOCK_N)
        x = tl.load(G + b[:, None] * n + i[None, :], mask=(b < batch)[:, None] & (i < n)[None, :], other=0.0)
        if UPCAST:
            x = x.to(tl.float32)
        w0, w1, w2, w3 = tl.philox(key, i.to(tl.int32), (i >> 32).to(tl.int32), zero + columns, zero)
        t0 = _add_signed(t0, x, w0)
        t1 = _add_signed(t1, x, w1)
        t2 = _add_signed(t2, x, w2)
        t3 = _add_signed(t3, x, w3)
    row = PARTIAL + (split * batch + b)[:, None] * K
    _store_columns(row, t0, columns * 128, b < batch, K)
    _store_columns(row, t1, columns * 128 + 32, b < batch, K)
    _store_columns(row, t2, columns * 128 + 64, b < batch, K)
    _store_columns(row, t3, columns * 128 + 96, b < batch, K)


@jit
def _add_signed(total: tl.tensor, x: tl.tensor, word: tl.tensor) -> tl.tensor:
    """total + x R for the 32 columns of R whose signs are the bits of `word`, a word a row."""
    bit = (word[:, None] >> tl.arange(0, 32)[None, :].to(tl.uint32)) & 1
    return tl.dot(x, tl.where(bit == 1, -1.0, 1.0).to(x.dtype), total, input_precision="ieee")


@jit
def _store_columns(
    row: tl.tensor, total: tl.tensor, first: tl.tensor, inside: tl.tensor, K: tl.constexpr
) -> None:
    column = first + tl.arange(0, 32)
    tl.store(row + column[None, :], total, mask=inside[:, None] & (column < K)[None, :])


def dense_jl_triton(g: Tensor, k: int, key: int) -> Tensor:
    if not usable(g):
        return dense_jl_reference(g, k, key)
    B, n = g.shape
    # From n alone: a span that followed the device or the batch would change the sums' order, and so their bits.
    SPAN = max(_MIN_SPAN, triton.next_power_of_2(triton.cdiv(n, _MAX_SPLITS)))
    splits, BLOCK_B = triton.cdiv(n, SPAN), 16
    partial = g.new_empty(splits, B, k, dtype=torch.float32)
    with torch.cuda.device_of(g):
        _dense_jl_kernel[(triton.cdiv(B, BLOCK_B), triton.cdiv(k, BITS), splits)](
            g.contiguous(), partial, B, n, key, k, SPAN, upcast(g), BLOCK_B, 32, num_warps=4
        )
        return sum_splits(partial) * k**-0.5


# The ops: the reference everywhere but on CUDA. Linear, so the gradient is the adjoint.


@torch.library.custom_op("backcast::dense_jl", mutates_args=())
def dense_jl(g: Tensor, k: int, key: int) -> Tensor:
    """The projection Rᵀg / √k (B, k), float32 (float64 for float64 g), of g (B, N) of any float dtype.

    Args:
        g: flat gradients.
        k: the projection's length.
        key: 64 bits of randomness as a signed integer, see `backcast.kernels.random.key`.
    """
    return dense_jl_reference(g, k, key)


@torch.library.custom_op("backcast::dense_jl_adjoint", mutates_args=())
def dense_jl_adjoint(h: Tensor, n: int, key: int) -> Tensor:
    """(B, N): the adjoint of `dense_jl`, ⟨dense_jl(g), h⟩ = ⟨g, dense_jl_adjoint(h)⟩."""
    return dense_jl_adjoint_reference(h, n, key)


dense_jl.register_kernel("cuda")(dense_jl_triton)
register_linear(dense_jl, dense_jl_adjoint)
