"""From scores and a budget to a selection, by name."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from backcast.data.examples import Rows
from backcast.errors import InputError
from backcast.files import sha256
from backcast.selectors.allowance import Allowance
from backcast.selectors.budget import EXAMPLES, Budget, parse_budget
from backcast.selectors.evidence import Evidence, HasParts, Trial
from backcast.selectors.method import Method
from backcast.selectors.selection import Dropped, Selection
from backcast.vectors import Features, Readable

if TYPE_CHECKING:  # attribution imports torch
    from backcast.attribution.scores import Scores


def select(
    scores: Scores | Rows,
    budget: str | int = "5%",
    method: str = "round_robin",
    seed: int = 0,
    *,
    features: Features | Readable | np.ndarray | None = None,
    parts: HasParts | Mapping[str, np.ndarray] | None = None,
    signals: Mapping[str, Scores | np.ndarray] | None = None,
    costs: Mapping[str, np.ndarray] | None = None,
    groups: Sequence[str] = (),
    weights: Mapping[str, float] | None = None,
    at_least: Mapping[str, str | int] | None = None,
    at_most: Mapping[str, str | int] | None = None,
    trial: Trial | None = None,
    **params: Any,
) -> Selection:
    """Choose a subset of the scored examples.

    The same seed gives the same subset on any machine, and whatever the order of the pool.

    Args:
        scores: the pool's scores; bare `Rows` do for a method that needs none.
        budget: a count (``500``), a percentage (``"5%"``), or either of tokens or another cost (``"200000 tokens"``),
            of the pool before any filter, which may leave less; see `parse_budget`.
        method: one of `SELECTORS`, after any `FILTERS` and, between the two, any of `DIVIDERS`, each with its
            parameters or without: ``"dedup(threshold=0.95) | quota(source) | facility_location"``; see `Method`.
        seed: of every random draw; each method has its own stream.
        features: (n, d), the pool's sketch store or an array in the pool's order, for the methods that
            compare examples with each other.
        parts: the scores split by modality, for the methods that look at that: a `Parts`, or modality → (n,) signed
            parts in the pool's order; see `Evidence`. Where given, the manifest tells those of the chosen rows.
        signals: name → further scores of the pool, such as its perplexity: `Scores`, or (n,) in the pool's order.
        costs: name → (n,) what each example costs, above zero: ``{"tokens": lengths}``; for a budget in that unit.
        groups: a name for each target; a group counts as the mean of its targets, whatever their number.
        weights: group (or target) → how much it counts; 1 where not said.
        at_least, at_most: source → the least and the most to choose of it, as a count (or an amount of the budget's
            unit) or a percentage of the budget. A source that holds less than its floor gives all that it has.
        trial: for the methods that learn from training: positions in the pool → a metric of the model trained on these.
        **params: the selector's parameters (``balance="source"``), or a stage's by its name
            (``dedup={"threshold": 0.95}``).

    Raises:
        InputError: an unknown method or parameter, a budget that is out of range, evidence that the method
            needs and was not given or that is another pool's, or filters that leave no example.
    """
    stages = Method.parse(method, params)
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise InputError(f"seed {seed!r}: it must be a whole number from 0 up")
    evidence = Evidence.of(
        scores, features, parts, signals, groups=tuple(groups), weights=dict(weights or {}), trial=trial
    )
    asked = parse_budget(budget)
    cost = _costs(asked, costs or {}, len(evidence))
    limit = asked.limit(float(cost.sum()))

    kept, left, dropped = np.arange(len(evidence)), evidence, []
    for name, filtering in stages.filters.items():
        drops = filtering.drop(left)
        dropped += [Dropped(name, reason, kept[positions]) for reason, positions in drops.items()]
        keep = np.delete(np.arange(len(left)), np.concatenate([*drops.values()]))
        if not len(keep):
            raise InputError(f"{name}: drops all of the {len(left)} examples that it was given; leave it out")
        kept, left = kept[keep], left.take(keep)

    floors, ceilings = (
        _bounds(given, asked, limit, evidence.rows) for given in (at_least or {}, at_most or {})
    )
    allowance = Allowance(cost[kept], limit, left.rows.sources, floors, ceilings)
    chosen = stages.selector.select(left, allowance, _generator(int(seed), stages.name))
    indices = kept[chosen.indices]
    why = {
        "budget": {"asked": asked.asked, "got": len(chosen), **_spent(asked, limit, cost[indices])},
        "selector": {
            "method": stages.name,
            "params": stages.params,
            **({"notes": dict(chosen.notes)} if chosen.notes else {}),
        },
        "seed": int(seed),
        **_conditions(at_least, at_most, groups, weights),
        **_made(scores, parts),
    }
    return replace(
        chosen,
        evidence=evidence,
        indices=indices,
        costs=None if asked.unit == EXAMPLES else cost[indices],
        why=why,
        dropped=tuple(dropped),
    )


def _costs(asked: Budget, costs: Mapping[str, np.ndarray], n: int) -> np.ndarray:
    """(n,) float64, what each example takes off the budget."""
    if asked.unit == EXAMPLES:
        return np.ones(n)
    if asked.unit not in costs:
        raise InputError(
            f"budget {asked.asked!r}: what an example costs in {asked.unit} is not known; "
            f"give costs={{{asked.unit!r}: ...}}, a number above zero for each"
        )
    cost = np.asarray(costs[asked.unit], dtype=np.float64)
    if cost.shape != (n,) or not (np.isfinite(cost) & (cost > 0)).all():
        raise InputError(f"costs: {asked.unit!r} is not one number above zero for each of {n} examples")
    return cost


def _bounds(given: Mapping[str, str | int], asked: Budget, limit: float, rows: Rows) -> dict[str, float]:
    """Source → amount of the budget's unit; a share of a budget of examples is rounded down to a count."""
    sources = set(rows.sources) if given else set()
    found = {}
    for source, value in given.items():
        if source not in sources:
            named = ", ".join(sorted(sources)[:9])
            raise InputError(f"at_least, at_most: the pool has no source {source!r}; it has {named}")
        bound = parse_budget(value)
        amount = bound.amount * Fraction(limit) / 100 if bound.percent else bound.amount
        found[source] = float(math.floor(amount) if asked.unit == EXAMPLES else amount)
    return found


