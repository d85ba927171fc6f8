"""`ghost`: inner products of per-example gradients from what the layer saw, the gradients never formed.

For G_a = D_aᵀ X_a and H_b = E_bᵀ Y_b,

    ⟨G_a, H_b⟩ = Σ_{t,u} ⟨X_at, Y_bu⟩ ⟨D_at, E_bu⟩

which costs T·U·(I + O) multiplications a pair, where T·I·O and U·I·O would form the two gradients: cheaper for
sequences shorter than I·O / (I + O), and it needs no memory of the gradients' size. (Goodfellow 2015, arXiv
1510.01799, for T = 1; "ghost norms" of sequences: Li et al. 2021, arXiv 2110.05679.)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from backcast.kernels._triton import block, jit, sum_splits, tl, triton, upcast, usable
from backcast.kernels.linear import check_rows, save_inputs
from backcast.kernels.precision import no_autocast, wide, wide_dtype
from backcast.kernels.vmap import batched, mapped_at

# What is meant.


def ghost_dot_reference(X: Tensor, D: Tensor, Y: Tensor, E: Tensor) -> Tensor:
    """⟨D_aᵀ X_a, E_bᵀ Y_b⟩ for every a and b: (A, B)."""
    out = X.new_empty(len(X), len(Y), dtype=wide_dtype(X, D))
    with no_autocast(X):
        for row, x, d in zip(out, wide(X), wide(D), strict=True):
            row.copy_(((x @ wide(Y).mT) * (d @ wide(E).mT)).sum((1, 2)))
    return out


def ghost_norm_reference(X: Tensor, D: Tensor) -> Tensor:
    """‖D_bᵀ X_b‖²: (B,)."""
    with no_autocast(X):
        pairs = zip(wide(X), wide(D), strict=True)
        norms = [((x @ x.mT) * (d @ d.mT)).sum() for x, d in pairs]
    return torch.stack(norms) if norms else X.new_empty(0, dtype=wide_dtype(X, D))


# The same in Triton. A program takes a pair of examples and a block of t, and goes through the blocks of u: two
# small products, multiplied entry by entry. The blocks of t are added in order. A norm's two halves are equal, so
# that u starts at the block of t itself and what lies above counts twice.


@jit
def _ghost_kernel(
    X: tl.tensor,
    D: tl.tensor,
    Y: tl.tensor,
    E: tl.tensor,
    PARTIAL: tl.tensor,
    T: tl.int64,
    U: tl.int64,
    partners: tl.int64,
    IN: tl.constexpr,
    OUT: tl.constexpr,
    NORM: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_O: tl.constexpr,
) -> None:
    pair = tl.program_id(0).to(tl.int64)
    a = pair if NORM else pair // partners
    b = pair if NORM else pair % partners
    first = tl.program_id(1) * BLOCK
    t = first + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK, BLOCK), tl.float32)
    start = first if NORM else 0
    while start < U:
        u = start + tl.arange(0, BLOCK)
        inputs = _rows_product(X + a * T * IN, Y + b * U * IN, t, u, T, U, IN, UPCAST, BLOCK, BLOCK_I)
        outputs = _rows_product(D + a * T * OUT, E + b * U * OUT, t, u, T, U, OUT, UPCAST, BLOCK, BLOCK_O)
        both = inputs * outputs
        total += both + both if NORM and start > first else both
        start += BLOCK
    out = PARTIAL + tl.program_id(1).to(tl.int64) * tl.num_programs(0) + pair
    tl.store(out, tl.sum(tl.sum(total, 1), 0))


@jit
def _rows_product(
    X: tl.tensor,
    Y: tl.tensor,
    t: tl.tensor,
    u: tl.tensor,
    T: tl.int64,
    U: tl.int64,
    FEATURES: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_F: tl.constexpr,
) -> tl.tensor:
    """⟨X_t, Y_u⟩ for a block of t and one of u."""
    product = tl.zeros((BLOCK, BLOCK), tl.float32)
    for start in range(0, FEATURES, BLOCK_F):
        i = start + tl.arange(0, BLOCK_F)
        inside = i < FEATURES
        x = tl.load(
            X + t[:, None] * FEATURES + i[None, :], mask=(t < T)[:, None] & inside[None, :], other=0.0
        )
        y = tl.load(
            Y + u[None, :] * FEATURES + i[:, None], mask=(u < U)[None, :] & inside[:, None], other=0.0
        )
        if UPCAST:
            x = x.to(tl.float32)
            y = y.to(tl.float32)
        product = tl.dot(x, y, product, input_precision="ieee")
    return product


def _check(X: Tensor, D: Tensor, Y: Tensor, E: Tensor) -> None:
    check_rows(X, D)
    check_rows(Y, E)
    _check_alike(X, Y)
    _check_alike(D, E)


def _check_alike(X: Tensor, Y: Tensor) -> None:
    torch._check(
        X.shape[2] == Y.shape[2] and X.dtype == Y.dtype,
        lambda: f"{tuple(X.shape)} {X.dtype} and {tuple(Y.shape)} {Y.dtype} differ in features or dtype",
    )


def ghost_dot_triton(X: Tensor, D: Tensor, Y: Tensor, E: Tensor) -> Tensor:
    _check(X, D, Y, E)
    if not (usable(X) and usable(D)):
        return ghost_dot_reference(X, D, Y, E)
    return _launch(X, D, Y, E, norm=False).view(len(X), len(Y))


def ghost_norm_triton(X: Tensor, D: Tensor) -> Tensor:
    check_rows(X, D)
    if not (usable(X) and usable(D)):
        return ghost_norm_reference(X, D)
    return _launch(X, D, X, D, norm=True)


def _launch(X: Tensor, D: Tensor, Y: Tensor, E: Tensor, norm: bool) -> Tensor:
    """A number a pair, or an example."""
    X, D, Y, E = (x.contiguous() for x in (X, D, Y, E))
    (A, T, features), (B, U, outputs) = X.shape, E.shape
    in_float32 = upcast(X) or upcast(D)
    BLOCK = 32 if in_float32 else 64  # larger float32 blocks spill
    pairs, splits = A if norm else A * B, triton.cdiv(T, BLOCK)
    partial = X.new_empty(splits, pairs, dtype=torch.float32)
    with torch.cuda.device_of(X):
        sizes = (features, outputs, norm, in_float32, BLOCK, block(features, BLOCK), block(outputs, BLOCK))
        _ghost_kernel[(pairs, splits)](X, D, Y, E, partial, T, U, B, *sizes, num_warps=4)
        return sum_splits(partial)


# The ops: the reference everywhere but on CUDA. Each argument's gradient is such a product again.


@torch.library.custom_op("backcast::ghost_dot", mutates_args=())
def ghost_dot(X: Tensor, D: Tensor, Y: Tensor, E: Tensor) -> Tensor:
    """⟨D_aᵀ X_a, E_bᵀ Y_b⟩ (A, B) for X (A, T, I), D (A, T, O), Y (B, U, I), E (B, U, O); gradients are not formed.

    float32, or float64 where an input is. X and Y are of one float dtype, and so are D and E. A padding position has
    D or E zero, and finite numbers in X and Y. The backward needs A·T·B·U numbers.
    """
    _check(X, D, Y, E)
    return ghost_dot_reference(X, D, Y, E)


@torch.library.custom_op("backcast::ghost_norm", mutates_args=())
def ghost_norm(X: Tensor, D: Tensor) -> Tensor:
    """‖D_bᵀ X_b‖² (B,) for X (B, T, I) and D (B, T, O): `ghost_dot`'s diagonal, at half the cost a pair."""
    check_rows(X, D)
    return ghost_norm_reference(X, D)


