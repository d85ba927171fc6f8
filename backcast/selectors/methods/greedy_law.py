"""As many of the best rows as pay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from backcast.errors import InputError
from backcast.manifests.manifest import number
from backcast.progress import progress
from backcast.scaling import Law, Observation, fit_law
from backcast.selectors.allowance import Allowance
from backcast.selectors.evidence import Evidence, Trial
from backcast.selectors.selection import Selection

#: By what a slice multiplies the number of examples.
GROWTH = 2

#: Sizes measured before the law is asked: with fewer it hardly tells one curve from another.
LEAST = 4

#: Sizes at which the law is looked at.
GRID = 400


@dataclass(frozen=True)
class GreedyLaw:
    """The best examples, until the fitted law says that more would pay less than they cost.

    Examples come by the score for the group of targets that each serves best (ties by mean score, then by content id).
    The trial measures the metric y at growing prefixes, each twice
    the one before, the last being all that the allowance holds. From four sizes on a law y(n) is fitted to all that
    was measured (`backcast.scaling.fit_law`; n is what was spent, in the budget's unit), and before each slice from n
    to n'::

        stop when y(n') − y(n) < price · (n' − n)

    The subset is the prefix with the highest y(n) − price · n under the last law, among those from the first size
    measured up to the slice that was not made: so the answer is finer than the slices, and where the price is paid by
    a smooth law it is the n with y'(n) = price. Where nothing stops it, it is the same among all that the allowance
    holds.

    Floors by source hold: what they ask for is the start of every prefix, the best of each source. A pick's gain is
    what the law says that it adds; NaN in the first slice, below which nothing was measured.

    The laws only ever improve with n. A metric that worsens as poor examples are added looks like one that has levelled
    off, which stops here as well, but not where it was best.

    At most ``slices`` · ``repeats`` trials, and a fit of some seconds for each size from the fourth on.

    Args:
        price: what an example, or a unit of the budget, must add to the metric, above zero.
        slices: sizes to measure, at most.
        repeats: trials at each size, for a metric that varies from one training to the next.
        bounds: the metric's range, such as ``(0, 1)``; the law then knows where it ends.

    Raises:
        InputError: no trial or scores; a metric outside the bounds or not finite.
    """

    price: float = 0.0
    slices: int = 8
    repeats: int = 1
    bounds: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if not 0 < self.price < float("inf"):
            raise InputError(
                f"greedy_law: price={self.price!r} must be above zero: what an example must add to the metric"
            )
        for name, least in (("slices", 2), ("repeats", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise InputError(f"greedy_law: {name}={value!r} must be a whole number from {least} up")
        if self.bounds is not None and len(self.bounds) != 2:
            raise InputError(f"greedy_law: bounds={self.bounds!r} must be two numbers, such as (0, 1)")

    def select(self, evidence: Evidence, allowance: Allowance, rng: np.random.Generator) -> Selection:
        evidence.need_scores("greedy_law")
        trial = evidence.need_trial("greedy_law")
        picks, floor = _prefixes(evidence, allowance)
        spent = np.cumsum(allowance.costs[picks])
        sizes = self._sizes(len(picks), floor)
        table: list[Observation] = []
        law: Law | None = None
        beyond: int | None = None
        with progress("trials", len(sizes) * self.repeats) as done:
            for size, beyond in zip(sizes, [*sizes[1:], None], strict=True):
                for repeat in range(self.repeats):
                    table.append(_measured(trial, picks[:size], float(spent[size - 1]), repeat))
                    done(1)
                measured = sizes.index(size) + 1
                if measured >= LEAST or (measured > 1 and beyond is None):
                    law = fit_law(table, higher_is_better=True, bounds=self._range)
                    if beyond is not None and self._pays(law, spent[size - 1], spent[beyond - 1]) < 0:
                        break
        if law is None:  # one size and no curve
            return Selection(evidence, allowance.first(picks), np.full(len(picks), np.nan))
        known = np.arange(sizes[0], (beyond or len(picks)) + 1)
        curve = _curve(law, spent[known - 1])
        best = int(np.argmax(curve - self.price * spent[known - 1]))
        chosen = allowance.first(picks[: known[best]])
        gains = np.concatenate([np.full(sizes[0], np.nan), np.diff(curve)[:best]])
        return Selection(evidence, chosen, gains, notes=self._notes(law, table, spent, size, beyond))

    @property
    def _range(self) -> tuple[float, float] | None:
        return None if self.bounds is None else (float(self.bounds[0]), float(self.bounds[1]))

    def _sizes(self, most: int, least: int) -> list[int]:
        """How many examples the trials see."""
        halved = [round(most / GROWTH**j) for j in range(self.slices)]
        return sorted({max(1, least, size) for size in halved})

    def _pays(self, law: Law, here: float, there: float) -> float:
        """What the law says that a slice adds to the metric, less its price."""
        now, then = law.predict([here, there]).mean
        return float(then - now - self.price * (there - here))

    def _notes(
        self, law: Law, table: list[Observation], spent: np.ndarray, size: int, beyond: int | None
    ) -> dict[str, Any]:
        """What was measured, what the law says of it, and what came of the next slice."""
        told = sorted({run.n for run in table})
        notes: dict[str, Any] = {
            "measured": [{"n": run.n, "value": number(run.value)} for run in table],
            "predicted": [
                {"n": n, "value": number(value)}
                for n, value in zip(told, law.predict(told).mean.tolist(), strict=True)
            ],
            "law": {name: number(weight) for name, weight in law.weights.items()},
            "warnings": list(law.warnings),
            "next": None,
        }
        if beyond is not None:
            here, there = float(spent[size - 1]), float(spent[beyond - 1])
            price = self.price * (there - here)
            notes["next"] = {
                "n": there,
                "adds": number(self._pays(law, here, there) + price),
                "costs": number(price),
            }
        return notes


def _prefixes(evidence: Evidence, allowance: Allowance) -> tuple[np.ndarray, int]:
    """All that fits, best first after what the floors ask for; and how many these are."""
    picks = allowance.copy().first(evidence.ranked(evidence.best))
    sources = [evidence.rows.sources[pick] for pick in picks]
    owed = {source: allowance.bounds(source)[0] for source in set(sources)}
    asked = np.zeros(len(picks), dtype=bool)
    for at, (pick, source) in enumerate(zip(picks, sources, strict=True)):
        if owed[source] > 0:
            asked[at] = True
            owed[source] -= allowance.costs[pick]
    return np.concatenate([picks[asked], picks[~asked]]), int(asked.sum())


def _measured(trial: Trial, prefix: np.ndarray, spent: float, repeat: int) -> Observation:
    value = float(trial(prefix))
    if not np.isfinite(value):
        raise InputError(
            f"greedy_law: the trial gave {value} for {len(prefix)} examples; it must give a finite number"
        )
    return Observation(spent, value, str(repeat))


def _curve(law: Law, n: np.ndarray) -> np.ndarray:
    """The law's mean at every n of a rising array, from its values at `GRID` of them."""
    grid = n[np.unique(np.geomspace(1, len(n), GRID).astype(np.int64)) - 1]
    return np.interp(np.log(n), np.log(grid), law.predict(grid).mean)