def _spent(asked: Budget, limit: float, costs: np.ndarray) -> dict[str, Any]:
    """What a budget that is not one of examples came to."""
    if asked.unit == EXAMPLES:
        return {}
    return {"unit": asked.unit, "limit": limit, "spent": float(costs.sum())}


def _conditions(
    at_least: Mapping[str, str | int] | None,
    at_most: Mapping[str, str | int] | None,
    groups: Sequence[str],
    weights: Mapping[str, float] | None,
) -> dict[str, Any]:
    """What was asked of sources and targets, where something was."""
    bounds = {name: dict(given) for name, given in (("at_least", at_least), ("at_most", at_most)) if given}
    sizes = dict(Counter(groups))
    return {
        **({"constraints": bounds} if bounds else {}),
        **({"groups": sizes} if sizes else {}),
        **({"weights": dict(weights)} if weights else {}),
    }


def _made(scores: Scores | Rows, parts: object) -> dict[str, Any]:
    """What the scores were made with and from, and how they were split, if they were."""
    # the parts' origin is the scores', and names places as absolute paths, which a manifest does not
    how = {name: value for name, value in getattr(parts, "made", {}).items() if name != "origin"}
    split = {} if parts is None else {"parts": how}
    if isinstance(scores, Rows):
        return {"scores": None, "origin": {}, **split}
    return {
        "scores": {"method": scores.method, "params": dict(scores.params)},
        "origin": dict(scores.origin),
        **split,
    }


def _generator(seed: int, method: str) -> np.random.Generator:
    entropy = [seed, int(sha256(method)[:16], 16)]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy)))
