"""To each source, or to each group of targets, its share of the budget."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from heapq import heapify, heappop, heapreplace
from math import fsum
from typing import Any

import numpy as np

from backcast.errors import InputError
from backcast.selectors.allowance import Allowance
from backcast.selectors.draws import gumbel, spread
from backcast.selectors.evidence import Evidence
from backcast.selectors.selection import Selection, Selector

#: Halvings of the interval in which the water level is looked for.
HALVINGS = 100


@dataclass(frozen=True)
class Quota:
    """Shares of the budget, and within each a draw without replacement that favours high scores.

    The sources share alike, the groups of targets by their weights, see `shares`; what a source cannot fill, or a
    ceiling keeps from it, goes to the others, and a floor comes first. Within a share the examples with the highest
    ``s_i / σ + temperature · Gumbel noise`` are taken, which draws one after the other with probabilities in proportion
    to ``exp(s_i / (σ · temperature))`` (Kool et al. 2019, "Stochastic beams and where to find them"). For a source, s
    is the mean score of its examples; for a group of targets it is the pool's score for that group, and what an earlier
    group took is gone. σ is the standard deviation of s. A pick's gain is its s.

    Before another selector, ``quota(source) | facility_location``, it only divides: that selector fills each share, on
    the source's own examples, or on the pool scored for that group alone; ``temperature`` has no say then.

    The picks are in the order of turns: after any number of them the shares are kept. O(n log n) by source, O(G n) by
    target, for the draws.

    Args:
        by: ``"source"`` or ``"target"`` (a group of targets).
        temperature: from 0, the highest scores, upward; the larger, the nearer to a uniform draw.

    Source: Wettig et al., "QuRating: selecting high-quality data for training language models" (2024, arXiv
    2402.09739), §3, for the draw and the unit of its temperature.
    """

    by: str = "source"
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.by not in ("source", "target"):
            raise InputError(f"quota: by={self.by!r} is unknown; give 'source' or 'target'")
        if not 0 <= self.temperature < float("inf"):
            raise InputError(f"quota: temperature={self.temperature!r} must be a number from 0 up")

    def select(self, evidence: Evidence, allowance: Allowance, rng: np.random.Generator) -> Selection:
        evidence.need_scores("quota")
        return self.over(Draw(self.temperature)).select(evidence, allowance, rng)

    def over(self, selector: Selector) -> Selector:
        """The selector that fills each share with the picks of ``selector``."""
        return Divided(selector, by_source if self.by == "source" else by_target)


@dataclass(frozen=True)
class Draw:
    """The draw within one share; see `Quota`."""

    temperature: float

    def select(self, evidence: Evidence, allowance: Allowance, rng: np.random.Generator) -> Selection:
        keys = evidence.mean / spread(evidence.mean) + self.temperature * gumbel(evidence, rng)
        chosen = allowance.first(evidence.best_first(keys))
        return Selection(evidence, chosen, evidence.mean[chosen])


@dataclass
class Part:
    """What has a share of the budget.

    Attributes:
        name: of the source, or of the group of targets.
        weight: its share is in proportion to.
        least, most: that may be spent on it.
        look: makes its evidence.
        positions: of that evidence's examples in the pool.
        taken: what was chosen for it, by positions in the pool.
    """

    name: str
    weight: float
    least: float
    most: float
    look: Callable[[], Evidence]
    positions: np.ndarray
    taken: list[Selection] = field(default_factory=list)

    def fill(
        self,
        of: Evidence,
        selector: Selector,
        share: float,
        allowance: Allowance,
        rng: np.random.Generator,
    ) -> None:
        """Spend ``share`` on it, a part ``of`` the pool."""
        chosen = selector.select(self.look(), allowance.part(share, self.positions), rng)
        self.taken.append(replace(chosen, evidence=of, indices=self.positions[chosen.indices]))

    @property
    def indices(self) -> np.ndarray:
        return np.concatenate([np.empty(0, dtype=np.int64), *(some.indices for some in self.taken)])


@dataclass(frozen=True)
class Divided:
    """A selector that fills each share of the budget with the picks of another.

    Where costs differ, what no share could use is offered to the parts once more, first to the one furthest behind, so
    that in the end nothing fits any more.
    """

    selector: Selector
    parts: Callable[[Evidence, Allowance], Iterator[Part]]

    def select(self, evidence: Evidence, allowance: Allowance, rng: np.random.Generator) -> Selection:
        parts = list(self.parts(evidence, allowance))
        weights, least, most = np.array([(part.weight, part.least, part.most) for part in parts]).T
        alike = bool((allowance.costs == 1).all())
        amounts = shares(allowance.left, weights, least, most, whole=alike)
        for part, share in zip(parts, amounts.tolist(), strict=True):
            if share > 0:
                part.fill(evidence, self.selector, share, allowance, rng)
        if not alike:
            spent = np.array([allowance.costs[part.indices].sum() for part in parts])
            for place in np.argsort(spent / weights, kind="stable"):
                if not allowance.full:
                    parts[place].fill(evidence, self.selector, allowance.left, allowance, rng)
        return _in_turns(evidence, parts, allowance.costs)


def by_source(evidence: Evidence, allowance: Allowance) -> Iterator[Part]:
    """The sources by name, each with its examples and bounds."""
    members: dict[str, list[int]] = {}
    for position, source in enumerate(evidence.rows.sources):
        members.setdefault(source, []).append(position)
    for source in sorted(members):
        positions = np.asarray(members[source])
        least, most = allowance.bounds(source)
        held = fsum(allowance.costs[positions])
        yield Part(source, 1.0, least, min(most, held), partial(evidence.take, positions), positions)


def by_target(evidence: Evidence, allowance: Allowance) -> Iterator[Part]:
    """The groups of targets in their order, each with the whole pool."""
    evidence.need_scores("quota(target)")
    pool = np.arange(len(evidence))
    for group, name in enumerate(evidence.group_names):
        weight = float(evidence.group_weights[group])
        yield Part(name, weight, 0.0, np.inf, partial(evidence.towards, group), pool)


def shares(
    limit: float, weights: np.ndarray, least: np.ndarray, most: np.ndarray, whole: bool = False
) -> np.ndarray:
    """(G,) shares x_g = clip(λ w_g, least_g, most_g), with the level λ at which they add up to the limit.

    In whole numbers they are those of D'Hondt: beginning with the floors, one at a time goes to the highest
    w_g / (1 + x_g) of those below their ceilings, ties to the first. O(G log G).

    Args:
        limit: what is shared out; where the ceilings add up to less, they are the shares.
        weights: (G,) above zero.
        least, most: (G,) floors and ceilings.
        whole: whether the shares are to be whole numbers.
    """
    most = np.minimum(most, limit)
    low, high = 0.0, float((most / weights).max())
    for _ in range(HALVINGS):
        level = (low + high) / 2
        enough = np.clip(level * weights, least, most).sum() > limit
        low, high = (low, level) if enough else (level, high)
    found = np.clip(high * weights, least, most)
    return _whole(limit, weights, np.ceil(least), np.floor(most), found) if whole else found


def _whole(
    limit: float, weights: np.ndarray, least: np.ndarray, most: np.ndarray, level: np.ndarray
) -> np.ndarray:
    """The shares of D'Hondt; see `shares`."""
    # none of them is below the fractional one rounded down; one less, for what rounding did to that
    found = np.clip(np.floor(level) - 1, least, most)
    waiting = [((found[g] + 1) / weights[g], g) for g in np.flatnonzero(found < most).tolist()]
    heapify(waiting)
    left = int(limit - found.sum())
    while left > 0 and waiting:
        g = waiting[0][1]
        found[g] += 1
        left -= 1
        if found[g] < most[g]:
            heapreplace(waiting, ((found[g] + 1) / weights[g], g))
        else:
            heappop(waiting)
    return found


