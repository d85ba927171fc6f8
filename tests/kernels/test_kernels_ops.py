"""The ops against explicit matrices in float64, and as PyTorch sees them: fakes, gradients, compilation."""

from __future__ import annotations

import pytest
import torch

from backcast.kernels.dense import dense_jl, dense_jl_adjoint
from backcast.kernels.embedding import embedding_sketch, embedding_sketch_adjoint
from backcast.kernels.ghost import ghost_dot, ghost_norm
from backcast.kernels.kron import kron_sketch, project
from backcast.kernels.random import integers, signs
from backcast.kernels.sjlt import sjlt, sjlt_adjoint
from backcast.kernels.tile import tile_adjoint, tile_sketch

KEY = -(2**62) + 12345


def sjlt_matrix(n: int, k: int) -> torch.Tensor:
    """S (k, n) written down entry by entry."""
    chunks = -(-n // k)
    turns, sign = integers(KEY, chunks, k), signs(KEY, k, chunks)
    S = torch.zeros(k, n, dtype=torch.float64)
    for i in range(n):
        chunk, c = divmod(i, k)
        bucket = (c + int(turns[chunk])) % k
        S[bucket, i] = sign[bucket, chunk]
    return S


def dense_matrix(n: int, k: int) -> torch.Tensor:
    return signs(KEY, n, k).double().T / k**0.5


FLAT = [(sjlt, sjlt_adjoint, sjlt_matrix), (dense_jl, dense_jl_adjoint, dense_matrix)]
FLAT_IDS = ["sjlt", "dense_jl"]
#: (n, k): fewer coordinates than buckets, a last chunk cut short, more than one Philox block of chunks, one bucket.
SIZES = [(1, 8), (5, 8), (8, 8), (100, 24), (1000, 7), (777, 130), (50, 1)]


def relative(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize(("op", "adjoint", "matrix"), FLAT, ids=FLAT_IDS)
@pytest.mark.parametrize(("n", "k"), SIZES)
def test_a_flat_op_is_its_matrix_and_its_adjoint_the_transpose(op, adjoint, matrix, n, k):
    g, h, S = torch.randn(3, n), torch.randn(3, k), matrix(n, k)
    assert relative(op(g, k, KEY), g.double() @ S.T) < 1e-6
    assert relative(adjoint(h, n, KEY), h.double() @ S) < 1e-6
    assert op(g, k, KEY).dtype == torch.float32
    assert relative(op(g.double(), k, KEY), g.double() @ S.T) < 1e-14
    assert relative(op(g.bfloat16(), k, KEY), g.bfloat16().double() @ S.T) < 1e-6


@pytest.mark.parametrize(("op", "adjoint", "matrix"), FLAT, ids=FLAT_IDS)
@pytest.mark.parametrize("coordinate", [0, 499, 999])
def test_first_last_and_single_coordinates_are_projected(op, adjoint, matrix, coordinate):
    g = torch.zeros(1, 1000)
    g[0, coordinate] = 3.0
    assert op(g, 64, KEY).norm() == pytest.approx(3.0)


def test_every_coordinate_has_one_bucket_and_chunks_do_not_collide():
    S = sjlt_matrix(1000, 96)
    assert S.count_nonzero(dim=0).eq(1).all()
    assert S[:, :96].count_nonzero(dim=1).eq(1).all()


def test_kron_sketch_is_the_two_sided_product_of_the_gradient():
    X, D = torch.randn(3, 11, 29), torch.randn(3, 11, 17)
    P_o, P_i = signs(1, 17, 6), signs(2, 29, 5)
    G = D.double().mT @ X.double()
    expected = (P_o.double().T @ G @ P_i.double()).flatten(1)
    assert relative(kron_sketch(project(X, P_i), D, P_o), expected) < 1e-6


def test_kron_sketch_refuses_inputs_that_do_not_fit():
    XP, D, P = torch.randn(3, 11, 5), torch.randn(3, 11, 17), signs(1, 17, 6)
    with pytest.raises(RuntimeError):
        kron_sketch(XP[:, :10], D, P)
    with pytest.raises(RuntimeError):
        kron_sketch(XP, D, P[:16])


OPS = [
    pytest.param(project, lambda: (_x(2, 3, 10), _x(10, 4)), id="project"),
    pytest.param(kron_sketch, lambda: (_x(2, 3, 4), _x(2, 3, 9), _x(9, 5)), id="kron_sketch"),
    pytest.param(sjlt, lambda: (_x(2, 50), 12, KEY), id="sjlt"),
    pytest.param(sjlt_adjoint, lambda: (_x(2, 12), 50, KEY), id="sjlt_adjoint"),
    pytest.param(dense_jl, lambda: (_x(2, 50), 12, KEY), id="dense_jl"),
    pytest.param(dense_jl_adjoint, lambda: (_x(2, 12), 50, KEY), id="dense_jl_adjoint"),
    pytest.param(tile_sketch, lambda: (_x(2, 2, 3, 5), _x(2, 2, 3, 4), 6, [KEY, 7]), id="tile_sketch"),
    pytest.param(tile_adjoint, lambda: (_x(2, 2, 6), 4, 5, [KEY, 7]), id="tile_adjoint"),
    pytest.param(embedding_sketch, lambda: (_ids(3, 4), _x(3, 4, 8), 5, KEY), id="embedding_sketch"),
    pytest.param(
        embedding_sketch_adjoint, lambda: (_ids(3, 4), _x(3, 5), 8, KEY), id="embedding_sketch_adjoint"
    ),
    pytest.param(ghost_dot, lambda: (_x(2, 3, 5), _x(2, 3, 2), _x(3, 4, 5), _x(3, 4, 2)), id="ghost_dot"),
    pytest.param(ghost_norm, lambda: (_x(2, 3, 5), _x(2, 3, 2)), id="ghost_norm"),
]


def _x(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, dtype=dtype, requires_grad=True)


def _ids(*shape: int) -> torch.Tensor:
    return torch.randint(7, shape)


def _is_float(argument: object) -> bool:
    return torch.is_tensor(argument) and argument.is_floating_point()


@pytest.mark.parametrize(("op", "arguments"), OPS)
def test_opcheck(op, arguments):
    torch.library.opcheck(op, arguments())


@pytest.mark.parametrize(("op", "arguments"), OPS)
def test_gradients_are_those_of_finite_differences(op, arguments):
    doubles = [a.detach().double().requires_grad_() if _is_float(a) else a for a in arguments()]
    assert torch.autograd.gradcheck(op, doubles)
    assert torch.autograd.gradgradcheck(op, doubles)


@pytest.mark.parametrize(("op", "arguments"), OPS)
def test_compiles_whole_and_gives_the_same(op, arguments):
    torch.compiler.reset()  # each op counts as another compilation of the same lines, of which there may be few
    given = arguments()
    compiled = torch.compile(lambda *a: op(*a) * 2, fullgraph=True, backend="aot_eager")
    result = compiled(*given)
    torch.testing.assert_close(result, op(*given) * 2)
    floats = [a for a in given if _is_float(a)]
    expected = torch.autograd.grad((op(*given) * 2).sum(), floats)
    torch.testing.assert_close(torch.autograd.grad(result.sum(), floats), expected)


@pytest.mark.parametrize(("op", "arguments"), OPS)
def test_autocast_does_not_reach_into_an_op(op, arguments):
    given = [a.detach() if torch.is_tensor(a) else a for a in arguments()]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = op(*given)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, op(*given))
