"""`embedding`: the sketch of an embedding table's gradient, from the rows of the tokens seen.

Example b's gradient of a (V, E) table is zero but for the rows of its tokens: row v is Σ_{t: ids_bt = v} D_bt. It is
count-sketched as in `backcast.kernels.sjlt`, with chunks that end where a row ends: row v is cut into chunks of at
most k coordinates, and coordinate j of chunk c falls into bucket (j + e_vc) mod k with a random sign. Two coordinates
of one chunk never meet; two of different chunks meet with probability 1/k, with independent signs, so Var⟨Sx, Sy⟩ ≤
(‖x‖²‖y‖² + ⟨x, y⟩²) / k. The random bits come from Philox by the row's index: nothing of length V is made, and the
tokens are added one by one, as the operator is linear.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from backcast.kernels._triton import jit, sum_splits, tl, triton, usable
from backcast.kernels.layer import LayerSketch
from backcast.kernels.precision import wide, wide_dtype
from backcast.kernels.random import BITS, key, philox, sign_words, unpack_signs
from backcast.kernels.spec import SketchSpec
from backcast.kernels.vmap import batched

#: Tokens whose sum is one partial sum of the kernel.
_SPAN = 64


class EmbeddingSketch(LayerSketch):
    """The count-sketch of one embedding table's gradient, under a spec of any kind.

    Its operator is not that of a linear layer: where a table is also a tracked output layer, the two gradients add up
    only if both go through the linear layer's.

    Args:
        spec: the sketch; its kind is not looked at.
        layer_name: enters the random signs.
        num_embeddings, embedding_dim: the table's shape (V, E).
        device: unused, as nothing is held.
    """

    def __init__(
        self,
        spec: SketchSpec,
        layer_name: str,
        num_embeddings: int,
        embedding_dim: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self.dim = spec.dim
        self.key = key(spec, layer_name, "embedding")

    def keep(self, X: Tensor) -> Tensor:
        """The token ids (B, T) as int64."""
        return X.long()

    def sketch(self, kept: Tensor, D: Tensor) -> Tensor:
        """(B, k) from the ids (B, T) and the gradient D (B, T, E) of the looked-up rows, zero at padding."""
        return embedding_sketch(kept, D, self.dim, self.key)


# What is meant.


def embedding_sketch_reference(ids: Tensor, D: Tensor, k: int, key: int) -> Tensor:
    """The sketch (B, k) of the table gradients with rows Σ_{t: ids_bt = v} D_bt."""
    out = torch.zeros(len(D), k, dtype=wide_dtype(D), device=D.device)
    for row, rows, d in zip(out, ids, D, strict=True):
        buckets, signs = _places(rows, D.shape[2], k, key)
        row.index_add_(0, buckets.flatten(), (wide(d) * signs).flatten())
    return out


def embedding_sketch_adjoint_reference(ids: Tensor, h: Tensor, features: int, key: int) -> Tensor:
    """The adjoint (B, T, E) by D, of h (B, k)."""
    out = torch.empty(*ids.shape, features, dtype=wide_dtype(h), device=h.device)
    for d, rows, row in zip(out, ids, wide(h), strict=True):
        buckets, signs = _places(rows, features, h.shape[1], key)
        torch.mul(row[buckets], signs, out=d)
    return out


def _places(rows: Tensor, features: int, k: int, key: int) -> tuple[Tensor, Tensor]:
    """Of each table row in `rows` (n,): every coordinate's bucket, int64, and sign, both (n, features)."""
    coordinate = torch.arange(features, device=rows.device)
    blocks = torch.arange(-(-features // BITS), device=rows.device)
    turns = _turns(rows, -(-features // k), k, key)[:, coordinate // k]
    return (coordinate + turns) % k, unpack_signs(sign_words(key, rows, blocks), features)


def _turns(rows: Tensor, chunks: int, k: int, key: int) -> Tensor:
    """(n, chunks) int64: how far each chunk of each of `rows` is turned, uniform on [0, k).

    The counter is (row low, row high, four chunks, 1): its last word tells it from the signs'.
    """
    row, four = rows[:, None], torch.arange(-(-chunks // 4), device=rows.device)[None, :]
    words = torch.stack(philox(key, row & 0xFFFFFFFF, row >> 32, four, torch.ones_like(four)), dim=-1)
    return words.flatten(1)[:, :chunks] * k >> 32


# The same in Triton. First the tokens' random words, then the sums: a program owns some buckets of one example and
# goes through a span of its tokens, some at a time; the spans' partial sums are added in order.


@jit
def _words_kernel(
    IDS: tl.tensor,
    WORDS: tl.tensor,
    count: tl.int64,
    key: tl.int64,
    last: tl.int64,
    BLOCKS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """WORDS (tokens, BLOCKS, 4) int32: Philox of (token, block, `last`)."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < count
    row = tl.load(IDS + i // BLOCKS, mask=inside, other=0)
    zero = tl.zeros((BLOCK,), tl.int32)
    words = tl.philox(
        key, row.to(tl.int32), (row >> 32).to(tl.int32), (i % BLOCKS).to(tl.int32), zero + last.to(tl.int32)
    )
    for word in tl.static_range(4):
        tl.store(WORDS + i * 4 + word, words[word].to(tl.int32, bitcast=True), mask=inside)


@jit
def _embedding_kernel(
    D: tl.tensor,
    SIGNS: tl.tensor,
    TURNS: tl.tensor,
    PARTIAL: tl.tensor,
    T: tl.int64,
    K: tl.constexpr,
    FEATURES: tl.constexpr,
    SIGN_WORDS: tl.constexpr,
    TURN_WORDS: tl.constexpr,
    SPAN: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    split = tl.program_id(0)
    m = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    b = tl.program_id(2).to(tl.int64)
    total = tl.zeros((BLOCK_T, BLOCK), tl.float32)
    start = split * SPAN
    stop = tl.minimum(start + SPAN, T)
    while start < stop:
        t = start + tl.arange(0, BLOCK_T)[:, None]
        token = b * T + t
        for chunk in range((FEATURES + K - 1) // K):
            word = tl.load(TURNS + token * TURN_WORDS + chunk, mask=t < T, other=0)
            turn = ((word.to(tl.int64) & 0xFFFFFFFF) * K >> 32).to(tl.int32)
            j = tl.where(m < turn, m - turn + K, m - turn)
            i = chunk * K + j
            inside = (t < T) & (m < K) & (i < FEATURES)
            sign = tl.load(SIGNS + token * SIGN_WORDS + i // 32, mask=inside, other=0)
            x = tl.load(D + token * FEATURES + i, mask=inside, other=0.0).to(tl.float32)
            total += tl.where((sign >> (i % 32)) & 1 == 1, -x, x)
        start += BLOCK_T
    out = PARTIAL + (split.to(tl.int64) * tl.num_programs(2) + b) * K + m
    tl.store(out, tl.sum(total, 0)[None, :], mask=m < K)


def embedding_sketch_triton(ids: Tensor, D: Tensor, k: int, key: int) -> Tensor:
    _check(ids, D)
    if not usable(D):
        return embedding_sketch_reference(ids, D, k, key)
    B, T, features = D.shape
    splits, BLOCK_T, BLOCK = triton.cdiv(T, _SPAN), 8, 128
    partial = D.new_empty(splits, B, k, dtype=torch.float32)
    with torch.cuda.device_of(D):
        signs = _words(ids, triton.cdiv(features, BITS), key, 0)
        turns = _words(ids, triton.cdiv(features, 4 * k), key, 1)
        sizes = (k, features, signs.shape[1], turns.shape[1], _SPAN, BLOCK_T, BLOCK)
        _embedding_kernel[(splits, triton.cdiv(k, BLOCK), B)](
            D.contiguous(), signs, turns, partial, T, *sizes, num_warps=4
        )
        return sum_splits(partial)


def _words(ids: Tensor, blocks: int, key: int, last: int) -> Tensor:
    """(B·T, 4 · blocks) int32 of random words for the tokens `ids` (B, T)."""
    words = torch.empty(ids.numel(), 4 * blocks, dtype=torch.int32, device=ids.device)
    count = ids.numel() * blocks
    _words_kernel[(triton.cdiv(count, 128),)](
        ids.contiguous(), words, count, key, last, blocks, 128, num_warps=4
    )
    return words


# The ops: the reference everywhere but on CUDA. Linear in D, so the gradient is the adjoint.


@torch.library.custom_op("backcast::embedding_sketch", mutates_args=())
def embedding_sketch(ids: Tensor, D: Tensor, k: int, key: int) -> Tensor:
    """The count-sketch (B, k), float32 (float64 for float64 D), of an embedding table's per-example gradients.

    Args:
        ids: (B, T) int64, the tokens.
        D: (B, T, E) of any float dtype, the gradient of each looked-up row; zero at padding.
        k: number of buckets.
        key: 64 bits of randomness as a signed integer, see `backcast.kernels.random.key`.
    """
    _check(ids, D)
    return embedding_sketch_reference(ids, D, k, key)


@torch.library.custom_op("backcast::embedding_sketch_adjoint", mutates_args=())
def embedding_sketch_adjoint(ids: Tensor, h: Tensor, features: int, key: int) -> Tensor:
    """(B, T, features): the adjoint, ⟨embedding_sketch(ids, D), h⟩ = ⟨D, embedding_sketch_adjoint(ids, h)⟩."""
    return embedding_sketch_adjoint_reference(ids, h, features, key)


embedding_sketch.register_kernel("cuda")(embedding_sketch_triton)


def _check(ids: Tensor, D: Tensor) -> None:
    torch._check(
        ids.shape == D.shape[:2], lambda: f"{tuple(ids.shape)} and {tuple(D.shape)} differ in B or T"
    )


@embedding_sketch.register_fake
def _(ids: Tensor, D: Tensor, k: int, key: int) -> Tensor:
    _check(ids, D)
    return D.new_empty(D.shape[0], k, dtype=wide_dtype(D))


@embedding_sketch_adjoint.register_fake
def _(ids: Tensor, h: Tensor, features: int, key: int) -> Tensor:
    return h.new_empty(*ids.shape, features, dtype=wide_dtype(h))


def _remember(ctx: Any, inputs: tuple[Tensor, Tensor, int, int], output: Tensor) -> None:
    ids, x, _, ctx.key = inputs
    ctx.save_for_backward(ids)
    ctx.dtype, ctx.length = x.dtype, x.shape[-1]


def _sketch_backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None, None]:
    (ids,) = ctx.saved_tensors
    return None, embedding_sketch_adjoint(ids, grad, ctx.length, ctx.key).to(ctx.dtype), None, None


def _adjoint_backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None, None]:
    (ids,) = ctx.saved_tensors
    return None, embedding_sketch(ids, grad, ctx.length, ctx.key).to(ctx.dtype), None, None


embedding_sketch.register_autograd(_sketch_backward, setup_context=_remember)
embedding_sketch_adjoint.register_autograd(_adjoint_backward, setup_context=_remember)
embedding_sketch.register_vmap(batched(embedding_sketch, 0, 0, None, None))
embedding_sketch_adjoint.register_vmap(batched(embedding_sketch_adjoint, 0, 0, None, None))
