"""Counter-based random bits: the same on every device, in every batch, for every launch.

Philox-4x32-10 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011) maps a 64-bit key and
a 128-bit counter to 128 bits. Integer arithmetic alone, so torch here and ``tl.philox`` in a kernel agree
bit for bit.
"""

from __future__ import annotations

import json
from functools import cache
from hashlib import sha256

import torch
from torch import Tensor

from backcast.kernels.spec import SketchSpec

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)

#: Signs that one Philox block holds.
BITS = 128


def key(spec: SketchSpec, layer: str, part: str) -> int:
    """The 64-bit key, as a signed integer, of one part of one layer's operator."""
    text = json.dumps([spec.version, spec.seed, layer, part], ensure_ascii=False, separators=(",", ":"))
    return int.from_bytes(sha256(text.encode()).digest()[:8], "little", signed=True)


def philox(key: int, *counter: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox-4x32-10 of up to four broadcastable int64 tensors of 32-bit counter words, the others zero.

    Returns four int64 tensors of values in [0, 2³²): what ``tl.philox(key, ...)`` gives, as unsigned words.
    """
    counter = torch.broadcast_tensors(*counter)
    zero = torch.zeros_like(counter[0])
    c0, c1, c2, c3 = (*counter, zero, zero, zero)[:4]
    k0, k1 = key & _MASK, key >> 32 & _MASK
    for _ in range(10):
        low, high = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]  # wraps mod 2⁶⁴, so the bits are exact
        c0, c1 = (high >> 32 & _MASK) ^ c1 ^ k0, high & _MASK
        c2, c3 = (low >> 32 & _MASK) ^ c3 ^ k1, low & _MASK
        k0, k1 = k0 + _WEYL[0] & _MASK, k1 + _WEYL[1] & _MASK
    return c0, c1, c2, c3


def sign_words(key: int, rows: Tensor, blocks: Tensor) -> Tensor:
    """The packed signs of `rows` (n,) int64 in `blocks` (m,) of 128 columns: (n, 4m) int32.

    Bit j mod 32 of word j // 32 of a row is column j's sign, set for −1. The counter is (row low, row high,
    block, 0).
    """
    row = rows[:, None]
    words = torch.stack(philox(key, row & _MASK, row >> 32, blocks[None, :]), dim=-1)
    return words.to(torch.int32).flatten(1)  # keeps the low 32 bits


def unpack_signs(words: Tensor, columns: int) -> Tensor:
    """The first `columns` signs of packed `words` (n, w) int32: (n, columns) float32 of ±1."""
    octets = words.contiguous().view(torch.uint8)
    octet_signs = _byte_signs(words.device).index_select(0, octets.flatten().int())
    return octet_signs.view(len(words), -1)[:, :columns]


def signs(key: int, rows: int, columns: int, device: torch.device | str = "cpu") -> Tensor:
    """(rows, columns) float32 of independent, uniform ±1; a smaller request is a corner of a larger one."""
    row = torch.arange(rows, device=device)
    block = torch.arange(-(-columns // BITS), device=device)
    return unpack_signs(sign_words(key, row, block), columns).contiguous()


def integers(key: int, count: int, below: int, device: torch.device | str = "cpu") -> Tensor:
    """(count,) int64, uniform on [0, below) for below ≤ 2³¹: the high word of word × below (Lemire 2019).

    The counter's last word is 1, so that these and a sign of the same key have no block in common.
    """
    counter = torch.arange(-(-count // 4), device=device)
    zero = torch.zeros_like(counter)
    words = torch.stack(philox(key, counter, zero, zero, zero + 1), dim=-1).flatten()[:count]
    return words * below >> 32


@cache
def _byte_signs(device: torch.device) -> Tensor:
    """(256, 8) float32: the signs that a byte's bits stand for, lowest first."""
    bits = torch.arange(256, device=device)[:, None] >> torch.arange(8, device=device) & 1
    return (1 - 2 * bits).float()
