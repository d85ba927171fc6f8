"""`kron`: a two-sided sketch of a linear layer's gradient, from two thin products and nothing of its size.

S vec(G) = vec(P_oᵀ G P_i) / √k with independent signs P_o (O, k_o) and P_i (I, k_i), k = k_o k_i. For
G = DᵀX this is (D P_o)ᵀ (X P_i) / √k, and X P_i can be taken in the forward pass. (Kronecker-structured
projections of gradients: LoGra, arXiv 2405.13954.)
"""

from __future__ import annotations

from itertools import count
from math import isqrt
from typing import Any

import torch
from torch import Tensor

from backcast.errors import InputError
from backcast.kernels._triton import block, jit, tl, triton, upcast, usable
from backcast.kernels.layer import LayerSketch
from backcast.kernels.linear import check_rows, save_inputs
from backcast.kernels.precision import no_autocast, wide, wide_dtype
from backcast.kernels.random import key, signs
from backcast.kernels.spec import SketchSpec
from backcast.kernels.vmap import batched

#: The most that one side of the sketch may be longer than the other.
MAX_ASPECT = 4
#: The tokens from which the reference takes a product a sequence.
_LONG = 64


class KronSketch(LayerSketch):
    """`kron` for one layer: keeps X P_i, (B, T, k_i)."""

    def __init__(
        self, spec: SketchSpec, layer_name: str, out_features: int, in_features: int, device: torch.device
    ) -> None:
        k_o, k_i = factors(spec.dim)
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32  # ±1 is exact in either
        self.scale = spec.dim**-0.5
        self.P_o = signs(key(spec, layer_name, "kron.out"), out_features, k_o, device).to(dtype)
        self.P_i = signs(key(spec, layer_name, "kron.in"), in_features, k_i, device).to(dtype)

    def keep(self, X: Tensor) -> Tensor:
        return project(X.detach(), self.P_i)

    def sketch(self, kept: Tensor, D: Tensor) -> Tensor:
        return kron_sketch(kept, D, self.P_o) * self.scale


def factors(dim: int) -> tuple[int, int]:
    """(k_o, k_i) with k_o k_i = dim and k_i ≤ k_o, as near to a square as dim allows.

    Raises `InputError`, naming the nearest dim that will do, where k_o would be more than `MAX_ASPECT` times
    k_i.
    """
    if not _is_squarish(dim):
        good = next(near for step in count(1) for near in (dim - step, dim + step) if _is_squarish(near))
        raise InputError(f"sketch dim {dim} has no two factors of like size, which 'kron' needs; take {good}")
    return dim // _short_side(dim), _short_side(dim)


def _is_squarish(dim: int) -> bool:
    return dim <= MAX_ASPECT * _short_side(dim) ** 2


def _short_side(dim: int) -> int:
    return next(side for side in range(isqrt(dim), 0, -1) if dim % side == 0)


# What is meant.


def project_reference(X: Tensor, P: Tensor) -> Tensor:
    """X P for X (B, T, I) and P (I, k): (B, T, k)."""
    P = P.to(wide_dtype(X))
    with no_autocast(X):
        if X.dim() == 3 and X.shape[1] >= _LONG:  # a CPU's threads share a batch better than one thin product
            return torch.bmm(wide(X), P.expand(len(X), *P.shape))
        return wide(X) @ P


def kron_sketch_reference(XP: Tensor, D: Tensor, P: Tensor) -> Tensor:
    """vec((D_b P)ᵀ XP_b) for XP (B, T, k_i), D (B, T, O) and P (O, k_o): (B, k_o k_i)."""
    with no_autocast(D):
        return (project_reference(D, P).mT @ wide(XP)).flatten(1)


# The same in Triton: one thin product a row block, then one small product an example. A row's sum runs over
# I in order, an example's over T in order, and neither depends on which rows or examples share the launch.


