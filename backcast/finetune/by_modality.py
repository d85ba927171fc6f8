"""Runs on image-driven, text-driven and mixed examples, and the scaling law of each."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from backcast.data import Examples
from backcast.errors import InputError
from backcast.finetune.runs import Run
from backcast.multimodal.parts import Parts
from backcast.scaling import Law, fit_law
from backcast.selectors import parse_budget, select
from backcast.selectors.modality import CLASSES, MODALITIES, driven

log = logging.getLogger("backcast")

#: The modality of runs on rows of every class.
ALL = "all"


def aligned(parts: Parts, pool: Examples) -> dict[str, np.ndarray]:
    """modality → (n,) signed parts in the pool's order; NaN in rows that were not split.

    Raises:
        InputError: some of the rows that were split are not the pool's.
    """
    place = {
        (row, example.id): i
        for i, (row, example) in enumerate(zip(pool.index.rows.tolist(), pool, strict=True))
    }
    found = [place.get(key, -1) for key in zip(parts.rows.rows.tolist(), parts.rows.ids, strict=True)]
    if -1 in found:
        raise InputError(
            f"row {parts.rows.rows[found.index(-1)]} of the parts is not that of {pool.dataset or 'the pool'}: "
            "it has moved or changed; split again"
        )
    everywhere = {modality: np.full(len(pool), np.nan) for modality in MODALITIES}
    for modality, values in everywhere.items():
        values[found] = parts.parts[modality]
    return everywhere


def by_modality(
    parts: Mapping[str, np.ndarray],
    pool: Examples,
    sizes: Sequence[str | int],
    seeds: int,
    classes: Sequence[str] = CLASSES,
) -> list[Run]:
    """Random subsets of each class of `driven` at several sizes, and as many uniformly random ones beside them.

    For each seed the pool is shuffled once: a class's subset of n are its first n members, the uniform one (selector
    ``random``, modality ``all``) the first n of all. Subsets of one seed so contain each other, and differ between
    classes by nothing but the class. Rows without a split are in none of them.

    Args:
        parts: modality → (n,) signed parts in the pool's order, NaN in rows without a split; see `aligned`.
        pool: the n examples.
        sizes: counts, or percentages of the smallest class (``"25%"``); a class leaves out those that it is too small
            for, and says so.
        seeds: subsets of each class and size, and runs: one on each.
        classes: which classes, ``image``, ``text`` and ``mixed`` by default.

    Raises:
        InputError: an unknown class, parts that do not fit the pool, a bad size, or a class that has room for fewer
            than two.
    """
    unknown = [name for name in classes if name not in CLASSES]
    if unknown or not classes:
        raise InputError(f"unknown classes {unknown}; choose from {', '.join(CLASSES)}")
    if any(len(parts[modality]) != len(pool) for modality in MODALITIES):
        raise InputError(
            f"the parts are not those of the pool's {len(pool)} examples; give one a modality for each"
        )
    split = np.isfinite([parts[modality] for modality in MODALITIES]).all(axis=0)
    kind = driven(parts)
    members = {name: split & (kind == name) for name in classes}
    counts = {name: int(mask.sum()) for name, mask in members.items()}
    smallest = min(counts.values())
    # The first of two names for one size is the one that the table gets.
    asked = {
        int(parse_budget(s).limit(smallest if "%" in str(s) else len(pool))): str(s) for s in reversed(sizes)
    }
    fits = {name: _fitting(name, count, sorted(asked)) for name, count in counts.items()}
    for name, count in counts.items():
        left = ", ".join(str(n) for n in sorted(asked) if n > count)
        log.info("%s: %d rows%s", _selector(name), count, f", too few for {left}" if left else "")
    members[ALL], fits[ALL] = split, sorted({n for some in fits.values() for n in some})

    orders = [select(pool.index, len(pool), "random", seed).indices for seed in range(seeds)]
    return [
        Run(_selector(name), asked[n], tuple(order[mask[order]][:n].tolist()), seed, name)
        for name, mask in members.items()
        for n in fits[name]
        for seed, order in enumerate(orders)
    ]


def laws_by_modality(rows: Sequence[Mapping[str, Any]]) -> dict[str, Law]:
    """selector → law, of the runs of `by_modality` in a sweep's table; others are left out.

    A loss is better when lower, and 0 at best; any other metric of a sweep is a share: better when higher, 1 at best.

    Raises:
        InputError: no such runs, or a selector with runs of one size alone.
    """
    runs = [row for row in rows if row.get("modality")]
    if not runs:
        raise InputError("no run in the table has a modality; make them with by_modality")
    loss = runs[0]["measure"] == "loss"
    return fit_law(
        runs,
        group="selector",
        higher_is_better=not loss,
        bounds=(0, math.inf) if loss else (0, 1),
        pooled=False,  # compared as independent
    )


def _selector(modality: str) -> str:
    """What runs on a class are called in the table."""
    return {"mixed": "mixed", ALL: "random"}.get(modality, f"{modality}-driven")


def _fitting(name: str, count: int, sizes: Sequence[int]) -> list[int]:
    """The sizes that a class of ``count`` rows has room for."""
    fits = [n for n in sizes if n <= count]
    if len(fits) < 2:
        raise InputError(
            f"{_selector(name)}: {count} rows have room for {len(fits)} of the sizes {', '.join(map(str, sizes))}; "
            "a law needs two: give more and smaller sizes, or leave the class out"
        )
    return fits
