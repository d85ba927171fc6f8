"""Random bits: the published Philox vectors, an integer-by-integer oracle, and what signs and integers are."""

from __future__ import annotations

import pytest
import torch

from backcast.kernels import SketchSpec
from backcast.kernels.random import integers, key, philox, sign_words, signs, unpack_signs

M = 0xFFFFFFFF


def philox_by_hand(key: int, counter: tuple[int, int, int, int]) -> tuple[int, ...]:
    """Philox-4x32-10 on Python integers, as the paper writes it."""
    c0, c1, c2, c3 = counter
    k0, k1 = key & M, key >> 32 & M
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = p1 >> 32 ^ c1 ^ k0, p1 & M, p0 >> 32 ^ c3 ^ k1, p0 & M
        k0, k1 = k0 + 0x9E3779B9 & M, k1 + 0xBB67AE85 & M
    return c0, c1, c2, c3


@pytest.mark.parametrize(
    ("key", "counter", "expected"),
    [
        (0, (0, 0, 0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (-1, (M, M, M, M), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            0x299F31D0_A4093822,
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_known_answers_of_random123(key, counter, expected):
    words = philox(key, *(torch.tensor([word]) for word in counter))
    assert tuple(int(word) for word in words) == expected
    assert philox_by_hand(key, counter) == expected


def test_sign_bits_are_where_they_are_said_to_be():
    seed, rows, columns = -123456789, torch.tensor([0, 5, 2**32 + 5]), 300
    got = unpack_signs(sign_words(seed, rows, torch.arange(3)), columns)
    for i, row in enumerate(rows.tolist()):
        for j in range(columns):
            words = philox_by_hand(seed, (row & M, row >> 32, j // 128, 0))
            bit = words[j % 128 // 32] >> j % 32 & 1
            assert got[i, j] == (-1 if bit else 1)


def test_a_smaller_sign_matrix_is_a_corner_of_a_larger_one():
    assert torch.equal(signs(7, 20, 130), signs(7, 50, 400)[:20, :130])


def test_signs_are_balanced_and_uncorrelated():
    matrix = signs(11, 4096, 256).double()
    assert matrix.abs().eq(1).all()
    assert abs(matrix.mean()) < 5 / matrix.numel() ** 0.5
    gram = matrix.T @ matrix / 4096
    assert (gram - torch.eye(256)).abs().max() < 6 / 4096**0.5


def test_integers_are_uniform_on_their_range():
    values = integers(3, 70_000, 7)
    assert values.min() == 0
    assert values.max() == 6
    counts = torch.bincount(values).double()
    assert ((counts - 10_000) ** 2 / 10_000).sum() < 27.9  # χ² with 6 degrees of freedom, 1 in 10,000


def test_integers_and_signs_of_one_key_share_no_block():
    taken = [philox_by_hand(5, (i, 0, 0, 1)) for i in range(2)]
    assert integers(5, 8, 2**31).tolist() == [word * 2**31 >> 32 for block in taken for word in block]


def test_a_key_depends_on_version_seed_layer_and_part():
    spec = SketchSpec()
    keys = {
        key(spec, "a", "p"),
        key(SketchSpec(seed=1), "a", "p"),
        key(SketchSpec(version=spec.version + 1), "a", "p"),
        key(spec, "b", "p"),
        key(spec, "a", "q"),
        key(spec, "ap", ""),
    }
    assert len(keys) == 6
    assert all(-(2**63) <= k < 2**63 for k in keys)
