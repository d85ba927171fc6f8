"""A table of results → a law."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import overload

from joblib import Parallel, delayed

from backcast.errors import InputError
from backcast.progress import progress
from backcast.scaling.budgets import Budgets
from backcast.scaling.law import Law
from backcast.scaling.laws import LAWS
from backcast.scaling.pooling import pool
from backcast.scaling.posterior import Posterior, fit_form
from backcast.scaling.stacking import stack
from backcast.scaling.table import Observation, Table, observations
from backcast.scaling.trend import Trend, fit_trend

UNBOUNDED = (-math.inf, math.inf)


@overload
def fit_law(
    table: Table,
    n: str = ...,
    value: str = ...,
    seed: str = ...,
    se: str = ...,
    group: None = ...,
    higher_is_better: bool = ...,
    bounds: tuple[float, float] | None = ...,
    laws: Sequence[str] = ...,
    pooled: bool = ...,
    workers: int = ...,
) -> Law: ...
@overload
def fit_law(
    table: Table,
    n: str = ...,
    value: str = ...,
    seed: str = ...,
    se: str = ...,
    *,
    group: str,
    higher_is_better: bool = ...,
    bounds: tuple[float, float] | None = ...,
    laws: Sequence[str] = ...,
    pooled: bool = ...,
    workers: int = ...,
) -> dict[str, Law]: ...
def fit_law(
    table: Table,
    n: str = "n",
    value: str = "value",
    seed: str = "seed",
    se: str = "se",
    group: str | None = None,
    higher_is_better: bool = False,
    bounds: tuple[float, float] | None = None,
    laws: Sequence[str] = tuple(LAWS),
    pooled: bool = True,
    workers: int = 1,
) -> Law | dict[str, Law]:
    """Fit every law to a table of runs, and weigh them by how well each extrapolated from the earlier budgets.

    The same table, in any order of its rows, gives the same law.

    Args:
        table: a path to CSV or JSON lines, rows (mappings or `Observation`), columns by name, or a pandas DataFrame.
        n, value: its columns of data sizes and of the metric; without a column ``value``, ``metric`` is read.
        seed: its column of seeds. Runs of equal n are taken as repetitions whether it is there or not.
        se: its column of standard errors, for values that are means; used where an n has one row.
        group: its column that tells curves apart, e.g. ``"selector"``; then the answer is a law for each.
        higher_is_better: the metric's direction.
        bounds: its range, e.g. ``(0, 1)`` for an accuracy, ``(0, math.inf)`` for a loss. The better end is where a
            floor may lie; None leaves that open, and wider.
        laws: names out of `LAWS`; `trend` is always beside them.
        pooled: with ``group``, let the groups inform each other, as `pool` does; for curves of one task and model.
        workers: processes that groups are fitted in.

    Raises:
        InputError: for rows that cannot be read (by file and line), fewer than two budgets, values outside ``bounds``,
            and unknown laws.
    """
    runs = observations(table, n, value, seed, se, group)
    bounds = _checked(bounds, runs)
    unknown = [name for name in laws if name not in LAWS]
    if unknown or not laws:
        raise InputError(f"unknown laws {unknown}; choose from {', '.join(LAWS)}")
    if group is None:
        return _fit(runs, "", higher_is_better, bounds, laws)
    groups: dict[str, list[Observation]] = {}
    for run in runs:
        groups.setdefault(run.group, []).append(run)
    fits = Parallel(n_jobs=workers, return_as="generator")(
        delayed(_fit)(members, name, higher_is_better, bounds, laws) for name, members in groups.items()
    )
    found: dict[str, Law] = {}
    with progress("fitting laws", len(groups)) as done:
        for law in fits:
            found[law.group] = law
            done(1)
    return pool(found) if pooled else found


def _fit(
    runs: Sequence[Observation],
    group: str,
    higher_is_better: bool,
    bounds: tuple[float, float],
    laws: Sequence[str],
) -> Law:
    sizes = {run.n for run in runs}
    if len(sizes) < 2:
        whose = f" of group {group!r}" if group else ""
        raise InputError(
            f"the runs{whose} are all at n = {min(sizes):g}; a law needs at least two budgets, better four: run more"
        )
    sign = -1.0 if higher_is_better else 1.0
    budgets = Budgets.of(runs, sign, best=min(sign * bounds[0], sign * bounds[1]))
    posteriors, trend = [fit_form(LAWS[name], budgets) for name in laws], fit_trend(budgets)
    parts: list[Posterior | Trend] = [*posteriors, trend]
    weights = stack([p.scores for p in parts], [p.log_evidence for p in parts])
    named = dict(zip([p.name for p in parts], weights.tolist(), strict=True))
    return Law(budgets, posteriors, trend, named, higher_is_better, bounds, group)


def _checked(bounds: tuple[float, float] | None, runs: Sequence[Observation]) -> tuple[float, float]:
    if bounds is None:
        return UNBOUNDED
    low, high = bounds
    if not low < high:
        raise InputError(f"bounds {low:g} to {high:g} are not a range; give the lower end first")
    outside = next((run for run in runs if not low <= run.value <= high), None)
    if outside is not None:
        raise InputError(
            f"value {outside.value:g} at n = {outside.n:g} is outside the bounds {low:g} to {high:g}; correct either"
        )
    return low, high
