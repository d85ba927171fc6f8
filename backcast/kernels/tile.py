"""`tile`: a count-sketch of a linear layer's exact gradient, added up tile by tile while a GPU multiplies.

The weight matrix is cut into tiles of R × C entries, R·C = M ≤ k. Tile τ has a random turn e_τ, row signs α_τ
and column signs β_τ: its entry (r, c) falls into bucket (r·C + c + e_τ) mod k, with sign α_τ(r) β_τ(c).
Entries of one tile never meet; entries of two tiles meet with probability 1/k. The square of an error is a
sum over two colliding pairs; a tile holds at most two of their four entries, and the signs of two entries
that differ in r or in c have a product of mean zero, so only a pair with itself counts: Var⟨Sx, Sy⟩ ≤
(‖x‖²‖y‖² + ⟨x, y⟩²) / k for any gradients, as if every entry had a sign and a bucket of its own
(Charikar, Chen & Farach-Colton 2002).

The gradient may pass through an optimizer's elementwise direction first (`AdamDirection`), which no sketch of
the plain gradient could still take.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from backcast.errors import InputError
from backcast.kernels import random
from backcast.kernels._triton import block, jit, sum_splits, tl, triton, upcast, usable
from backcast.kernels.layer import LayerSketch, gradients
from backcast.kernels.precision import no_autocast, wide, wide_dtype
from backcast.kernels.random import BITS, integers, sign_words, unpack_signs
from backcast.kernels.spec import SketchSpec
from backcast.kernels.vmap import batched

#: The most entries of a tile: 64 rows and 128 columns.
MAX_TILE = 2**13


class TileSketch(LayerSketch):
    """`tile` for one layer; keeps X as it is."""

    def __init__(
        self, spec: SketchSpec, layer_name: str, out_features: int, in_features: int, device: torch.device
    ) -> None:
        self.dim = spec.dim
        self.key = random.key(spec, layer_name, "tile")

    def keep(self, X: Tensor) -> Tensor:
        return X.detach()

    def sketch(self, kept: Tensor, D: Tensor) -> Tensor:
        return tile_sketch(kept[None], D[None], self.dim, [self.key])[0]


@dataclass(frozen=True)
class AdamDirection:
    """What Adam would make of a gradient g, given its moments m and v of the steps before:

    Γ(g) = c1 (β1 m + (1 − β1) g) / (√(c2 (β2 v + (1 − β2) g²) + eps_in) + eps_out), entry by entry.
    """

    beta1: float
    beta2: float
    c1: float
    c2: float
    eps_in: float
    eps_out: float

    @classmethod
    def adam(cls, beta1: float, beta2: float, eps: float, step: int) -> AdamDirection:
        """The direction of Adam's `step`-th step, the first being 1 (Kingma & Ba 2015, algorithm 1).

        Raises `InputError` for a step below 1.
        """
        if step < 1:
            raise InputError(
                f"Adam step {step} must be at least 1; it is the step that the gradient would make"
            )
        return cls(beta1, beta2, 1 / (1 - beta1**step), 1 / (1 - beta2**step), 0.0, eps)

    @classmethod
    def less(cls, beta1: float, beta2: float, eps: float) -> AdamDirection:
        """LESS's direction: no bias correction, and eps inside the root (Xia et al. 2024, arXiv 2402.04333)."""
        return cls(beta1, beta2, 1.0, 1.0, eps, 0.0)

    def __call__(self, g: Tensor, m: Tensor, v: Tensor) -> Tensor:
        """Γ(g) of broadcastable g, m and v."""
        first = self.c1 * (self.beta1 * m + (1 - self.beta1) * g)
        second = self.c2 * (self.beta2 * v + (1 - self.beta2) * g.square())
        return first / ((second + self.eps_in).sqrt() + self.eps_out)


