"""How many examples to choose."""

from __future__ import annotations

import re
from fractions import Fraction
from numbers import Integral

from backcast.errors import InputError

_FORM = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(%?)\s*")


def parse_budget(budget: str | int, n: int) -> int:
    """The number of examples that ``budget`` allows out of a pool of ``n``.

    Args:
        budget: a count (``500`` or ``"500"``), or a percentage of the pool (``"5%"``), which is rounded to
            the nearest count, halves up, and is at least one example. A fraction such as 0.05 is refused: one
            could not tell 1.0 from 1.

    Raises:
        InputError: it is neither, it is not above zero, or it is more than the pool holds.
    """
    match = _FORM.fullmatch(str(budget)) if isinstance(budget, (str, Integral)) else None
    if isinstance(budget, bool) or not match:
        raise InputError(f"budget {budget!r}: give a count such as 500, or a percentage such as '5%'")
    number, percent = Fraction(match[1]), bool(match[2])
    if not percent and number.denominator != 1:
        raise InputError(f"budget {budget!r}: a count of examples is a whole number; for a share write '5%'")
    if number <= 0:
        raise InputError(f"budget {budget!r}: it must be above zero")
    if percent and number > 100:
        raise InputError(f"budget {budget!r}: it must not be above 100 %")
    if percent:
        return max(1, int(number * n / 100 + Fraction(1, 2)))
    if number > n:
        raise InputError(f"budget {budget!r}: the pool holds only {n} examples")
    return int(number)
