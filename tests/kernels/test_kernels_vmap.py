"""``torch.func.vmap`` over every op against a loop of it; no fallback, and gradients through it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from backcast.errors import InputError
from backcast.kernels.dense import dense_jl, dense_jl_adjoint
from backcast.kernels.embedding import embedding_sketch, embedding_sketch_adjoint
from backcast.kernels.ghost import ghost_dot, ghost_norm
from backcast.kernels.kron import kron_sketch, project
from backcast.kernels.sjlt import sjlt, sjlt_adjoint
from backcast.kernels.tile import tile_adam_sketch, tile_adjoint, tile_sketch

N, KEY = 4, 99


@pytest.fixture(autouse=True)
def _no_fallback() -> Iterator[None]:
    """What PyTorch says where an op has no rule and is called in a loop fails the test."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def x(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def ids(*shape: int) -> Tensor:
    return torch.randint(50, shape, generator=torch.Generator().manual_seed(1))


def flat(op) -> Callable[[Tensor], Tensor]:
    return lambda g: op(g, 12, KEY)


def embed(op) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda tokens, D: op(tokens, D, 12, KEY)


P = x(10, 4).sign()
#: name → (function, mapped dimension of each argument, arguments). Every op, every mapped and unmapped mixture.
CASES: dict[str, tuple] = {
    "project": (lambda X: project(X, P), (0,), (x(N, 2, 3, 10),)),
    "project, last": (lambda X: project(X, P), (3,), (x(2, 3, 10, N),)),
    "kron_sketch": (lambda XP, D: kron_sketch(XP, D, P), (0, 1), (x(N, 2, 3, 5), x(2, N, 3, 10))),
    "kron_sketch, one X": (lambda XP, D: kron_sketch(XP, D, P), (None, 0), (x(2, 3, 5), x(N, 2, 3, 10))),
    **{op._name: (flat(op), (1,), (x(3, N, 40),)) for op in (sjlt, sjlt_adjoint, dense_jl, dense_jl_adjoint)},
    "embedding_sketch": (embed(embedding_sketch), (0, 0), (ids(N, 2, 3), x(N, 2, 3, 40))),
    "embedding_sketch, same ids": (embed(embedding_sketch), (None, 2), (ids(2, 3), x(2, 3, N, 40))),
    "embedding_sketch_adjoint": (embed(embedding_sketch_adjoint), (0, 0), (ids(N, 2, 3), x(N, 2, 40))),
    "tile_sketch": (
        lambda X, D: tile_sketch(X, D, 12, [KEY, 7]),
        (1, None),
        (x(2, N, 3, 4, 5), x(2, 3, 4, 6)),
    ),
    "tile_adjoint": (lambda h: tile_adjoint(h, 6, 5, [KEY, 7]), (0,), (x(N, 2, 3, 12),)),
    "ghost_norm": (ghost_norm, (0, 1), (x(N, 2, 3, 5), x(2, N, 3, 6))),
    "ghost_dot, first": (
        ghost_dot,
        (0, 0, None, None),
        (x(N, 2, 3, 5), x(N, 2, 3, 6), x(3, 4, 5), x(3, 4, 6)),
    ),
    "ghost_dot, second": (
        ghost_dot,
        (None, None, 0, 1),
        (x(2, 3, 5), x(2, 3, 6), x(N, 3, 4, 5), x(3, N, 4, 6)),
    ),
    "ghost_dot, both": (
        ghost_dot,
        (0, None, 1, 0),
        (x(N, 2, 3, 5), x(2, 3, 6), x(3, N, 4, 5), x(N, 3, 4, 6)),
    ),
}
every_case = pytest.mark.parametrize(("function", "dims", "arguments"), CASES.values(), ids=CASES)


def loop(function, dims, arguments, i: int) -> Tensor:
    return function(*(a if d is None else a.select(d, i) for a, d in zip(arguments, dims, strict=True)))


@every_case
def test_vmap_is_a_loop(function, dims, arguments):
    got = torch.func.vmap(function, in_dims=dims)(*arguments)
    expected = torch.stack([loop(function, dims, arguments, i) for i in range(N)])
    assert got.shape == expected.shape
    assert (got - expected).norm() <= 1e-6 * expected.norm()


@every_case
def test_gradients_flow_through_vmap(function, dims, arguments):
    leaves = [a.requires_grad_() if a.is_floating_point() else a for a in arguments]
    floats = [a for a in leaves if a.is_floating_point()]
    got = torch.autograd.grad(torch.func.vmap(function, in_dims=dims)(*leaves).square().sum(), floats)
    total = sum(loop(function, dims, leaves, i).square().sum() for i in range(N))
    for a, b in zip(got, torch.autograd.grad(total, floats), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@every_case
def test_vmap_goes_through_a_gradient(function, dims, arguments):
    leaves = [a.requires_grad_() if a.is_floating_point() else a for a in arguments]
    out, first = loop(function, dims, leaves, 0), next(a for a in leaves if a.is_floating_point())
    directions = torch.randn(3, *out.shape, generator=torch.Generator().manual_seed(2))

    def gradient(direction: Tensor) -> Tensor:
        return torch.autograd.grad(out, first, direction, retain_graph=True)[0]

    expected = torch.stack([gradient(direction) for direction in directions])
    torch.testing.assert_close(torch.func.vmap(gradient)(directions), expected, rtol=1e-5, atol=1e-5)


def test_vmap_of_a_sketch_that_has_no_derivative():
    m, v, numbers = x(2, 6, 5), x(2, 6, 5).square(), (0.9, 0.99, 1.5, 2.0, 0.0, 1e-4)

    def sketch(X: Tensor, D: Tensor) -> Tensor:
        return tile_adam_sketch(X, D, m, v, 12, [KEY, 7], *numbers)

    X, D = x(N, 2, 3, 4, 5), x(2, 3, 4, N, 6)
    expected = torch.stack([sketch(X[i], D[..., i, :]) for i in range(N)])
    torch.testing.assert_close(torch.func.vmap(sketch, in_dims=(0, 3))(X, D), expected)


def test_maps_nest():
    g = x(2, N, 3, 40)
    twice = torch.func.vmap(torch.func.vmap(flat(sjlt)))(g)
    torch.testing.assert_close(twice, sjlt(g.flatten(0, 2), 12, KEY).view(2, N, 3, 12))


@pytest.mark.parametrize(
    ("name", "mapped"),
    [
        ("project: argument 2", lambda: torch.func.vmap(project, (None, 0))(x(2, 3, 10), x(N, 10, 4))),
        (
            "kron_sketch: argument 3",
            lambda: torch.func.vmap(kron_sketch, (None, None, 0))(x(2, 3, 5), x(2, 3, 10), x(N, 10, 4)),
        ),
    ],
)
def test_an_operator_s_matrix_cannot_be_mapped_over(name, mapped):
    with pytest.raises(InputError, match=f"^backcast::{name} belongs to the operator.* once for each$"):
        mapped()
