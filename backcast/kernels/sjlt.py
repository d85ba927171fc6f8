"""`sjlt`: a count-sketch of a flat gradient; every coordinate goes, with a random sign, to one of k buckets.

The N coordinates are cut into chunks of k. Chunk j is turned by a random e_j: its coordinate c falls into
bucket m = (c + e_j) mod k, with sign s_j(m). Two coordinates of one chunk never meet; two of different
chunks meet with probability 1/k, with independent signs. Mean and variance ask for no more than that of a
count-sketch (Charikar, Chen & Farach-Colton 2002; Weinberger et al., arXiv 0902.2206), so Var⟨Sx, Sy⟩ ≤
(‖x‖²‖y‖² + ⟨x, y⟩²) / k. Turned chunks are read as they lie and added: no scatter and no atomics, and a bit
a coordinate of random numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor

from backcast.kernels._triton import jit, sum_splits, tl, triton, usable
from backcast.kernels.layer import FlatSketch
from backcast.kernels.linear import register_linear
from backcast.kernels.precision import wide, wide_dtype
from backcast.kernels.random import BITS, integers, sign_words, unpack_signs


class SjltSketch(FlatSketch):
    """`sjlt` for one layer."""

    kind = "sjlt"

    def project(self, G: Tensor) -> Tensor:
        return sjlt(G, self.dim, self.key)


# What is meant.


def sjlt_reference(g: Tensor, k: int, key: int) -> Tensor:
    """The sketch Sg (B, k) of g (B, N)."""
    out = torch.zeros(len(g), k, dtype=wide_dtype(g), device=g.device)
    for coordinates, buckets, sign in _arcs(g.shape[1], k, key, g.device):
        out[:, buckets] += wide(g[:, coordinates]) * sign
    return out


def sjlt_adjoint_reference(h: Tensor, n: int, key: int) -> Tensor:
    """The adjoint Sᵀh (B, N) of h (B, k)."""
    out = torch.empty(len(h), n, dtype=wide_dtype(h), device=h.device)
    for coordinates, buckets, sign in _arcs(n, h.shape[1], key, h.device):
        out[:, coordinates] = wide(h[:, buckets]) * sign
    return out


def _arcs(n: int, k: int, key: int, device: torch.device) -> Iterator[tuple[slice, slice, Tensor]]:
    """What stays together of n coordinates: two pieces a chunk, before and after the turn's seam."""
    turns, words = _turns(n, k, key, device).tolist(), _sign_words(n, k, key, device)
    for chunk, turn in enumerate(turns):
        if chunk % BITS == 0:
            block = words[:, chunk // 32 : (chunk + BITS) // 32]
            signs = unpack_signs(block, BITS).T.contiguous()
        start, stop = chunk * k, min(chunk * k + k, n)
        seam = min(start + k - turn, stop)
        sign = signs[chunk % BITS]
        yield slice(start, seam), slice(turn, turn + seam - start), sign[turn : turn + seam - start]
        yield slice(seam, stop), slice(0, stop - seam), sign[: stop - seam]


@lru_cache(maxsize=1024)
def _turns(n: int, k: int, key: int, device: torch.device) -> Tensor:
    """(chunks,) int64: how far each chunk of k coordinates is turned."""
    return integers(key, -(-n // k), k, device)


@lru_cache(maxsize=256)
def _sign_words(n: int, k: int, key: int, device: torch.device) -> Tensor:
    """(k, ·) int32 of packed signs, a row a bucket and a bit a chunk: n / 8 bytes."""
    blocks = -(-n // (k * BITS))
    return sign_words(key, torch.arange(k, device=device), torch.arange(blocks, device=device))


# The same in Triton. A program owns some buckets of one example and reads the 128 chunks whose signs are one
# Philox block of each bucket; the blocks' partial sums are added in order.


@jit
def _sjlt_kernel(
    G: tl.tensor,
    TURNS: tl.tensor,
    PARTIAL: tl.tensor,
    n: tl.int64,
    chunks: tl.int64,
    key: tl.int64,
    K: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    split = tl.program_id(0)
    m = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    b = tl.program_id(2).to(tl.int64)
    zero = tl.zeros((BLOCK,), tl.int32)
    words = tl.philox(key, m, zero, zero + split, zero)
    total = tl.zeros((BLOCK,), tl.float32)
    for word in tl.static_range(4):
        for bit in range(32):
            chunk = split * 128 + word * 32 + bit
            turn = tl.load(TURNS + chunk, mask=chunk < chunks, other=0)
            i = chunk.to(tl.int64) * K + tl.where(m < turn, m - turn + K, m - turn)
            x = tl.load(G + b * n + i, mask=(m < K) & (i < n), other=0.0).to(tl.float32)
            total += tl.where((words[word] >> bit) & 1 == 1, -x, x)
    out = (split.to(tl.int64) * tl.num_programs(2) + b) * K + m
    tl.store(PARTIAL + out, total, mask=m < K)


def sjlt_triton(g: Tensor, k: int, key: int) -> Tensor:
    if not usable(g):
        return sjlt_reference(g, k, key)
    B, n = g.shape
    turns = _turns(n, k, key, g.device)
    splits, BLOCK = triton.cdiv(len(turns), BITS), 256
    partial = g.new_empty(splits, B, k, dtype=torch.float32)
    with torch.cuda.device_of(g):
        _sjlt_kernel[(splits, triton.cdiv(k, BLOCK), B)](
            g.contiguous(), turns, partial, n, len(turns), key, k, BLOCK, num_warps=4
        )
        return sum_splits(partial)


# The ops: the reference everywhere but on CUDA. Linear, so the gradient is the adjoint.


@torch.library.custom_op("backcast::sjlt", mutates_args=())
def sjlt(g: Tensor, k: int, key: int) -> Tensor:
    """The count-sketch (B, k), float32 (float64 for float64 g), of g (B, N) of any float dtype.

    Args:
        g: flat gradients.
        k: number of buckets.
        key: 64 bits of randomness as a signed integer, see `backcast.kernels.random.key`.
    """
    return sjlt_reference(g, k, key)


@torch.library.custom_op("backcast::sjlt_adjoint", mutates_args=())
def sjlt_adjoint(h: Tensor, n: int, key: int) -> Tensor:
    """(B, N): the adjoint of `sjlt`, ⟨sjlt(g), h⟩ = ⟨g, sjlt_adjoint(h)⟩."""
    return sjlt_adjoint_reference(h, n, key)


sjlt.register_kernel("cuda")(sjlt_triton)
register_linear(sjlt, sjlt_adjoint)
