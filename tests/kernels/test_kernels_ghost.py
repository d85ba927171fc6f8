"""Inner products and norms of gradients that are never formed, against those of gradients that are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from backcast.kernels.ghost import ghost_dot, ghost_norm

#: (A, T, B, U, I, O): one of everything, ragged, a token each, more tokens than features.
SHAPES = [(1, 1, 1, 1, 1, 1), (3, 7, 2, 11, 29, 45), (4, 1, 4, 1, 16, 8), (2, 70, 3, 33, 5, 6)]


def inputs(A: int, T: int, B: int, U: int, features: int, outputs: int, dtype=torch.float32) -> list[Tensor]:
    draw = torch.Generator().manual_seed(0)
    shapes = [(A, T, features), (A, T, outputs), (B, U, features), (B, U, outputs)]
    return [torch.randn(shape, generator=draw).to(dtype) for shape in shapes]


def gradients(X: Tensor, D: Tensor) -> Tensor:
    return (D.double().mT @ X.double()).flatten(1)


def relative(got: Tensor, expected: Tensor) -> float:
    return float((got.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("dtype", "error"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-6), (torch.float64, 1e-14)]
)
def test_the_products_are_those_of_the_gradients(shape, dtype, error):
    X, D, Y, E = inputs(*shape, dtype=dtype)
    products, norms = ghost_dot(X, D, Y, E), ghost_norm(X, D)
    assert products.dtype == norms.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert relative(products, gradients(X, D) @ gradients(Y, E).T) < error
    assert relative(norms, gradients(X, D).square().sum(1)) < error


def test_the_norms_are_those_that_autograd_finds():
    torch.manual_seed(0)
    linear, X = torch.nn.Linear(12, 20), torch.randn(5, 9, 12)
    out = linear(X)
    losses = out.tanh().square().sum((1, 2))
    (D,) = torch.autograd.grad(losses.sum(), out, retain_graph=True)
    each = [torch.autograd.grad(loss, linear.weight, retain_graph=True)[0] for loss in losses]
    expected = torch.stack([g.double().square().sum() for g in each])
    assert relative(ghost_norm(X, D), expected) < 1e-5
    assert relative(ghost_dot(X, D, X, D).diagonal(), expected) < 1e-5


def test_padding_adds_nothing():
    X, D, Y, E = inputs(*SHAPES[1])
    X2, D2 = (torch.nn.functional.pad(x, (0, 0, 0, 4), value=v) for x, v in ((X, 3.0), (D, 0.0)))
    torch.testing.assert_close(ghost_dot(X2, D2, Y, E), ghost_dot(X, D, Y, E))
    torch.testing.assert_close(ghost_norm(X2, D2), ghost_norm(X, D))


@pytest.mark.parametrize("broken", [0, 1, 2, 3])
@pytest.mark.parametrize("axis", [1, 2])
def test_inputs_that_do_not_fit_are_refused(broken, axis):
    given = inputs(*SHAPES[1])
    given[broken] = given[broken].narrow(axis, 0, 1)
    with pytest.raises(RuntimeError, match="differ in"):
        ghost_dot(*given)


def test_a_norm_refuses_inputs_that_do_not_fit():
    X, D, _, _ = inputs(*SHAPES[1])
    with pytest.raises(RuntimeError, match="differ in B or T"):
        ghost_norm(X[:, :1], D)
