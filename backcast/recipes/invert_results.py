"""A table of results, inverted for a target: an answer for each of its curves."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from backcast.scaling import Law, fit_law, next_run, read_results

#: Sizes proposed for the next run, as multiples of the largest one made, and its seeds.
MULTIPLES, SEEDS = (0.25, 0.5, 1.0, 2.0, 4.0), (1, 2, 3)


def invert_results(
    results: str | Path,
    target: float,
    higher_is_better: bool,
    low: float | None,
    high: float | None,
    level: float,
) -> list[dict[str, Any]]:
    """For each selector in ``results``, the inversion as JSON, the law's warnings and the next run's sentence.

    A curve of one size, such as the full pool's, has no law and is left out.

    Raises:
        InputError: a table that cannot be read, or in which no curve has two sizes.
    """
    runs = read_results(results)
    sizes = {run.group: {r.n for r in runs if r.group == run.group} for run in runs}
    kept = [run for run in runs if len(sizes[run.group]) > 1] or runs
    bounds = (-math.inf if low is None else low, math.inf if high is None else high)
    laws = fit_law(kept, group="group", higher_is_better=higher_is_better, bounds=bounds)
    return [_answer(law, target, level) for law in laws.values()]


def _answer(law: Law, target: float, level: float) -> dict[str, Any]:
    candidates = [(round(m * law.budgets.n[-1]), seeds) for m in MULTIPLES for seeds in SEEDS]
    return {
        **law.invert(target, level).to_json(),
        "warnings": list(law.warnings),
        "next_run": next_run(law, target, candidates).sentence(),
    }
