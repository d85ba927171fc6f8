"""Facts of the tile kernel, run by test_kernels_triton.py as triton_facts.py is."""

from __future__ import annotations

import pytest
import torch
from triton_facts import DEVICE, HALVES, inside_nans, relative

from backcast.kernels import tile
from backcast.kernels.tile import (
    AdamDirection,
    tile_adam_sketch_reference,
    tile_adam_sketch_triton,
    tile_sketch_reference,
    tile_sketch_triton,
)

#: (L, B, T, I, O, k): one of everything, a single column, a single row, ragged with small tiles and T past a block
#: by one, several blocks and a k between two powers of two, tiles as large as a block, more buckets than a tile.
SHAPES = [
    (1, 1, 1, 1, 1, 1),
    (1, 1, 3, 1, 70, 100),
    (1, 1, 3, 130, 1, 64),
    (2, 2, 17, 29, 45, 5),
    (1, 1, 5, 150, 70, 3000),
    (1, 1, 3, 140, 66, 8192),
    (1, 1, 3, 140, 66, 9001),
]
#: In halves: a block cut on both sides, T past a block by one; two blocks.
HALF_SHAPES = [(1, 1, 65, 29, 45, 100), (1, 1, 3, 260, 66, 8192)]
CASES = [(shape, torch.float32) for shape in SHAPES] + [
    *((HALF_SHAPES[0], dtype) for dtype in HALVES),
    (HALF_SHAPES[1], torch.bfloat16),
]
DIRECTIONS = [AdamDirection.adam(0.9, 0.99, 1e-8, 3), AdamDirection.less(0.9, 0.999, 1e-8)]


def inputs(
    L: int, B: int, T: int, features: int, outputs: int, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor]:
    return inside_nans((L, B, T, features), dtype, 1), inside_nans((L, B, T, outputs), dtype, 2)


def moments(L: int, outputs: int, features: int) -> tuple[torch.Tensor, torch.Tensor]:
    return inside_nans((L, outputs, features), seed=3), inside_nans((L, outputs, features), seed=4).square()


def doubles(*tensors: torch.Tensor) -> list[torch.Tensor]:
    return [x.double() for x in tensors]


@pytest.mark.parametrize(("shape", "dtype"), CASES)
def test_the_sketch_is_its_reference_in_float64(shape, dtype):
    *sizes, k = shape
    X, D = inputs(*sizes, dtype)
    keys = [7, -8][: sizes[0]]
    expected = tile_sketch_reference(*doubles(X, D), k, keys)
    assert relative(tile_sketch_triton(X, D, k, keys), expected) < 1e-5


@pytest.mark.parametrize("direction", DIRECTIONS, ids=["adam", "less"])
@pytest.mark.parametrize(
    ("shape", "dtype"), [((2, 1, 17, 29, 45, 3000), torch.float32), (HALF_SHAPES[0], torch.bfloat16)]
)
def test_the_direction_is_its_reference_in_float64(shape, dtype, direction):
    L, _, _, features, outputs, k = shape
    given = (*inputs(*shape[:-1], dtype), *moments(L, outputs, features))
    keys = [7, -8][:L]
    expected = tile_adam_sketch_reference(*doubles(*given), k, keys, direction)
    assert relative(tile_adam_sketch_triton(*given, k, keys, direction), expected) < 1e-5


def test_the_direction_is_zero_outside_the_weight_though_nothing_holds_its_root_from_zero():
    X, D = inputs(1, 1, 2, 3, 5)
    m, v = moments(1, 5, 3)
    direction = AdamDirection(0.9, 0.99, 1.0, 1.0, 0.0, 0.0)
    expected = tile_adam_sketch_reference(*doubles(X, D, m, v), 64, [7], direction)
    assert relative(tile_adam_sketch_triton(X, D, m, v, 64, [7], direction), expected) < 1e-5


def test_a_sketch_has_the_same_bits_in_every_batch_with_any_layers_beside_it_and_with_any_padding():
    X, D = inputs(2, 2, 18, 40, 30)
    whole = tile_sketch_triton(X, D, 150, [7, 8])
    for part in (slice(0, 1), slice(1, 2)):
        assert torch.equal(tile_sketch_triton(X[:, part], D[:, part], 150, [7, 8]), whole[:, part])
    assert torch.equal(tile_sketch_triton(X[1:], D[1:], 150, [8]), whole[1:])
    pad = torch.nn.functional.pad
    longer = pad(X, (0, 0, 0, 20), value=7.0), pad(D, (0, 0, 0, 20))
    assert torch.equal(tile_sketch_triton(*longer, 150, [7, 8]), whole)


def test_a_direction_s_sketch_has_the_same_bits_in_every_batch_and_order_of_launch(monkeypatch):
    X, D = inputs(1, 3, 5, 40, 30)
    m, v = moments(1, 30, 40)

    def sketch(part: slice) -> torch.Tensor:
        return tile_adam_sketch_triton(X[:, part], D[:, part], m, v, 150, [7], DIRECTIONS[0])

    whole = sketch(slice(None))
    assert torch.equal(sketch(slice(1, 3)), whole[:, 1:])
    monkeypatch.setattr(tile, "_TOGETHER", 2)
    assert torch.equal(sketch(slice(None)), whole)


@pytest.mark.parametrize("most", [1, 2 * 8192])
def test_programs_that_take_several_blocks_lose_none(most, monkeypatch):
    X, D = inputs(1, 1, 2, 130, 70)  # four blocks, for one program or two
    monkeypatch.setattr(tile, "_MAX_BUCKETS", most)
    expected = tile_sketch_reference(*doubles(X, D), 1024, [7])
    assert relative(tile_sketch_triton(X, D, 1024, [7]), expected) < 1e-5


def test_strided_inputs_and_two_dtypes_are_read_as_they_look():
    X, D = inside_nans((7, 2, 1, 9)).permute(2, 1, 0, 3), inside_nans((1, 2, 7, 11)).to(torch.bfloat16)
    expected = tile_sketch_reference(*doubles(X, D), 8, [7])
    assert relative(tile_sketch_triton(X, D, 8, [7]), expected) < 1e-5


def test_the_table_is_the_same_on_this_device():
    here, there = (tile._table(70, 90, 100, 7, torch.device(device)) for device in (DEVICE, "cpu"))
    assert torch.equal(here.cpu(), there)
