"""From scores and a budget to a selection, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from backcast.data.examples import Rows
from backcast.errors import InputError
from backcast.files import sha256
from backcast.selectors.budget import parse_budget
from backcast.selectors.evidence import Evidence, HasFeatures, HasParts
from backcast.selectors.filters.dedup import Dedup
from backcast.selectors.filters.image_needed import ImageNeeded
from backcast.selectors.filters.one_sided_harm import OneSidedHarm
from backcast.selectors.methods.facility_location import FacilityLocation
from backcast.selectors.methods.modality_balance import ModalityBalance
from backcast.selectors.methods.random import Random
from backcast.selectors.methods.round_robin import RoundRobin
from backcast.selectors.methods.top_k import TopK
from backcast.selectors.selection import Dropped, Filter, Selection, Selector

if TYPE_CHECKING:  # attribution imports torch
    from backcast.attribution.scores import Scores

SELECTORS: dict[str, type[Selector]] = {
    "random": Random,
    "top_k": TopK,
    "round_robin": RoundRobin,
    "facility_location": FacilityLocation,
    "modality_balance": ModalityBalance,
}

FILTERS: dict[str, type[Filter]] = {
    "dedup": Dedup,
    "image_needed": ImageNeeded,
    "one_sided_harm": OneSidedHarm,
}

#: The methods that look at the parts of the scores.
BY_PARTS = frozenset({"modality_balance", "image_needed", "one_sided_harm"})


def select(
    scores: Scores | Rows,
    budget: str | int = "5%",
    method: str = "round_robin",
    seed: int = 0,
    *,
    features: HasFeatures | np.ndarray | None = None,
    parts: HasParts | Mapping[str, np.ndarray] | None = None,
    **params: Any,
) -> Selection:
    """Choose a subset of the scored examples.

    The same seed gives the same subset on any machine, and whatever the order of the pool.

    Args:
        scores: the pool's scores; bare `Rows` do for a method that needs none.
        budget: a count (``500``) or a percentage (``"5%"``) of the pool before any filter, which may leave
            fewer; see `parse_budget`.
        method: one of `SELECTORS`, after any `FILTERS`: ``"dedup | facility_location"``.
        seed: of every random draw; each method has its own stream.
        features: (n, d), the pool's sketch store or an array in the pool's order, for the methods that
            compare examples with each other.
        parts: the scores split by modality, for the methods that look at that: a `Parts`, or modality → (n,) signed
            parts in the pool's order; see `Evidence`. Where given, the manifest tells those of the chosen rows.
        **params: the selector's parameters (``balance="source"``), or a stage's by its name
            (``dedup={"threshold": 0.95}``).

    Raises:
        InputError: an unknown method or parameter, a budget that is out of range, evidence that the method
            needs and was not given or that is another pool's, or filters that leave no example.
    """
    names, (*filters, selector) = parse_method(method, params)
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise InputError(f"seed {seed!r}: it must be a whole number from 0 up")
    evidence = Evidence.of(scores, features, parts)
    count = parse_budget(budget, len(evidence))

    kept, left, dropped = np.arange(len(evidence)), evidence, []
    for name, stage in zip(names, filters, strict=False):
        drops = stage.drop(left)
        dropped += [Dropped(name, reason, kept[positions]) for reason, positions in drops.items()]
        keep = np.delete(np.arange(len(left)), np.concatenate([*drops.values()]))
        if not len(keep):
            raise InputError(f"{name}: drops all of the {len(left)} examples that it was given; leave it out")
        kept, left = kept[keep], left.take(keep)
    method = " | ".join(names)
    chosen = selector.select(left, min(count, len(left)), _generator(int(seed), method))
    why = {
        "budget": {"asked": budget if isinstance(budget, str) else int(budget), "got": len(chosen)},
        "selector": {
            "method": method,
            "params": {name: asdict(stage) for name, stage in zip(names, [*filters, selector], strict=True)},
        },
        "seed": int(seed),
        **_made(scores, parts),
    }
    return replace(chosen, evidence=evidence, indices=kept[chosen.indices], why=why, dropped=tuple(dropped))


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


def parse_method(method: str, params: Mapping[str, Any]) -> tuple[list[str], list[Any]]:
    """The names in ``method`` and what they stand for, each with its parameters; the last is the selector.

    Raises:
        InputError: an unknown name or parameter.
    """
    names = [name.strip() for name in method.split("|")]
    *filters, selector = names
    given = {name: params.get(name, {}) for name in names}
    for name in names:
        if not isinstance(given[name], Mapping):
            raise InputError(f"{name}={given[name]!r}: give its parameters by name, {name}={{'...': ...}}")
    given[selector] = {**given[selector], **{key: params[key] for key in params if key not in names}}
    stages = [_build(FILTERS, name, given[name]) for name in filters]
    return names, [*stages, _build(SELECTORS, selector, given[selector])]


def _build(known: Mapping[str, Any], name: str, params: Mapping[str, Any]) -> Any:
    if name not in known:
        raise InputError(
            f"{name!r} is no {'filter' if known is FILTERS else 'selector'}; a method is a selector "
            f"({', '.join(SELECTORS)}), after any filters ({', '.join(FILTERS)}): 'dedup | top_k'"
        )
    allowed = [field.name for field in fields(known[name])]
    unknown = [key for key in params if key not in allowed]
    if unknown:
        raise InputError(f"{name}: no parameter {unknown[0]!r}; it has {', '.join(allowed) or 'none'}")
    try:
        return known[name](**params)
    except TypeError as error:
        raise InputError(f"{name}: a parameter of the wrong type ({error})") from None
