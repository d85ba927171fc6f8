"""Speed: seconds of one core for a law and its inversion, and for many small curves at once."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial

import numpy as np
from common import Row, clock
from scaling_fits import RUNS, kept, row
from threadpoolctl import threadpool_limits

from backcast.scaling import fit_law

SIZES, ROUNDS = (5, 10, 24), 3
#: Small curves, and sizes of each.
CURVES, QUICK_CURVES, SMALL = 100, 4, 5


def speed(quick: bool) -> list[Row]:
    rounds, curves = (1, QUICK_CURVES) if quick else (ROUNDS, CURVES)
    rows = []
    for sizes in SIZES:
        seconds = _timed(partial(_one, sizes), rounds, f"{sizes}-{rounds}")
        name = f"one fit and inversion, {sizes} sizes: seconds"
        rows.append(row("speed", "law", "synthetic", None, name, seconds, cases=rounds))
    name = f"{curves} curves of {SMALL} sizes: seconds"
    seconds = _timed(partial(_many, curves), 1, f"group-{curves}")
    note = f"{len(os.sched_getaffinity(0))} cores"
    return [*rows, row("speed", "law", "synthetic", None, name, seconds, cases=curves, note=note)]


def _timed(do: Callable[[], None], rounds: int, name: str) -> float:
    """The median; each round on one thread."""
    with threadpool_limits(1):
        seconds = kept(RUNS / "speed" / f"{name}.json", lambda: [clock(do) for _ in range(rounds)])
    return float(np.median(seconds))


def _table(sizes: int, seed: int) -> dict[str, list[float]]:
    rng = np.random.default_rng(seed)
    n = np.geomspace(50, 5000, sizes)
    return {"n": n.tolist(), "value": (0.1 + 2 * n**-0.4 + 0.005 * rng.standard_normal(sizes)).tolist()}


def _one(sizes: int) -> None:
    fit_law(_table(sizes, 0), bounds=(0, 1)).invert(0.12)


def _many(curves: int) -> None:
    tables = [_table(SMALL, seed) for seed in range(curves)]
    table = {
        **{key: [value for one in tables for value in one[key]] for key in ("n", "value")},
        "group": [f"{i:03}" for i in range(curves) for _ in range(SMALL)],
    }
    for law in fit_law(table, group="group", bounds=(0, 1)).values():
        law.invert(0.12)
