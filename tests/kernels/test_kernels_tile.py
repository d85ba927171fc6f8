"""`tile` against an explicit matrix, its exact variance, Adam's real step; as PyTorch sees its ops."""

from __future__ import annotations

import itertools

import pytest
import torch

from backcast.errors import InputError
from backcast.kernels.random import integers, sign_words, unpack_signs
from backcast.kernels.tile import (
    AdamDirection,
    tile_adam_sketch,
    tile_adjoint,
    tile_shape,
    tile_sketch,
)

KEYS = [-(2**62) + 12345, 99]
#: (O, I, k): one entry, a single column and row, ragged tiles, k a power of two, one tile, more buckets than a tile.
SIZES = [(1, 1, 1), (9, 1, 8), (1, 50, 8), (11, 13, 7), (20, 30, 64), (3, 5, 5000), (65, 3, 9001)]


def matrix(O: int, I: int, k: int, key: int) -> torch.Tensor:  # noqa: E741
    """S (k, O·I) in float64, written down entry by entry."""
    R, C = tile_shape(k)
    across = -(-I // C)
    tiles = -(-O // R) * across
    turns = integers(key, tiles, k)
    signs = unpack_signs(sign_words(key, torch.arange(tiles), torch.arange(2)), 256)
    S = torch.zeros(k, O, I, dtype=torch.float64)
    for o, i in itertools.product(range(O), range(I)):
        (a, r), (b, c) = divmod(o, R), divmod(i, C)
        tile = a * across + b
        S[(r * C + c + int(turns[tile])) % k, o, i] = signs[tile, r] * signs[tile, 128 + c]
    return S.flatten(1)


def inputs(O: int, I: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:  # noqa: E741
    return torch.randn(2, 3, 5, I).to(dtype), torch.randn(2, 3, 5, O).to(dtype)


def relative(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize(
    ("k", "shape"),
    [
        (1, (1, 1)),
        (2, (1, 2)),
        (7, (2, 2)),
        (1024, (32, 32)),
        (8191, (64, 64)),
        (8192, (64, 128)),
        (10**6, (64, 128)),
    ],
)
def test_a_tile_has_as_many_entries_as_the_buckets_allow(k, shape):
    assert tile_shape(k) == shape


@pytest.mark.parametrize(("O", "I", "k"), SIZES)
def test_the_sketch_is_its_matrix_and_its_adjoint_the_transpose(O, I, k):  # noqa: E741
    X, D = inputs(O, I)
    S = torch.stack([matrix(O, I, k, key) for key in KEYS])
    G = (D.double().mT @ X.double()).flatten(2)
    assert relative(tile_sketch(X, D, k, KEYS), G @ S.mT) < 1e-6
    assert relative(tile_sketch(X.double(), D.double(), k, KEYS), G @ S.mT) < 1e-14
    h = torch.randn(2, 3, k)
    assert relative(tile_adjoint(h, O, I, KEYS).flatten(2), h.double() @ S) < 1e-6


@pytest.mark.parametrize(("dtypes", "result"), [
    ((torch.bfloat16, torch.bfloat16), torch.float32),
    ((torch.float32, torch.float16), torch.float32),
    ((torch.float32, torch.float64), torch.float64),
])  # fmt: skip
def test_any_two_float_dtypes_are_summed_in_float32_or_better(dtypes, result):
    X, D = (x.to(dtype) for x, dtype in zip(inputs(11, 13), dtypes, strict=True))
    got = tile_sketch(X, D, 7, KEYS)
    assert got.dtype == result
    assert relative(got, tile_sketch(X.double(), D.double(), 7, KEYS)) < 1e-6


def test_no_bucket_holds_two_entries_of_a_tile():
    S = matrix(8, 8, 64, 3)
    assert S.abs().sum(1).eq(1).all()  # one tile, as many buckets: a signed permutation


def pairs() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Gradients (4, 4) whose sketches' product a structured sketch would get wrong."""
    x, y = torch.randn(4, 4).double(), torch.randn(4, 4).double()
    outlier = x * torch.tensor([30.0, 1, 1, 1])
    row, column, two = torch.zeros(3, 4, 4).double()
    row[1], column[:, 2], two[0, 0], two[3, 3] = x[1], x[:, 2], 2.0, -1.0
    same = torch.ones(4, 4).double()
    return {
        "random": (x, y),
        "its own": (x, x),
        "rank one": (torch.outer(x[0], y[0]), torch.outer(x[0], y[0])),
        "outlier channel": (outlier, outlier + y),
        "row": (row, row),
        "column": (column, x),
        "two entries": (two, two),
        "constant": (same, same),
    }


@pytest.mark.parametrize("name", pairs())
def test_the_variance_is_a_count_sketch_s_by_enumeration(name):
    """Tiles of 2 × 2 in a 4 × 4 weight, k = 5: all turns and all signs of a pair of tiles, and what each pair adds.

    A third tile's signs are independent, so errors of different pairs are uncorrelated and their variances add.
    """
    torch.manual_seed(0)
    x, y = pairs()[name]
    k, tiles = 5, list(itertools.product((slice(0, 2), slice(2, 4)), repeat=2))
    # For a tile the signs α(r) β(c), (8, 4): a common sign of α and β changes nothing.
    half = torch.tensor([[a, b, c] for a, b, c in itertools.product((1.0, -1.0), repeat=3)]).double()
    alpha, beta = (
        torch.stack([half[:, 0], half[:, 1]], 1),
        torch.stack([torch.ones(8).double(), half[:, 2]], 1),
    )
    signs = (alpha[:, :, None] * beta[:, None, :]).flatten(1)
    variance = 0.0
    for s, t in itertools.combinations(tiles, 2):
        xs, ys, xt, yt = (g[cut].flatten() for g, cut in ((x, s), (y, s), (x, t), (y, t)))
        errors = []
        for turn in range(k):  # only the difference of two turns matters
            meet = torch.zeros(4, 4).double()
            for p, q in itertools.product(range(4), range(4)):
                meet[p, q] = float(p % k == (q + turn) % k)
            one = torch.einsum("ap,pq,bq->ab", signs * xs, meet, signs * yt)
            errors.append(one + torch.einsum("ap,pq,bq->ab", signs * ys, meet, signs * xt))
        variance += float(torch.stack(errors).square().mean())
        assert abs(torch.stack(errors).mean()) < 1e-12
    apart = 1 - torch.block_diag(*[torch.ones(4, 4).double()] * 4)  # pairs of entries of different tiles
    xf, yf = (torch.cat([g[cut].flatten() for cut in tiles]) for g in (x, y))
    exact = float(xf.square() @ apart @ yf.square() + (xf * yf) @ apart @ (xf * yf)) / k
    assert variance == pytest.approx(exact, rel=1e-9, abs=1e-12)
    assert exact <= float(xf.square().sum() * yf.square().sum() + (xf @ yf) ** 2) / k * (1 + 1e-12)


BETAS = (0.9, 0.97)


def test_adam_s_direction_is_the_step_that_torch_takes():
    weight = torch.nn.Parameter(torch.randn(4, 6, dtype=torch.float64))
    optimizer = torch.optim.Adam([weight], lr=0.01, betas=BETAS, eps=1e-3)
    for step in range(1, 5):
        state = optimizer.state[weight]
        m, v = (
            state[name].clone() if state else torch.zeros_like(weight) for name in ("exp_avg", "exp_avg_sq")
        )
        weight.grad, before = torch.randn_like(weight), weight.detach().clone()
        optimizer.step()
        direction = AdamDirection.adam(*BETAS, eps=1e-3, step=step)(weight.grad, m, v)
        torch.testing.assert_close((before - weight.detach()) / 0.01, direction, rtol=1e-9, atol=1e-9)


def test_less_s_direction_is_its_formula():
    g, m, v = torch.randn(3, 4, 6).double()
    v = v.square()
    expected = (0.9 * m + 0.1 * g) / (0.97 * v + 0.03 * g**2 + 1e-3).sqrt()
    torch.testing.assert_close(AdamDirection.less(*BETAS, eps=1e-3)(g, m, v), expected)


def test_a_step_before_the_first_is_refused():
    with pytest.raises(InputError, match="step 0 must be at least 1"):
        AdamDirection.adam(*BETAS, eps=1e-8, step=0)


def numbers(direction: AdamDirection) -> tuple[float, ...]:
    d = direction
    return d.beta1, d.beta2, d.c1, d.c2, d.eps_in, d.eps_out


@pytest.mark.parametrize("direction", [AdamDirection.adam(*BETAS, 1e-8, 2), AdamDirection.less(*BETAS, 1e-6)])
def test_the_sketch_of_a_direction_is_the_matrix_times_it(direction):
    O, I, k = 11, 13, 7  # noqa: E741
    X, D = inputs(O, I)
    m, v = torch.randn(2, O, I), torch.rand(2, O, I)
    G = D.double().mT @ X.double()
    expected = direction(G, m.double()[:, None], v.double()[:, None]).flatten(2)
    S = torch.stack([matrix(O, I, k, key) for key in KEYS])
    assert relative(tile_adam_sketch(X, D, m, v, k, KEYS, *numbers(direction)), expected @ S.mT) < 1e-6


def test_a_direction_has_no_derivative():
    X, D = inputs(4, 6)
    m = torch.rand(2, 4, 6)
    sketch = tile_adam_sketch(
        X.requires_grad_(), D, m, m, 8, KEYS, *numbers(AdamDirection.less(*BETAS, 1e-8))
    )
    with pytest.raises(InputError, match="not linear in the gradient"):
        sketch.sum().backward()


def test_inputs_that_do_not_fit_are_refused():
    X, D = inputs(4, 6)
    with pytest.raises(RuntimeError, match="differ in L, B or T"):
        tile_sketch(X[:, :, :4], D, 8, KEYS)
    with pytest.raises(RuntimeError, match="1 keys for 2 layers"):
        tile_sketch(X, D, 8, KEYS[:1])


def _x(*shape: int) -> torch.Tensor:
    return torch.randn(shape, requires_grad=True)


def test_opcheck_of_a_direction_s_sketch():
    X, D, m, v = (x.detach() for x in (_x(2, 2, 3, 5), _x(2, 2, 3, 4), _x(2, 4, 5), _x(2, 4, 5).square()))
    torch.library.opcheck(tile_adam_sketch, (X, D, m, v, 6, KEYS, *numbers(AdamDirection.less(*BETAS, 1e-8))))


def test_an_example_has_the_same_bits_in_every_batch():
    X, D = inputs(20, 30)
    whole = tile_sketch(X, D, 64, KEYS)
    assert torch.equal(tile_sketch(X[:, 1:], D[:, 1:], 64, KEYS), whole[:, 1:])
    assert torch.equal(tile_sketch(X[1:], D[1:], 64, KEYS[1:]), whole[1:])