ghost_dot.register_kernel("cuda")(ghost_dot_triton)
ghost_norm.register_kernel("cuda")(ghost_norm_triton)


@ghost_dot.register_fake
def _(X: Tensor, D: Tensor, Y: Tensor, E: Tensor) -> Tensor:
    _check(X, D, Y, E)
    return X.new_empty(X.shape[0], Y.shape[0], dtype=wide_dtype(X, D))


@ghost_norm.register_fake
def _(X: Tensor, D: Tensor) -> Tensor:
    check_rows(X, D)
    return X.new_empty(X.shape[0], dtype=wide_dtype(X, D))


def _weighted(weights: Tensor, D: Tensor, E: Tensor, Y: Tensor) -> Tensor:
    """Σ_b w_ab D_a E_bᵀ Y_b, (A, T, I), for weights w (A, B): the gradient by X."""
    products = D @ E.flatten(0, 1).mT * weights.repeat_interleave(E.shape[1], 1)[:, None]
    return products @ Y.flatten(0, 1)


def _ghost_dot_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
    X, D, Y, E = (x.to(grad.dtype) for x in ctx.saved_tensors)
    with no_autocast(grad):
        gradients = (
            _weighted(grad, D, E, Y),
            _weighted(grad, X, Y, E),
            _weighted(grad.mT, E, D, X),
            _weighted(grad.mT, Y, X, D),
        )
    return tuple(g.to(x.dtype) for g, x in zip(gradients, ctx.saved_tensors, strict=True))


def _ghost_norm_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
    X, D = (x.to(grad.dtype) for x in ctx.saved_tensors)
    twice = 2 * grad[:, None, None]
    with no_autocast(grad):
        dX, dD = D @ D.mT @ X * twice, X @ X.mT @ D * twice
    return tuple(g.to(x.dtype) for g, x in zip((dX, dD), ctx.saved_tensors, strict=True))


ghost_dot.register_autograd(_ghost_dot_backward, setup_context=save_inputs)
ghost_norm.register_autograd(_ghost_norm_backward, setup_context=save_inputs)
ghost_norm.register_vmap(batched(ghost_norm, 0, 0))


@ghost_dot.register_vmap
def _(info: Any, in_dims: tuple[int | None, ...], *arguments: Tensor) -> tuple[Tensor, int]:
    """One side mapped gives more examples; both would give all pairs across the map too, so each is a call."""
    left, right = ([dim is not None for dim in side] for side in (in_dims[:2], in_dims[2:]))
    if not any(right):
        return batched(ghost_dot, 0, 0, None, None)(info, in_dims, *arguments)
    if not any(left):
        return batched(ghost_dot, None, None, 0, 0, out_axis=1)(info, in_dims, *arguments)
    each = (mapped_at(0, x, dim, info.batch_size) for x, dim in zip(arguments, in_dims, strict=True))
    return torch.stack([ghost_dot(*one) for one in zip(*each, strict=True)]), 0
