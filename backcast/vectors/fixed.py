"""Fixed-point numbers, whose sums are exact and so the same in any order."""

from __future__ import annotations

import numpy as np

#: Fraction bits of a unit row's numbers, for inner products that are exact in float32; see `Features.points`.
POINT_BITS = 11


def fixed(values: np.ndarray, bits: int) -> np.ndarray:
    """The values rounded to multiples of 2^-bits (halves to even), in their own type of float."""
    rounded = values * values.dtype.type(2.0**bits)
    np.rint(rounded, out=rounded)
    rounded *= values.dtype.type(2.0**-bits)
    return rounded
