"""⟨Sx, Sy⟩ over 200 seeds: its mean is ⟨x, y⟩, and its spread what each operator's formula says."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Generator, Tensor

from backcast.kernels import KINDS, SketchSpec, sketcher

OUT, IN, DIM, SEEDS = 48, 64, 256, 200


def gaussian(draw: Generator) -> tuple[Tensor, Tensor]:
    return torch.randn(24, IN, generator=draw), torch.randn(24, OUT, generator=draw)


def rank_one(draw: Generator) -> tuple[Tensor, Tensor]:
    return torch.randn(1, IN, generator=draw), torch.randn(1, OUT, generator=draw)


def heavy_tailed(draw: Generator) -> tuple[Tensor, Tensor]:
    X, D = gaussian(draw)
    return X.pow(3), D.pow(3)


def outlier_channels(draw: Generator) -> tuple[Tensor, Tensor]:
    X, D = gaussian(draw)
    X[:, [3, 17, 40]] *= 30
    return X, D


GRADIENTS = [gaussian, rank_one, heavy_tailed, outlier_channels]


def pair(gradient) -> tuple[Tensor, Tensor]:
    """X (2, T, I) and D (2, T, O): an example, and one whose gradient has the first's as a part."""
    draw = Generator().manual_seed(1)
    (X, D), (Y, E) = gradient(draw), gradient(draw)
    X, D = torch.cat([X, Y]), torch.cat([D, E])
    alone = X.clone()
    alone[len(alone) // 2 :] = 0
    return torch.stack([alone, X]), torch.stack([D, D])


@cache
def sketches(kind: str, gradient, name: str = "layer") -> Tensor:
    """(SEEDS, 2, k) float64."""
    X, D = pair(gradient)
    layers = (sketcher(SketchSpec(kind, DIM, seed), name, OUT, IN) for seed in range(SEEDS))
    return torch.stack([layer.sketch(layer.keep(X), D) for layer in layers]).double()


def products(kind: str, gradient) -> list[tuple[Tensor, Tensor, Tensor]]:
    """(A, B, the seeds' values of ⟨SA, SB⟩) for the pair and for the first's norm."""
    X, D = pair(gradient)
    G, found = (D.mT @ X).double(), sketches(kind, gradient)
    return [(G[0], G[j], (found[:, 0] * found[:, j]).sum(1)) for j in (0, 1)]


def jl_variance(A: Tensor, B: Tensor) -> Tensor:
    return (A.square().sum() * B.square().sum() + (A * B).sum() ** 2) / DIM


def kron_variance(A: Tensor, B: Tensor) -> Tensor:
    """As docs/kernels.md has it."""
    k_o = k_i = DIM**0.5
    M, N = A @ B.T, A.T @ B
    both = 2 * (M.square().sum() + N.square().sum() + (M @ M).trace()) / DIM
    return jl_variance(A, B) + both + ((k_i - 1) * one_side(M) + (k_o - 1) * one_side(N)) / DIM


def one_side(M: Tensor) -> Tensor:
    """Var(pᵀMp) for random signs p."""
    return M.square().sum() + (M @ M).trace() - 2 * M.diagonal().square().sum()


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("kind", KINDS)
def test_inner_products_are_unbiased(kind, gradient):
    for A, B, found in products(kind, gradient):
        assert abs(found.mean() - (A * B).sum()) < 4 * found.std() / SEEDS**0.5 + 1e-4 * A.norm() * B.norm()


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("kind", ["sjlt", "dense", "tile"])
def test_flat_sketches_are_as_good_as_johnson_lindenstrauss(kind, gradient):
    for A, B, found in products(kind, gradient):
        assert found.std() < 1.25 * jl_variance(A, B).sqrt()


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_kron_is_as_good_as_its_formula_says_and_no_better(gradient):
    for A, B, found in products("kron", gradient):
        assert 0.8 < found.std() / kron_variance(A, B).sqrt() < 1.25


def test_kron_is_far_from_johnson_lindenstrauss_on_a_rank_one_norm():
    A, _, found = products("kron", rank_one)[0]
    assert found.std() > 4 * jl_variance(A, A).sqrt()


@pytest.mark.parametrize("kind", KINDS)
def test_layers_can_be_added_for_their_cross_terms_vanish(kind):
    cross = (sketches(kind, gaussian)[:, 0] * sketches(kind, gaussian, "another layer")[:, 1]).sum(1)
    assert abs(cross.mean()) < 4 * cross.std() / SEEDS**0.5
