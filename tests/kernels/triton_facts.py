"""Facts of the Triton kernels, run by test_kernels_triton.py: under the interpreter, and on a card where there is one.

Not collected on its own: Triton reads TRITON_INTERPRET when it is first imported, so the interpreter needs a process
to itself.
"""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

from backcast.kernels.dense import dense_jl_reference, dense_jl_triton
from backcast.kernels.kron import (
    kron_sketch_reference,
    kron_sketch_triton,
    project_reference,
    project_triton,
)
from backcast.kernels.random import philox, signs
from backcast.kernels.sjlt import sjlt_reference, sjlt_triton

DEVICE = "cpu" if triton.knobs.runtime.interpret else "cuda"
KEY = -(2**61) - 77

#: (B, T, I, O, k_i, k_o): one of everything, all ragged, several blocks of everything, T past a block by one.
KRON = [(1, 1, 1, 1, 1, 1), (3, 7, 29, 45, 5, 6), (2, 70, 130, 70, 33, 40), (5, 33, 64, 16, 16, 16)]
#: (B, N, k): a single number, ragged, more chunks than a Philox block has signs, more buckets than a block.
SJLT = [(1, 1, 8), (3, 100, 130), (2, 2300, 17), (1, 700, 300)]
#: (B, N, k): a single number, ragged, more examples than a block and more coordinates than a span, more columns.
DENSE = [(1, 1, 8), (3, 100, 130), (17, 300, 96), (2, 70, 300)]
HALVES = [torch.bfloat16, torch.float16]


def cases(shapes: list[tuple[int, ...]]) -> list[tuple[tuple[int, ...], torch.dtype]]:
    """Every shape in float32, and a ragged one in both halves."""
    return [(shape, torch.float32) for shape in shapes] + [(shapes[1], dtype) for dtype in HALVES]


def inside_nans(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    """Random numbers with NaN in the memory before and behind, so that a read out of bounds shows."""
    numbers = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    memory = torch.full((numbers.numel() + 8192,), torch.nan, dtype=dtype, device=DEVICE)
    view = memory[4096:-4096].view(shape)
    view.copy_(numbers)
    return view


def relative(got: torch.Tensor, expected: torch.Tensor) -> float:
    assert got.dtype == torch.float32
    return float((got.double() - expected).norm() / expected.norm())


@triton.jit
def _philox_kernel(OUT, key: tl.int64, N: tl.constexpr):
    i = tl.arange(0, N)
    words = tl.philox(key, i, i * 3, i * i, i + 1)
    short = tl.randint4x(key, i)
    for word in tl.static_range(4):
        tl.store(OUT + word * N + i, words[word].to(tl.int64))
        tl.store(OUT + (word + 4) * N + i, short[word].to(tl.int64))


@pytest.mark.parametrize("key", [0, 1, -1, KEY])
def test_philox_is_triton_s_bit_for_bit(key):
    out = torch.empty(8, 64, dtype=torch.int64, device=DEVICE)
    _philox_kernel[(1,)](out, key, 64)
    i = torch.arange(64)
    expected = torch.stack([*philox(key, i, i * 3, i * i, i + 1), *philox(key, i)])
    assert torch.equal(out.cpu() & 0xFFFFFFFF, expected)


def test_signs_are_the_same_on_this_device():
    assert torch.equal(signs(KEY, 77, 300, DEVICE).cpu(), signs(KEY, 77, 300))


@pytest.mark.parametrize(("shape", "dtype"), cases(KRON))
def test_kron_is_its_reference_in_float64(shape, dtype):
    B, T, features, outputs, k_i, k_o = shape
    X, D = inside_nans((B, T, features), dtype, 1), inside_nans((B, T, outputs), dtype, 2)
    P_i, P_o = signs(1, features, k_i, DEVICE).bfloat16(), signs(2, outputs, k_o, DEVICE).bfloat16()
    XP = project_triton(X, P_i)
    assert relative(XP, project_reference(X.double(), P_i)) < 1e-5
    expected = kron_sketch_reference(XP.double(), D.double(), P_o)
    assert relative(kron_sketch_triton(XP, D, P_o), expected) < 1e-5


@pytest.mark.parametrize(("shape", "dtype"), cases(SJLT))
def test_sjlt_is_its_reference_in_float64(shape, dtype):
    B, N, k = shape
    g = inside_nans((B, N), dtype)
    assert relative(sjlt_triton(g, k, KEY), sjlt_reference(g.double(), k, KEY)) < 1e-5


@pytest.mark.parametrize(("shape", "dtype"), cases(DENSE))
def test_dense_jl_is_its_reference_in_float64(shape, dtype):
    B, N, k = shape
    g = inside_nans((B, N), dtype)
    assert relative(dense_jl_triton(g, k, KEY), dense_jl_reference(g.double(), k, KEY)) < 1e-5


@pytest.mark.parametrize(
    ("kernel", "batch", "k"), [(sjlt_triton, 2, 2), (dense_jl_triton, 18, 40)], ids=["sjlt", "dense_jl"]
)
def test_a_flat_sketch_has_the_same_bits_in_every_batch(kernel, batch, k):
    g = inside_nans((batch, 300))  # two partial sums of either
    whole = kernel(g, k, KEY)
    assert torch.equal(kernel(g, k, KEY), whole)
    for part in (slice(0, 1), slice(1, batch)):
        assert torch.equal(kernel(g[part], k, KEY), whole[part])


def test_kron_has_the_same_bits_in_every_batch_and_with_any_padding():
    X, D = inside_nans((5, 35, 50), seed=1), inside_nans((5, 35, 40), seed=2)
    P_i, P_o = signs(1, 50, 12, DEVICE), signs(2, 40, 20, DEVICE)

    def sketch(X: torch.Tensor, D: torch.Tensor) -> torch.Tensor:
        return kron_sketch_triton(project_triton(X, P_i), D, P_o)

    whole = sketch(X, D)
    assert torch.equal(sketch(X, D), whole)
    for part in (slice(0, 1), slice(1, 4), slice(4, 5)):
        assert torch.equal(sketch(X[part], D[part]), whole[part])
    longer = torch.nn.functional.pad(D, (0, 0, 0, 40))
    assert torch.equal(sketch(torch.nn.functional.pad(X, (0, 0, 0, 40), value=7.0), longer), whole)


def test_strided_inputs_are_read_as_they_look():
    X, P = inside_nans((30, 4, 7)).transpose(0, 1), signs(1, 7, 3, DEVICE)
    assert relative(project_triton(X, P), project_reference(X.double(), P)) < 1e-5
    g = inside_nans((50, 2)).T
    assert relative(sjlt_triton(g, 8, KEY), sjlt_reference(g.double(), 8, KEY)) < 1e-5
    assert relative(dense_jl_triton(g, 8, KEY), dense_jl_reference(g.double(), 8, KEY)) < 1e-5
