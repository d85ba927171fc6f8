"""How a store's rows are written in fewer bytes, and read as float32 again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache

import numpy as np
from scipy.linalg import hadamard

from backcast.kernels.random import signs

Tensors = dict[str, np.ndarray]
Layout = dict[str, tuple[str, tuple[int, ...]]]

#: dtype → how safetensors names its numbers.
DTYPES = {"float32": "F32", "float16": "F16", "int8": "I8", "sign": "U8"}


def encode(rows: np.ndarray, dtype: str) -> Tensors:
    """The tensors that stand for finite (n, k) rows: "sketches", and but for float32 each row's scale.

    - float32: the rows. 4k bytes a row.
    - float16: x = 2ᵉh with e such that the largest |h| of a row is in [2¹⁴, 2¹⁵): no row is too large or too small,
      and its numbers keep 11 bits. 2k + 4 bytes.
    - int8: x = cq, c = max|x| / 127. k + 4 bytes.
    - sign: x = cRᵀs, s = sign(Rx) with a fixed random rotation R, c = ‖x‖² / ‖Rx‖₁, which makes ⟨cRᵀs, y⟩ right on
      average over R for every y. K/8 + 4 bytes, where K is k rounded up to a power of two. (Gao & Long 2024, RaBitQ,
      section 3.2; R there is uniform, here two rounds of random signs and a Hadamard matrix.)
    """
    numbers, scales = _ENCODERS[dtype](np.asarray(rows, dtype=np.float32))
    tensors = {"sketches": np.ascontiguousarray(numbers)}
    return tensors if scales is None else {**tensors, "scales": scales.astype(np.float32)}


def decode(tensors: Mapping[str, np.ndarray], dtype: str, k: int) -> np.ndarray:
    """(n, k) float32 rows; without scales they are the numbers themselves."""
    numbers, scales = tensors["sketches"], tensors.get("scales")
    rows = _unpacked(numbers, k) if dtype == "sign" else numbers.astype(np.float32)
    return rows if scales is None else rows * scales[:, None]


def layout(dtype: str, n: int, k: int) -> Layout:
    """What `encode` makes of (n, k) rows: name → (number type, shape)."""
    shapes: Layout = {"sketches": (DTYPES[dtype], (n, _rotated_length(k) // 8 if dtype == "sign" else k))}
    return shapes if dtype == "float32" else {**shapes, "scales": ("F32", (n,))}


def _as_they_are(rows: np.ndarray) -> tuple[np.ndarray, None]:
    return rows, None


def _to_half(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    exponents = np.maximum(
        np.frexp(_largest(rows))[1] - 15, -126
    )  # 2⁻¹²⁶ is the least scale that float32 holds
    return np.ldexp(rows, -exponents[:, None]).astype(np.float16), np.ldexp(np.float32(1), exponents)


def _to_bytes(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scales = _largest(rows) / 127
    return np.rint(_divided(rows, scales[:, None])).astype(np.int8), scales


def _to_signs(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    rotated = _rotate(np.pad(rows, ((0, 0), (0, _rotated_length(rows.shape[1]) - rows.shape[1]))))
    # In float64, as the square of a small row's length would underflow.
    scales = _divided(np.square(rows, dtype=np.float64).sum(1), np.abs(rotated).sum(1, dtype=np.float64))
    return np.packbits(rotated >= 0, axis=1), scales


def _unpacked(packed: np.ndarray, k: int) -> np.ndarray:
    return _rotate_back(2 * np.unpackbits(packed, axis=1).astype(np.float32) - 1)[:, :k]


_ENCODERS: dict[str, Callable[[np.ndarray], tuple[np.ndarray, np.ndarray | None]]] = {
    "float32": _as_they_are,
    "float16": _to_half,
    "int8": _to_bytes,
    "sign": _to_signs,
}


def _rotate(x: np.ndarray) -> np.ndarray:
    """R x of (n, K) rows, R = H D₂ H D₁. One round would leave a sparse row's numbers all alike."""
    first, second = _rotation_signs(x.shape[1])
    return _hadamard(_hadamard(x * first) * second)


def _rotate_back(x: np.ndarray) -> np.ndarray:
    first, second = _rotation_signs(x.shape[1])
    return _hadamard(_hadamard(x) * second) * first


def _hadamard(x: np.ndarray) -> np.ndarray:
    """H x of (n, K) rows, H orthonormal and symmetric; H_ab = H_a ⊗ H_b, so two small products."""
    left, right = _hadamard_factors(x.shape[1])
    return (left @ x.reshape(len(x), len(left), len(right)) @ right).reshape(x.shape)


@cache
def _hadamard_factors(length: int) -> tuple[np.ndarray, np.ndarray]:
    left = 1 << (length.bit_length() - 1) // 2
    return tuple((hadamard(n) / np.sqrt(n)).astype(np.float32) for n in (left, length // left))  # type: ignore[return-value]


@cache
def _rotation_signs(length: int) -> np.ndarray:
    """(2, K) of ±1, the same everywhere: stores of signs are read without knowing more."""
    return signs(0, 2, length).numpy()


def _rotated_length(k: int) -> int:
    return max(8, 1 << (k - 1).bit_length())


def _largest(rows: np.ndarray) -> np.ndarray:
    return np.abs(rows).max(axis=1)


def _divided(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """x / y, and 0 where y is."""
    return np.divide(x, y, out=np.zeros_like(x), where=y > 0)