def tile_shape(k: int) -> tuple[int, int]:
    """(R, C): powers of two as near to a square as can be, R ≤ C, R·C the largest up to k and `MAX_TILE`."""
    bits = min(k, MAX_TILE).bit_length() - 1
    return 2 ** (bits // 2), 2 ** (bits - bits // 2)


@lru_cache(maxsize=512)
def _table(O: int, I: int, k: int, key: int, device: torch.device) -> Tensor:  # noqa: E741
    """(tiles, 9) int32: each tile's turn, and 128 packed signs of its rows and 128 of its columns.

    Tiles are numbered along the rows of the weight.
    """
    R, C = tile_shape(k)
    tiles = -(-O // R) * -(-I // C)
    words = sign_words(key, torch.arange(tiles, device=device), torch.arange(2, device=device))
    return torch.cat([integers(key, tiles, k, device).int()[:, None], words], dim=1)


# What is meant: a bucket and a sign for every entry.


def tile_sketch_reference(X: Tensor, D: Tensor, k: int, keys: Sequence[int]) -> Tensor:
    """The sketches (L, B, k) of the gradients D_bᵀ X_b of X (L, B, T, I) and D (L, B, T, O)."""
    return _sketch(X, D, k, keys, lambda G, layer: G)


def tile_adam_sketch_reference(
    X: Tensor, D: Tensor, m: Tensor, v: Tensor, k: int, keys: Sequence[int], direction: AdamDirection
) -> Tensor:
    """The sketches (L, B, k) of the directions of the gradients D_bᵀ X_b, given m and v (L, O, I)."""
    return _sketch(X, D, k, keys, lambda G, layer: direction(G, m[layer].to(G.dtype), v[layer].to(G.dtype)))


def tile_adjoint_reference(h: Tensor, O: int, I: int, keys: Sequence[int]) -> Tensor:  # noqa: E741
    """The adjoint Sᵀh (L, B, O, I) of h (L, B, k)."""
    L, B, k = h.shape
    out = h.new_empty(L, B, O, I, dtype=wide_dtype(h))
    for layer, key in enumerate(keys):
        bucket, sign = _entries(O, I, k, key, h.device)
        out[layer] = wide(h[layer])[:, bucket] * sign
    return out


def _sketch(
    X: Tensor, D: Tensor, k: int, keys: Sequence[int], direction: Callable[[Tensor, int], Tensor]
) -> Tensor:
    """One gradient at a time, which is all that is ever held of them."""
    out = torch.zeros(*X.shape[:2], k, dtype=wide_dtype(X, D), device=X.device)
    with no_autocast(X):
        for layer, key in enumerate(keys):
            bucket, sign = _entries(D.shape[-1], X.shape[-1], k, key, X.device)
            for b in range(X.shape[1]):
                G = direction(gradients(X[layer, b].to(out.dtype), D[layer, b].to(out.dtype)), layer)
                out[layer, b].index_add_(0, bucket.flatten(), (G * sign).flatten())
    return out


def _entries(O: int, I: int, k: int, key: int, device: torch.device) -> tuple[Tensor, Tensor]:  # noqa: E741
    """The bucket, int32, and the sign, float32, of every entry of the weight: (O, I) each."""
    R, C = tile_shape(k)
    table = _table(O, I, k, key, device)
    grid = (-(-O // R), 1, -(-I // C), 1)
    signs = unpack_signs(table[:, 1:], 2 * BITS)
    alpha = signs[:, :R].view(grid[0], grid[2], R, 1).transpose(1, 2)
    beta = signs[:, BITS : BITS + C].view(grid[0], 1, grid[2], C)
    place = torch.arange(R * C, dtype=torch.int32, device=device).view(1, R, 1, C)
    bucket = (place + table[:, 0].view(grid)) % k
    rows, columns = grid[0] * R, grid[2] * C
    return bucket.view(rows, columns)[:O, :I], (alpha * beta).reshape(rows, columns)[:O, :I]


# The same in Triton. A program takes a run of blocks of one example's gradient, multiplies a block in registers
# and adds it to buckets of its own, in rounds of `MAX_TILE` entries: one tile, or several small ones, each in a
# lane of buckets of its own. No two entries of a round meet, so that a barrier between rounds is all the order
# that is needed. Up to k = 8192 a program's buckets are 32 to 64 KB, which the L1 cache can hold beside the
# product's operands. The programs' buckets are added in order, then the lanes in pairs.

#: The pieces that a block is added in: fewer numbers in flight, so that the registers suffice.
_PIECES = 8
#: The most buckets of all programs of an example, 2 MB of them (where one program needs no more).
_MAX_BUCKETS = 2**19
#: Examples that run at about the same time, so that what they read of m and v is still in the L2 cache.
_TOGETHER = 8


@jit
def _tile_kernel(
    X: tl.tensor,
    D: tl.tensor,
    TABLE: tl.tensor,
    FIRST: tl.tensor,
    SECOND: tl.tensor,
    BUCKETS: tl.tensor,
    batch: tl.int32,
    examples: tl.int32,
    T: tl.int32,
    outputs: tl.int32,
    features: tl.int32,
    k: tl.int32,
    span: tl.int32,
    beta1: tl.float32,
    beta2: tl.float32,
    c1: tl.float32,
    c2: tl.float32,
    eps_in: tl.float32,
    eps_out: tl.float32,
    ADAM: tl.constexpr,
    UPCAST: tl.constexpr,
    R: tl.constexpr,
    C: tl.constexpr,
    LANES: tl.constexpr,
    PIECES: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_I: tl.constexpr,
) -> None:
    group, example = tl.program_id(1), tl.program_id(2) * tl.num_programs(0) + tl.program_id(0)
    if example >= examples:
        return
    example = example.to(tl.int64)
    layer = example // batch
    down, across = tl.cdiv(outputs, R), tl.cdiv(features, C)  # tiles of the layer
    x = X + example * T * features
    d = D + example * T * outputs
    table = TABLE + layer * down * across * 9
    buckets = BUCKETS + (group.to(tl.int64) * examples + example) * LANES * k
    columns = tl.cdiv(features, BLOCK_I)
    block = group * span
    stop = tl.minimum(block + span, tl.cdiv(outputs, BLOCK_O) * columns)
    PIECE: tl.constexpr = BLOCK_O * BLOCK_I // PIECES
    TILES: tl.constexpr = PIECE // (R * C) if PIECE > R * C else 1
    ROWS: tl.constexpr = PIECE // (TILES * C)
    r, c = tl.arange(0, ROWS)[None, :, None], tl.arange(0, C)[None, None, :]
    while block < stop:
        o, i = block // columns * BLOCK_O, block % columns * BLOCK_I
        G = _product(x, d, T, outputs, features, o, i, UPCAST, BLOCK_T, BLOCK_O, BLOCK_I)
        G = tl.permute(tl.reshape(G, (BLOCK_O // R, R, BLOCK_I // C, C)), (0, 2, 1, 3))
        G = tl.permute(tl.reshape(G, (2, 2, 2, PIECE)), (3, 2, 1, 0))
        if ADAM:
            means = FIRST + (layer * outputs + o) * features
            squares = SECOND + (layer * outputs + o) * features
        for piece in tl.static_range(PIECES):
            g = _half(_half(_half(G, piece // 4), piece // 2 % 2), piece % 2)
            g = tl.reshape(g, (TILES, ROWS, C))
            tile = piece * PIECE // (R * C) + tl.arange(0, TILES)[:, None, None]
            first = piece * PIECE // C % R  # row of the tile that the piece begins with
            a, b = o // R + tile // (BLOCK_I // C), i // C + tile % (BLOCK_I // C)
            if ADAM:
                inside = (a * R + first + r < outputs) & (b * C + c < features)
                at = ((a * R - o + first) * features + b * C) + (r * features + c)
                m = tl.load(means + at, mask=inside, other=0.0).to(tl.float32)
                v = tl.load(squares + at, mask=inside, other=1.0).to(tl.float32)
                root = tl.sqrt(c2 * (beta2 * v + (1 - beta2) * g * g) + eps_in)
                g = tl.where(inside, c1 * (beta1 * m + (1 - beta1) * g) / (root + eps_out), 0.0)
            # A tile past the last holds zeros alone, and may take any tile's numbers.
            row = table + (tl.minimum(a, down - 1) * across + tl.minimum(b, across - 1)) * 9
            alpha, beta = _signs(row + 1, first + r), _signs(row + 5, c)
            place = (first * C + tl.load(row)) + (r * C + c)
            bucket = tile % LANES * k + tl.where(place < k, place, place - k)
            tl.store(buckets + bucket, tl.load(buckets + bucket) + g * alpha * beta)
            if (piece + 1) * PIECE % (LANES * R * C) == 0:
                tl.debug_barrier()  # the next round's entries fall into the same buckets
        block += 1


@jit
def _product(
    x: tl.tensor,
    d: tl.tensor,
    T: tl.int32,
    outputs: tl.int32,
    features: tl.int32,
    o: tl.int32,
    i: tl.int32,
    UPCAST: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_I: tl.constexpr,
) -> tl.tensor:
    """DᵀX of one example, for the outputs from o and the features from i; zero past the last of either."""
    t, o, i = tl.arange(0, BLOCK_T), o + tl.arange(0, BLOCK_O), i + tl.arange(0, BLOCK_I)
    d_at, x_at = t[:, None] * outputs + o[None, :], t[:, None] * features + i[None, :]
    G = tl.zeros((BLOCK_O, BLOCK_I), tl.float32)
    for start in range(0, T, BLOCK_T):
        inside = (start + t < T)[:, None]
        u = tl.load(d + d_at, mask=inside & (o < outputs)[None, :], other=0.0)
        w = tl.load(x + x_at, mask=inside & (i < features)[None, :], other=0.0)
        if UPCAST:
            u, w = u.to(tl.float32), w.to(tl.float32)
        G = tl.dot(tl.trans(u), w, G, input_precision="ieee")
        d += BLOCK_T * outputs
        x += BLOCK_T * features
    return G


@jit
def _half(x: tl.tensor, second: tl.constexpr) -> tl.tensor:
    """x[..., second]."""
    low, high = tl.split(x)
    return high if second else low


@jit
def _signs(words: tl.tensor, j: tl.tensor) -> tl.tensor:
    """The ±1 of bit j of packed signs."""
    return (1 - 2 * (tl.load(words + j // 32) >> (j % 32) & 1)).to(tl.float32)


def _check(X: Tensor, D: Tensor, keys: Sequence[int]) -> None:
    torch._check(
        X.shape[:3] == D.shape[:3], lambda: f"{tuple(X.shape)} and {tuple(D.shape)} differ in L, B or T"
    )
    torch._check(len(keys) == X.shape[0], lambda: f"{len(keys)} keys for {X.shape[0]} layers")


def tile_sketch_triton(X: Tensor, D: Tensor, k: int, keys: Sequence[int]) -> Tensor:
    _check(X, D, keys)
    if not (usable(X) and usable(D)):
        return tile_sketch_reference(X, D, k, keys)
    return _launch(X, D, k, keys)


def tile_adam_sketch_triton(
    X: Tensor, D: Tensor, m: Tensor, v: Tensor, k: int, keys: Sequence[int], direction: AdamDirection
) -> Tensor:
    _check(X, D, keys)
    if not (usable(X) and usable(D)):
        return tile_adam_sketch_reference(X, D, m, v, k, keys, direction)
    return _launch(X, D, k, keys, m.contiguous(), v.contiguous(), direction)


def _launch(
    X: Tensor,
    D: Tensor,
    k: int,
    keys: Sequence[int],
    m: Tensor | None = None,
    v: Tensor | None = None,
    direction: AdamDirection | None = None,
) -> Tensor:
    dtype = torch.promote_types(X.dtype, D.dtype)
    X, D = X.to(dtype).contiguous(), D.to(dtype).contiguous()
    (L, B, T, features), outputs = X.shape, D.shape[-1]
    table = torch.stack([_table(outputs, features, k, key, X.device) for key in keys])
    R, C = tile_shape(k)
    lanes = MAX_TILE // (R * C)
    constants = block_sizes(outputs, features, dtype, direction is not None)
    # From the shape and k alone: runs that followed the device or the batch would change the sums' order.
    blocks = triton.cdiv(outputs, constants["BLOCK_O"]) * triton.cdiv(features, constants["BLOCK_I"])
    span = triton.cdiv(blocks, max(_MAX_BUCKETS // (lanes * k), 1))
    groups = triton.cdiv(blocks, span)
    buckets = X.new_zeros(groups, L * B, lanes, k, dtype=torch.float32)
    together = _TOGETHER if direction else 1
    with torch.cuda.device_of(X):
        _tile_kernel[(together, groups, triton.cdiv(L * B, together))](
            X, D, table, m, v, buckets, B, L * B, _bound(T), outputs, features, k, span,
            *(astuple(direction) if direction else (0.0,) * 6),
            ADAM=direction is not None, UPCAST=upcast(X), R=R, C=C, LANES=lanes, PIECES=_PIECES, **constants,
            **launch_options(dtype),
        )  # fmt: skip
        total = sum_splits(buckets)
    while total.shape[1] > 1:  # lanes in pairs
        low, high = total.chunk(2, dim=1)
        total = low + high
    return total.view(L, B, k)


def block_sizes(outputs: int, features: int, dtype: torch.dtype, adam: bool) -> dict[str, int]:
    """The kernel's blocks: as large as the registers allow, for large blocks re-read little of X and D."""
    if dtype == torch.float32:
        return {"BLOCK_T": 16, "BLOCK_O": 64, "BLOCK_I": 128}
    most = 128 if adam else 256
    return {
        "BLOCK_T": 64,
        "BLOCK_O": max(block(outputs, 128), 64),
        "BLOCK_I": max(block(features, most), 128),
    }


def launch_options(dtype: torch.dtype) -> dict[str, int]:
    """Warps, and the stages of loads in flight; for float32, which is bound by arithmetic, they would spill."""
    return {"num_warps": 8, "num_stages": 1 if dtype == torch.float32 else 3}


def _bound(n: int) -> Any:
    """A loop's bound: the interpreter of Triton 3.6 takes no `range` over one that it does not know."""
    return tl.constexpr(n) if triton.knobs.runtime.interpret else n


# The ops: the reference everywhere but on CUDA. The plain sketch is bilinear in X and D.


@torch.library.custom_op("backcast::tile_sketch", mutates_args=())
def tile_sketch(X: Tensor, D: Tensor, k: int, keys: Sequence[int]) -> Tensor:
    """The sketches (L, B, k) of the gradients D_bᵀ X_b, float32 (float64 for float64 X or D).

    Args:
        X: inputs (L, B, T, I) of L layers of one shape, of any float dtype.
        D: output gradients (L, B, T, O), of any float dtype.
        k: number of buckets.
        keys: for each layer 64 bits of randomness as a signed integer, see `backcast.kernels.random.key`.
    """
    _check(X, D, keys)
    return tile_sketch_reference(X, D, k, keys)


@torch.library.custom_op("backcast::tile_adjoint", mutates_args=())
def tile_adjoint(h: Tensor, O: int, I: int, keys: Sequence[int]) -> Tensor:  # noqa: E741
    """(L, B, O, I): the adjoint of the sketch as a map of gradients, of h (L, B, k)."""
    return tile_adjoint_reference(h, O, I, keys)


@torch.library.custom_op("backcast::tile_adam_sketch", mutates_args=())
def tile_adam_sketch(
    X: Tensor,
    D: Tensor,
    m: Tensor,
    v: Tensor,
    k: int,
    keys: Sequence[int],
    beta1: float,
    beta2: float,
    c1: float,
    c2: float,
    eps_in: float,
    eps_out: float,
) -> Tensor:
    """As `tile_sketch`, of the gradients' `AdamDirection`; not linear, so it has no derivative.

    Args:
        X: inputs (L, B, T, I).
        D: output gradients (L, B, T, O).
        m: Adam's first moments (L, O, I), of any float dtype.
        v: its second moments (L, O, I).
        k: number of buckets.
        keys: a key a layer.
        beta1: this and what follows are the fields of an `AdamDirection`, in order.
    """
    _check(X, D, keys)
    direction = AdamDirection(beta1, beta2, c1, c2, eps_in, eps_out)
    return tile_adam_sketch_reference(X, D, m, v, k, keys, direction)


tile_sketch.register_kernel("cuda")(tile_sketch_triton)


@tile_adam_sketch.register_kernel("cuda")
def _(X: Tensor, D: Tensor, m: Tensor, v: Tensor, k: int, keys: Sequence[int], *numbers: float) -> Tensor:
    return tile_adam_sketch_triton(X, D, m, v, k, keys, AdamDirection(*numbers))


@tile_sketch.register_fake
def _(X: Tensor, D: Tensor, k: int, keys: Sequence[int]) -> Tensor:
    _check(X, D, keys)
    return X.new_empty(*X.shape[:2], k, dtype=wide_dtype(X, D))


@tile_adam_sketch.register_fake
def _(X: Tensor, D: Tensor, m: Tensor, v: Tensor, k: int, keys: Sequence[int], *numbers: float) -> Tensor:
    _check(X, D, keys)
    return X.new_empty(*X.shape[:2], k, dtype=wide_dtype(X, D))


@tile_adjoint.register_fake
def _(h: Tensor, O: int, I: int, keys: Sequence[int]) -> Tensor:  # noqa: E741
    return h.new_empty(*h.shape[:2], O, I, dtype=wide_dtype(h))


def _remember(ctx: Any, inputs: tuple[Tensor, Tensor, int, Sequence[int]], output: Tensor) -> None:
    X, D, _, ctx.keys = inputs
    ctx.save_for_backward(X, D)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
    X, D = ctx.saved_tensors
    A = tile_adjoint(grad, D.shape[-1], X.shape[-1], ctx.keys)
    with no_autocast(grad):
        return (D.to(A.dtype) @ A).to(X.dtype), (X.to(A.dtype) @ A.mT).to(D.dtype), None, None


def _remember_adjoint(ctx: Any, inputs: tuple[Tensor, int, int, Sequence[int]], output: Tensor) -> None:
    h, _, _, ctx.keys = inputs
    ctx.dtype, ctx.k = h.dtype, h.shape[-1]


def _adjoint_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
    one = torch.eye(grad.shape[-2], dtype=grad.dtype, device=grad.device).expand(*grad.shape[:2], -1, -1)
    return (
        tile_sketch(grad, one, ctx.k, ctx.keys).to(ctx.dtype),
        None,
        None,
        None,
    )  # 1ᵀ·grad is a gradient too


def _refuse(ctx: Any, grad: Tensor) -> None:
    raise InputError(
        "tile_adam_sketch is not linear in the gradient and has no derivative; detach what it is given"
    )


tile_sketch.register_autograd(_backward, setup_context=_remember)
tile_adjoint.register_autograd(_adjoint_backward, setup_context=_remember_adjoint)
tile_adam_sketch.register_autograd(_refuse)
tile_sketch.register_vmap(batched(tile_sketch, 1, 1, None, None, out_axis=1))
tile_adjoint.register_vmap(batched(tile_adjoint, 1, None, None, None, out_axis=1))
tile_adam_sketch.register_vmap(batched(tile_adam_sketch, 1, 1, *(None,) * 10, out_axis=1))
