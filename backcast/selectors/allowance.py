"""What a selector may still take: a limit on the summed cost, with floors and ceilings by source."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from copy import copy

import numpy as np

from backcast.errors import InputError

#: What rounding may add to a sum of costs, relative to the limit.
ROUNDING = 1e-12


class Allowance:
    """The room that is left for picks among n candidates.

    With limit L, costs c, and of every source s what was spent on it, its floor and its ceiling, a candidate j of s
    fits when its cost leaves what the other floors still ask for::

        c_j ≤ L − spent − Σ_{t≠s} owed_t − max(0, owed_s − c_j),   owed_t = max(0, floor_t − spent_t)

    and c_j ≤ ceiling_s − spent_s; what is taken fits no more. Both sides only move apart as picks are taken, so that
    **what does not fit will never fit again**: a greedy loop may drop it for good. With unit costs and whole floors
    every feasible set can be completed to the floors.

    Args:
        costs: (n,) what each candidate costs, above zero; ones for a budget of examples.
        limit: the most that the picks may cost together.
        sources: each candidate's source; needed for floors and ceilings.
        at_least, at_most: source → the least and the most that is spent on it, in the unit of the costs. A source that
            holds less than its floor gives all that it has.
        within: another allowance, which every pick must fit too and is taken from.
        positions: (n,) the candidates' positions in that one; by default they are the same.

    Attributes:
        size: about how many candidates fit: exactly, with unit costs.
    """

    def __init__(
        self,
        costs: np.ndarray,
        limit: float,
        sources: Sequence[str] = (),
        at_least: Mapping[str, float] | None = None,
        at_most: Mapping[str, float] | None = None,
        within: Allowance | None = None,
        positions: np.ndarray | None = None,
    ) -> None:
        self.costs = costs
        self.left = float(limit) * (1 + ROUNDING)
        self._within = within
        self._positions = positions
        self._taken = bytearray(len(costs))
        self._cheapest = float(costs.min())
        bounded = sorted({*(at_least or {}), *(at_most or {})})
        for name in bounded:
            least, most = (at_least or {}).get(name, 0.0), (at_most or {}).get(name, math.inf)
            if least > most:
                raise InputError(
                    f"source {name!r}: at_least {least:g} is more than at_most {most:g}; mend either"
                )
        self._place = {name: g for g, name in enumerate(bounded)}
        # the sources without bounds share the last place
        place = (
            [self._place.get(s, len(bounded)) for s in sources] if bounded else np.zeros(len(costs), np.int64)
        )
        self._source: list[int] = np.asarray(place).tolist()
        self._room = [(at_most or {}).get(name, math.inf) for name in bounded] + [math.inf]
        held = np.bincount(place, costs, minlength=len(bounded) + 1).tolist()
        floors = [(at_least or {}).get(name, 0.0) for name in bounded] + [0.0]
        self._owed = [min(floor, all_of_it) for floor, all_of_it in zip(floors, held, strict=True)]
        self._free = self.left - sum(self._owed)
        if self._free < 0:
            raise InputError(
                f"at_least asks for {sum(self._owed):g} in all, the budget is {limit:g}; lower the floors"
            )
        self.size = max(1, min(len(costs), int(self.left // costs.mean())))

    @classmethod
    def of(cls, count: int, n: int) -> Allowance:
        """Room for ``count`` of n examples, whatever their sources."""
        return cls(np.ones(n), count)

    @property
    def full(self) -> bool:
        """Whether nothing fits any more, as far as costs alone tell."""
        return self.left < self._cheapest or (self._within is not None and self._within.full)

    def fits(self, j: int) -> bool:
        """Whether candidate j may be taken; once it may not, it never may again."""
        cost, source = self.costs[j], self._source[j]
        return bool(
            not self._taken[j]
            and cost - min(cost, self._owed[source]) <= self._free
            and cost <= self._room[source]
            and (self._within is None or self._within.fits(self._outside(j)))
        )

    def take(self, j: int) -> None:
        """Spend candidate j's cost."""
        cost, source = self.costs[j], self._source[j]
        paid = min(cost, self._owed[source])
        self.left -= cost
        self._free -= cost - paid
        self._owed[source] -= paid
        self._room[source] -= cost
        self._taken[j] = True
        if self._within is not None:
            self._within.take(self._outside(j))

    def first(self, order: Iterable[int]) -> np.ndarray:
        """Take what fits, walking ``order``; the (k,) candidates taken."""
        taken = []
        for j in order:
            if self.full:
                break
            if self.fits(j):
                self.take(j)
                taken.append(j)
        return np.asarray(taken, dtype=np.int64)

    def part(self, limit: float, positions: np.ndarray | None = None) -> Allowance:
        """Room for ``limit`` of what is left; its picks are taken from this allowance too.

        Args:
            limit: in the unit of the costs.
            positions: (r,) those of the candidates that it is for, which it knows as 0 to r − 1; all by default.
        """
        costs = self.costs if positions is None else self.costs[positions]
        return Allowance(costs, min(limit, self.left), within=self, positions=positions)

    def copy(self) -> Allowance:
        """The same room again, for picks that are only tried."""
        other = copy(self)
        other._taken, other._owed, other._room = bytearray(self._taken), [*self._owed], [*self._room]
        other._within = None if self._within is None else self._within.copy()
        return other

    def bounds(self, source: str) -> tuple[float, float]:
        """What must still be spent on a source, and the most that may be."""
        place = self._place.get(source, -1)
        return self._owed[place], self._room[place]

    def _outside(self, j: int) -> int:
        return j if self._positions is None else int(self._positions[j])
