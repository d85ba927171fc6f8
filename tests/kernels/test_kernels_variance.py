"""The spread of inner products of sketches over seeds, as benchmarks/variance.py measures it: synthetic and real."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from torch import Tensor

from backcast.kernels import KINDS

SEEDS = 200
#: `dense` draws N·k signs a seed, so it sees a corner of each gradient.
CORNER_OUT, CORNER_IN = 8, 64


@pytest.fixture(scope="module")
def variance():
    sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
    import variance

    yield variance
    sys.path.pop(0)


@pytest.fixture(scope="module")
def pairs(variance) -> tuple[Tensor, Tensor]:
    return variance.stacked(list(variance.gradients(steps=15).values()))


@pytest.mark.parametrize("k", [256, 1024, 8192])
@pytest.mark.parametrize("kind", sorted(KINDS.keys() & {"tile", "sjlt"}))
def test_sketches_are_as_good_as_johnson_lindenstrauss(variance, pairs, kind, k):
    found = variance.spread(kind, k, *pairs, SEEDS)
    assert found.shape == (8, 2)
    assert found.min() > 0.5
    assert found.max() <= 1.25


@pytest.mark.parametrize("k", [256, 1024, 8192])
def test_dense_is_as_good_as_johnson_lindenstrauss(variance, pairs, k):
    X, D = pairs
    found = variance.spread("dense", k, X[..., :CORNER_IN], D[..., :CORNER_OUT], SEEDS)
    assert found.min() > 0.5
    assert found.max() <= 1.25
