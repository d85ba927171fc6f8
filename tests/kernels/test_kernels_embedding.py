"""The embedding sketch against its explicit matrix on the dense gradient of the table."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor

from backcast.kernels import SketchSpec
from backcast.kernels.embedding import EmbeddingSketch, embedding_sketch, embedding_sketch_adjoint
from backcast.kernels.random import key, philox, signs

KEY = -(2**62) + 12345
VOCABULARY = 11
#: (T, E, k): fewer coordinates than buckets, as many, a last chunk cut short, more than four chunks, one bucket.
SIZES = [(6, 5, 8), (6, 8, 8), (9, 100, 24), (4, 150, 13), (3, 7, 1), (1, 1, 3)]


def matrix(features: int, k: int) -> Tensor:
    """S (k, V·E) written down entry by entry."""
    sign = signs(KEY, VOCABULARY, features)
    S = torch.zeros(k, VOCABULARY, features, dtype=torch.float64)
    for v in range(VOCABULARY):
        for i in range(features):
            chunk, j = divmod(i, k)
            counter = [torch.tensor(word) for word in (v, 0, chunk // 4, 1)]
            turn = int(philox(KEY, *counter)[chunk % 4]) * k // 2**32
            S[(j + turn) % k, v, i] = sign[v, i]
    return S.flatten(1)


def table_gradients(ids: Tensor, D: Tensor) -> Tensor:
    """(B, V·E): the dense gradients, through one-hot rows."""
    return (torch.nn.functional.one_hot(ids, VOCABULARY).double().mT @ D.double()).flatten(1)


def batch(T: int, features: int, dtype=torch.float32, B: int = 3) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(VOCABULARY, (B, T), generator=draw)
    return ids, torch.randn(B, T, features, generator=draw).to(dtype)


def relative(got: Tensor, expected: Tensor) -> float:
    return float((got.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize(("T", "features", "k"), SIZES)
@pytest.mark.parametrize(
    ("dtype", "error"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-6), (torch.float64, 1e-14)]
)
def test_it_is_its_matrix_times_the_dense_gradient_and_its_adjoint_the_transpose(
    T, features, k, dtype, error
):
    (ids, D), S = batch(T, features, dtype), matrix(features, k)
    got = embedding_sketch(ids, D, k, KEY)
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert relative(got, table_gradients(ids, D) @ S.T) < error
    h = torch.randn(3, k).to(dtype)
    rows = (h.double() @ S).view(3, VOCABULARY, features)
    expected = torch.stack([row[token] for row, token in zip(rows, ids, strict=True)])
    assert relative(embedding_sketch_adjoint(ids, h, features, KEY), expected) < error


def test_the_layer_sketches_the_gradient_that_autograd_finds():
    table = torch.nn.Embedding(VOCABULARY, 20)
    layer = EmbeddingSketch(SketchSpec("kron", 16), "wte", VOCABULARY, 20, "cpu")
    assert layer.key == key(SketchSpec("kron", 16), "wte", "embedding")
    ids, _ = batch(9, 20)
    found = table(ids)
    losses = found.tanh().cumsum(1).square().sum((1, 2))
    (D,) = torch.autograd.grad(losses.sum(), found, retain_graph=True)
    got = layer.sketch(layer.keep(ids.int()), D)
    for b, loss in enumerate(losses):
        (G,) = torch.autograd.grad(loss, table.weight, retain_graph=True)
        every_row = torch.arange(VOCABULARY)[None]
        torch.testing.assert_close(got[b], layer.sketch(every_row, G[None])[0], rtol=1e-5, atol=1e-5)


def test_tokens_add_up_and_padding_adds_nothing():
    ids, D = batch(4, 30)
    ids[:, 1] = ids[:, 0]
    whole = embedding_sketch(ids, D, 8, KEY)
    once = torch.cat([D[:, :1] + D[:, 1:2], D[:, 2:]], 1)
    torch.testing.assert_close(embedding_sketch(ids[:, 1:], once, 8, KEY), whole)
    padded = torch.nn.functional.pad(D, (0, 0, 0, 5))
    longer = torch.nn.functional.pad(ids, (0, 5), value=7)
    torch.testing.assert_close(embedding_sketch(longer, padded, 8, KEY), whole)


def test_an_example_has_the_same_sketch_in_any_batch():
    ids, D = batch(9, 30)
    whole = embedding_sketch(ids, D, 8, KEY)
    assert torch.equal(embedding_sketch(ids[1:2], D[1:2], 8, KEY), whole[1:2])


def test_the_size_of_the_vocabulary_does_not_matter():
    ids = torch.tensor([[2**40 + 3, 3]])
    got = [embedding_sketch(ids[:, [t]], torch.ones(1, 1, 64), 16, KEY) for t in (0, 1)]
    assert not torch.equal(*got)


#: The sketch of dim 4 of rows 0 and 7 of a table, their gradients 1…6 and −1…−6, at version 1. Where a change alters
#: it, raise VERSION.
FROZEN = [1.0, 3.0, -3.0, -17.0]


def test_the_numbers_of_this_version_never_change():
    layer = EmbeddingSketch(SketchSpec("tile", 4, seed=3, version=1), "wte", VOCABULARY, 6, "cpu")
    D = torch.arange(1.0, 7.0) * torch.tensor([1.0, -1.0])[:, None]
    assert layer.sketch(torch.tensor([[0, 7]]), D[None])[0].tolist() == FROZEN


SEEDS, FEATURES, DIM = 400, 200, 64


@cache
def products() -> tuple[Tensor, Tensor, Tensor]:
    """The dense gradients of three examples, and over the seeds ⟨S g_0, S g_1⟩ and ‖S g_2‖²; tokens are shared."""
    ids, D = batch(6, FEATURES)
    D[0], D[2, 1:] = D[1] + D[0], 0
    ids[0] = ids[1]
    layers = (
        EmbeddingSketch(SketchSpec("kron", DIM, seed), "wte", VOCABULARY, FEATURES) for seed in range(SEEDS)
    )
    S = torch.stack([layer.sketch(ids, D) for layer in layers]).double()
    return table_gradients(ids, D), (S[:, 0] * S[:, 1]).sum(1), S[:, 2].square().sum(1)


@pytest.mark.parametrize(("a", "b", "which"), [(0, 1, 1), (2, 2, 2)], ids=["product", "norm of one row"])
def test_it_is_unbiased_and_as_good_as_johnson_lindenstrauss(a, b, which):
    G, found = products()[0], products()[which]
    x, y = G[a], G[b]
    bound = ((x @ x) * (y @ y) + (x @ y) ** 2).sqrt() / DIM**0.5
    assert abs(found.mean() - x @ y) < 4 * found.std() / SEEDS**0.5
    assert 0.5 * bound < found.std() < 1.25 * bound


def test_ids_that_do_not_fit_are_refused():
    ids, D = batch(4, 10)
    with pytest.raises(RuntimeError, match="differ in B or T"):
        embedding_sketch(ids[:, :1], D, 8, KEY)