def _in_turns(evidence: Evidence, parts: Sequence[Part], costs: np.ndarray) -> Selection:
    """The parts' picks, in the order in which a rising water level reaches them."""
    levels = [np.cumsum(costs[part.indices]) / part.weight for part in parts]
    order = np.argsort(np.concatenate(levels), kind="stable")
    runs = [some for part in parts for some in part.taken]
    weights = [run.weights for run in runs if run.weights is not None]
    clusters = [run.clusters for run in runs if run.clusters is not None]
    # the clusters of different runs are different clusters
    first = np.cumsum([0, *(own.max(initial=-1) + 1 for own in clusters)])
    return Selection(
        evidence,
        np.concatenate([part.indices for part in parts])[order],
        np.concatenate([run.gains for run in runs])[order],
        np.concatenate(weights)[order] if weights else None,
        np.concatenate([own + f for own, f in zip(clusters, first, strict=False)])[order]
        if clusters
        else None,
        notes=_notes(parts),
    )


def _notes(parts: Sequence[Part]) -> dict[str, Any]:
    """How many were taken for each part, and what the selector within tells of each."""
    told = {part.name: [dict(some.notes) for some in part.taken if some.notes] for part in parts}
    inner = {name: notes for name, notes in told.items() if notes}
    return {
        "shares": {part.name: len(part.indices) for part in parts},
        **({"within": inner} if inner else {}),
    }
