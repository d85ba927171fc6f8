"""Facts of the ghost and embedding kernels, run by test_kernels_triton.py as triton_facts.py is."""

from __future__ import annotations

import pytest
import torch
from triton_facts import DEVICE, HALVES, KEY, cases, inside_nans, relative

from backcast.kernels.embedding import embedding_sketch_reference, embedding_sketch_triton
from backcast.kernels.ghost import (
    ghost_dot_reference,
    ghost_dot_triton,
    ghost_norm_reference,
    ghost_norm_triton,
)

#: (A, T, B, U, I, O): one of everything, all ragged, several blocks of everything, T and U past a block by one.
GHOST = [(1, 1, 1, 1, 1, 1), (3, 7, 2, 11, 29, 45), (2, 70, 3, 37, 40, 130), (2, 33, 2, 65, 32, 16)]
#: (B, T, E, k): one of everything, ragged with many chunks, fewer coordinates than buckets, more tokens than a span
#: and more buckets than a block, a single bucket.
EMBEDDING = [(1, 1, 1, 1), (3, 7, 70, 13), (2, 9, 29, 300), (1, 65, 260, 257), (2, 2, 5, 1)]


def ghost_inputs(A, T, B, U, features, outputs, dtype=torch.float32):
    shapes = [(A, T, features), (A, T, outputs), (B, U, features), (B, U, outputs)]
    return [inside_nans(shape, dtype, seed) for seed, shape in enumerate(shapes)]


@pytest.mark.parametrize(("shape", "dtype"), cases(GHOST))
def test_ghost_products_are_their_reference_in_float64(shape, dtype):
    inputs = ghost_inputs(*shape, dtype=dtype)
    doubles = [x.double() for x in inputs]
    assert relative(ghost_dot_triton(*inputs), ghost_dot_reference(*doubles)) < 1e-5
    assert relative(ghost_norm_triton(*inputs[:2]), ghost_norm_reference(*doubles[:2])) < 1e-5


@pytest.mark.parametrize("dtype", HALVES)
def test_ghost_products_take_inputs_and_gradients_of_two_dtypes(dtype):
    X, D, Y, E = ghost_inputs(*GHOST[1])
    D, E = D.to(dtype), E.to(dtype)
    expected = ghost_dot_reference(X.double(), D.double(), Y.double(), E.double())
    assert relative(ghost_dot_triton(X, D, Y, E), expected) < 1e-5


def test_ghost_products_have_the_same_bits_in_every_batch_and_with_any_padding():
    X, D, Y, E = ghost_inputs(3, 33, 2, 34, 20, 17)
    whole, norms = ghost_dot_triton(X, D, Y, E), ghost_norm_triton(X, D)
    assert torch.equal(ghost_dot_triton(X, D, Y, E), whole)
    for part in (slice(0, 1), slice(1, 2)):
        assert torch.equal(ghost_dot_triton(X[part], D[part], Y[part], E[part]), whole[part, part])
        assert torch.equal(ghost_norm_triton(X[part], D[part]), norms[part])
    X, D = (torch.nn.functional.pad(x, (0, 0, 0, 60), value=v) for x, v in ((X, 7.0), (D, 0.0)))
    assert torch.equal(ghost_dot_triton(X, D, Y, E), whole)
    assert torch.equal(ghost_norm_triton(X, D), norms)


def tokens(B: int, T: int) -> torch.Tensor:
    """(B, T) ids, some twice, some that need more than 32 bits of a counter."""
    ids = torch.randint(5, (B, T), generator=torch.Generator().manual_seed(3))
    return torch.where(ids == 4, 2**33 + 7, ids).to(DEVICE)


@pytest.mark.parametrize(("shape", "dtype"), cases(EMBEDDING))
def test_embedding_sketch_is_its_reference_in_float64(shape, dtype):
    B, T, features, k = shape
    D, ids = inside_nans((B, T, features), dtype), tokens(B, T)
    expected = embedding_sketch_reference(ids, D.double(), k, KEY)
    assert relative(embedding_sketch_triton(ids, D, k, KEY), expected) < 1e-5


def test_embedding_sketch_has_the_same_bits_in_every_batch_and_with_any_padding():
    D, ids = inside_nans((3, 66, 30)), tokens(3, 66)
    whole = embedding_sketch_triton(ids, D, 24, KEY)
    assert torch.equal(embedding_sketch_triton(ids, D, 24, KEY), whole)
    for part in (slice(0, 1), slice(1, 3)):
        assert torch.equal(embedding_sketch_triton(ids[part], D[part], 24, KEY), whole[part])
    longer = torch.nn.functional.pad(D, (0, 0, 0, 80))
    assert torch.equal(
        embedding_sketch_triton(torch.nn.functional.pad(ids, (0, 80), value=1), longer, 24, KEY), whole
    )


def test_strided_inputs_are_read_as_they_look():
    X, D, Y, E = (x.mT.contiguous().mT for x in ghost_inputs(*GHOST[1]))
    expected = ghost_dot_reference(X.double(), D.double(), Y.double(), E.double())
    assert relative(ghost_dot_triton(X, D, Y, E), expected) < 1e-5
    ids, D = tokens(7, 3).T, inside_nans((7, 3, 20)).transpose(0, 1)
    expected = embedding_sketch_reference(ids, D.double(), 8, KEY)
    assert relative(embedding_sketch_triton(ids, D, 8, KEY), expected) < 1e-5