@jit
def _project_kernel(
    X: tl.tensor,
    P: tl.tensor,
    OUT: tl.tensor,
    rows: tl.int64,
    FEATURES: tl.constexpr,
    K: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    total = tl.zeros((BLOCK_M, BLOCK_K), tl.float32)
    for start in range(0, FEATURES, BLOCK_I):
        i = start + tl.arange(0, BLOCK_I)
        x = tl.load(
            X + m[:, None] * FEATURES + i[None, :],
            mask=(m < rows)[:, None] & (i < FEATURES)[None, :],
            other=0.0,
        )
        p = tl.load(
            P + i[:, None] * K + k[None, :], mask=(i < FEATURES)[:, None] & (k < K)[None, :], other=0.0
        )
        if UPCAST:
            x = x.to(tl.float32)
        total = tl.dot(x, p.to(x.dtype), total, input_precision="ieee")
    tl.store(OUT + m[:, None] * K + k[None, :], total, mask=(m < rows)[:, None] & (k < K)[None, :])


@jit
def _gram_kernel(
    V: tl.tensor,
    U: tl.tensor,
    OUT: tl.tensor,
    T: tl.int64,
    KO: tl.constexpr,
    KI: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_I: tl.constexpr,
) -> None:
    b = tl.program_id(0).to(tl.int64)
    o = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    i = tl.program_id(2) * BLOCK_I + tl.arange(0, BLOCK_I)
    total = tl.zeros((BLOCK_O, BLOCK_I), tl.float32)
    start = 0
    while start < T:  # the interpreter of Triton 3.6 takes no `range` over a run-time bound
        t = start + tl.arange(0, BLOCK_T)
        row = b * T + t
        v = tl.load(V + row[:, None] * KO + o[None, :], mask=(t < T)[:, None] & (o < KO)[None, :], other=0.0)
        u = tl.load(U + row[:, None] * KI + i[None, :], mask=(t < T)[:, None] & (i < KI)[None, :], other=0.0)
        total = tl.dot(tl.trans(v), u, total, input_precision="ieee")
        start += BLOCK_T
    out = OUT + b * KO * KI + o[:, None] * KI + i[None, :]
    tl.store(out, total, mask=(o < KO)[:, None] & (i < KI)[None, :])


def _check_product(X: Tensor, P: Tensor) -> None:
    torch._check(X.shape[-1] == P.shape[0], lambda: f"cannot project {tuple(X.shape)} by {tuple(P.shape)}")


def project_triton(X: Tensor, P: Tensor) -> Tensor:
    _check_product(X, P)
    if not usable(X):
        return project_reference(X, P)
    X, P = X.contiguous(), P.contiguous()
    features, K = P.shape
    rows = X.numel() // features
    out = X.new_empty(*X.shape[:-1], K, dtype=torch.float32)
    most = 32 if upcast(X) else 64  # larger float32 blocks spill
    BLOCK_M, BLOCK_I, BLOCK_K = most, block(features, most), block(K, most)
    with torch.cuda.device_of(X):
        _project_kernel[(triton.cdiv(rows, BLOCK_M), triton.cdiv(K, BLOCK_K))](
            X, P, out, rows, features, K, upcast(X), BLOCK_M, BLOCK_I, BLOCK_K, num_warps=4
        )
    return out


def kron_sketch_triton(XP: Tensor, D: Tensor, P: Tensor) -> Tensor:
    check_rows(XP, D)
    if not usable(D):
        return kron_sketch_reference(XP, D, P)
    V, U = project_triton(D, P), XP.float().contiguous()
    (B, T, KO), KI = V.shape, U.shape[2]
    out = V.new_empty(B, KO * KI)
    BLOCK_O, BLOCK_I = block(KO, 32), block(KI, 32)
    with torch.cuda.device_of(D):
        _gram_kernel[(B, triton.cdiv(KO, BLOCK_O), triton.cdiv(KI, BLOCK_I))](
            V, U, out, T, KO, KI, 32, BLOCK_O, BLOCK_I, num_warps=4
        )
    return out


# The ops: the reference everywhere but on CUDA. Both are multilinear, so every argument has its gradient.


@torch.library.custom_op("backcast::project", mutates_args=())
def project(X: Tensor, P: Tensor) -> Tensor:
    """X P for X (B, T, I) of any float dtype and P (I, k): (B, T, k), float32 (float64 for float64 X)."""
    return project_reference(X, P)


@torch.library.custom_op("backcast::kron_sketch", mutates_args=())
def kron_sketch(XP: Tensor, D: Tensor, P: Tensor) -> Tensor:
    """vec((D_b P)ᵀ XP_b) for XP (B, T, k_i), D (B, T, O) and P (O, k_o): (B, k_o k_i), of like dtype."""
    return kron_sketch_reference(XP, D, P)


project.register_kernel("cuda")(project_triton)
kron_sketch.register_kernel("cuda")(kron_sketch_triton)


@project.register_fake
def _(X: Tensor, P: Tensor) -> Tensor:
    _check_product(X, P)
    return X.new_empty(*X.shape[:-1], P.shape[1], dtype=wide_dtype(X))


@kron_sketch.register_fake
def _(XP: Tensor, D: Tensor, P: Tensor) -> Tensor:
    _check_product(D, P)
    check_rows(XP, D)
    return D.new_empty(D.shape[0], P.shape[1] * XP.shape[2], dtype=wide_dtype(D))


def _product_backward(X: Tensor, P: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    with no_autocast(grad):
        dX = grad @ P.to(grad.dtype).mT
        dP = X.to(grad.dtype).flatten(0, -2).mT @ grad.flatten(0, -2)
    return dX.to(X.dtype), dP.to(P.dtype)


def _project_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
    X, P = ctx.saved_tensors
    return _product_backward(X, P, grad)


def _kron_sketch_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    XP, D, P = ctx.saved_tensors
    G = grad.unflatten(1, (P.shape[1], XP.shape[2]))
    with no_autocast(grad):
        dXP = project(D, P) @ G
        dV = wide(XP) @ G.mT
    return dXP.to(XP.dtype), *_product_backward(D, P, dV)


project.register_autograd(_project_backward, setup_context=save_inputs)
kron_sketch.register_autograd(_kron_sketch_backward, setup_context=save_inputs)
project.register_vmap(batched(project, 0, None))
kron_sketch.register_vmap(batched(kron_sketch, 0, 0, None))
