"""How much to choose."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from numbers import Integral

from backcast.errors import InputError

_FORM = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(%?)(?:\s+([A-Za-z_][\w.-]*))?\s*", re.ASCII)

#: The unit in which every example costs one.
EXAMPLES = "examples"


@dataclass(frozen=True)
class Budget:
    """An amount, or a percentage of what the pool holds.

    Attributes:
        asked: as it was written.
        amount: of units, or of hundredths.
        percent: which of the two.
        unit: ``"examples"``, ``"tokens"``, or the name of a column of costs.
    """

    asked: str | int
    amount: Fraction
    percent: bool
    unit: str

    def limit(self, total: float) -> float:
        """What may be spent of a pool that costs ``total`` units.

        A percentage of examples is rounded to the nearest count, halves up, and is at least one example.

        Raises:
            InputError: it is more than the pool holds.
        """
        if self.percent and self.unit == EXAMPLES:
            return max(1, int(self.amount * Fraction(total) / 100 + Fraction(1, 2)))
        if self.percent:
            return float(self.amount * Fraction(total) / 100)
        if self.amount > total:
            raise InputError(f"budget {self.asked!r}: the pool holds only {total:.12g} {self.unit}")
        return float(self.amount)


def parse_budget(budget: str | int) -> Budget:
    """What was asked for.

    Args:
        budget: a count (``500`` or ``"500"``), a percentage of the pool (``"5%"``), or either of tokens or of a column
            of costs (``"200000 tokens"``, ``"5% tokens"``, ``"12.5 dollars"``). A number such as 0.05 is refused: one
            could not tell 1.0 from 1.

    Raises:
        InputError: it is none of these, is not above zero, or is above 100 %.
    """
    match = _FORM.fullmatch(str(budget)) if isinstance(budget, (str, Integral)) else None
    if isinstance(budget, bool) or not match:
        raise InputError(
            f"budget {budget!r}: give a count such as 500, a percentage such as '5%', or '200000 tokens'"
        )
    amount, percent, unit = Fraction(match[1]), bool(match[2]), match[3] or EXAMPLES
    if unit == EXAMPLES and not percent and amount.denominator != 1:
        raise InputError(f"budget {budget!r}: a count of examples is a whole number; for a share write '5%'")
    if amount <= 0:
        raise InputError(f"budget {budget!r}: it must be above zero")
    if percent and amount > 100:
        raise InputError(f"budget {budget!r}: it must not be above 100 %")
    return Budget(budget if isinstance(budget, str) else int(budget), amount, percent, unit)
