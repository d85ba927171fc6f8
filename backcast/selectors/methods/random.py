"""The baseline that every other selector has to beat."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from backcast.errors import InputError
from backcast.selectors.allowance import Allowance
from backcast.selectors.evidence import Evidence
from backcast.selectors.selection import Selection
from backcast.selectors.turns import turns


@dataclass(frozen=True)
class Random:
    """A uniform draw without replacement: every example gets a random 64-bit key, the smallest keys win. O(n
    log n).

    For one seed a larger budget contains every smaller one.

    Args:
        balance: ``"source"`` draws the same number from every source as long as it lasts (a source with fewer
            gives all that it has); None draws from the pool as a whole.
    """

    balance: str | None = None

    def __post_init__(self) -> None:
        if self.balance not in (None, "source"):
            raise InputError(f"random: balance={self.balance!r} is unknown; give 'source' or leave it out")

    def select(self, evidence: Evidence, allowance: Allowance, rng: np.random.Generator) -> Selection:
        # NumPy keeps the raw stream of a bit generator from release to release, but not what Generator makes
        # of it
        keys = rng.bit_generator.random_raw(len(evidence))
        order = evidence.by_id[np.argsort(keys, kind="stable")]
        if self.balance == "source":
            order = order[np.argsort(turns([evidence.rows.sources[i] for i in order]), kind="stable")]
        chosen = allowance.first(order)
        return Selection(evidence, chosen, np.full(len(chosen), np.nan))
