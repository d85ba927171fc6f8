"""What does it cost to know n* as well as a geometric ladder of runs does, if `next_run` names each run?

A truth is a curve with noise: synthetic ones of the laws' own forms, and LCDB's real curves (made to fall, linear in
log n between their sizes) with the scatter of their own splits. Three small budgets of three seeds have been run, and a
target lies 3 to 16 times past them. The ladder goes on in doublings of three seeds; `next_run` chooses among its own
default candidates, one run at a time. After each step the law is fitted anew, and the width of the 90 % interval of n*
noted, as the ratio of its ends.

*share of the ladder's cost*: the least spent by `next_run` at which the median width over the truths is no larger than
the ladder's after so many doublings (*reach*), over what the ladder has spent by then; or, to a given width, the least
spent by either. Spent is Σ n · seeds, past the start.
*cost at stop*, *width at stop*: medians where `next_run` first says that no further run is worth its cost.

What has been run is kept under --work: an interrupted run goes on from there.
"""

from __future__ import annotations

import argparse
import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import HERE, Row, write
from scaling_curves import Curve, read_curves, sample_of
from scipy.optimize import isotonic_regression

from backcast.files import read_json, write_json
from backcast.progress import progress
from backcast.scaling import Law, fit_law, next_run

#: Truths of each kind.
TRUTHS = {"synthetic": 24, "lcdb": 12}
#: The budgets that have been run, as shares of the largest, and seeds at each, the ladder's too.
START, SEEDS = (0.25, 0.5, 1.0), 3
#: Doublings of the ladder, and runs of `next_run` at most, in how many times the ladder's cost.
DOUBLINGS, RUNS = 5, 12
#: Known well enough: nobody goes on; and the widths whose costs are compared.
WIDTH, WIDTHS = 1.3, (4.0, 2.0, 1.5)
#: LCDB's standard errors are of means over this many splits.
SPLITS = 25


@dataclass(frozen=True)
class Truth:
    """A curve whose noise is known.

    Attributes:
        loss, noise: expected value of a run at n, and its standard deviation.
        first: the largest n of the start.
        target: met at ``first`` times 3 to 16.
    """

    name: str
    loss: Callable[[float], float]
    noise: Callable[[float], float]
    first: float
    target: float

    def run(self, n: float, rng: np.random.Generator) -> dict[str, float]:
        return {"n": n, "value": max(0.0, self.loss(n) + self.noise(n) * rng.standard_normal())}


#: (log) cost and width after each step, and whether to stop there.
Trace = list[dict[str, Any]]
#: From the law, the target and the steps so far, the (n, seeds) to run and whether to stop instead.
Policy = Callable[[Law, float, int], tuple[float, int, bool]]


def synthetic(i: int) -> Truth:
    """A power law, a Hill curve or a stretched exponential with random parameters."""
    rng = np.random.default_rng(i)
    floor, b, n0 = rng.uniform(0.03, 0.25), rng.uniform(0.3, 0.9), math.exp(rng.uniform(3.5, 6.5))
    noise, reach = float(rng.choice([0.004, 0.01, 0.02])), math.exp(rng.uniform(math.log(3), math.log(16)))
    forms: list[tuple[str, Callable[[float], float]]] = [
        ("power", lambda n: floor + 0.6 * (n / 50) ** -b),
        ("hill", lambda n: floor + 0.7 / (1 + (n / n0) ** (1.3 * b))),
        ("exponential", lambda n: floor + 0.7 * math.exp(-((n / n0) ** (0.6 * b)))),
    ]
    name, loss = forms[i % len(forms)]
    return Truth(f"synthetic-{name}-{i}", loss, lambda n: noise, 200.0, loss(200.0 * reach))


def real(curve: Curve) -> Truth | None:
    """An LCDB curve; None where it is too short, or falls less than three times its noise past the start."""
    log_n, last = np.log(curve.n), curve.n[-1]
    first = last / 16
    if first < 2 * curve.n[0]:
        return None
    falling = isotonic_regression(curve.loss, increasing=False).x
    spread = math.sqrt(SPLITS) * np.array([run.se or 0.0 for run in curve.runs])

    def loss(n: float) -> float:
        return float(np.interp(math.log(n), log_n, falling))

    def noise(n: float) -> float:
        return float(np.interp(math.log(n), log_n, spread))

    rng = np.random.default_rng(zlib.crc32(curve.name.encode()))
    target = loss(first * math.exp(rng.uniform(math.log(3), math.log(14))))
    if loss(first) - target < 3 * noise(first) / math.sqrt(SEEDS):
        return None
    return Truth(f"lcdb-{curve.name.replace('/', '-')}", loss, noise, first, target)


def ladder(law: Law, target: float, step: int) -> tuple[float, int, bool]:
    return 2 * float(law.budgets.n[-1]), SEEDS, False


def advised(law: Law, target: float, step: int) -> tuple[float, int, bool]:
    advice = next_run(law, target)
    return advice.n, advice.seeds, advice.stop


def trace(truth: Truth, policy: Policy, steps: int, most: float) -> Trace:
    """Cost and width after each step, until n* is known to within `WIDTH` or ``most`` is spent."""
    rng = np.random.default_rng(zlib.crc32(truth.name.encode()))
    rows = [truth.run(share * truth.first, rng) for share in START for _ in range(SEEDS)]
    cost = 0.0
    found: Trace = []
    for step in range(steps + 1):
        law = fit_law(rows, bounds=(0, math.inf))
        answer = law.invert(truth.target)
        width = answer.high / answer.low
        n, seeds, stop = policy(law, truth.target, step)
        found.append(
            {"cost": cost, "width": width if math.isfinite(width) else None, "run": [n, seeds], "stop": stop}
        )
        if width <= WIDTH or cost >= most:
            break
        rows += [truth.run(n, rng) for _ in range(seeds)]
        cost += n * seeds
    return found


def traces(truth: Truth, place: Path) -> dict[str, Trace]:
    """Both policies' traces; kept at ``place``."""
    if not place.exists():
        most = SEEDS * truth.first * (2 ** (DOUBLINGS + 1) - 2)
        write_json(
            place,
            {
                "ladder": trace(truth, ladder, DOUBLINGS, math.inf),
                "next_run": trace(truth, advised, RUNS, most),
                "first": truth.first,
            },
        )
    return read_json(place)


def width_at(steps: Trace, cost: float) -> float:
    """The width once so much had been spent."""
    width = [step["width"] for step in steps if step["cost"] <= cost][-1]
    return math.inf if width is None else width


def rows_of(source: str, found: Sequence[dict[str, Any]]) -> list[Row]:
    """Costs in units of the largest n of the start, so that truths of all sizes share an axis."""
    scaled = {
        way: [[{**s, "cost": s["cost"] / one["first"]} for s in one[way]] for one in found]
        for way in ("ladder", "next_run")
    }

    def median(way: str, cost: float) -> float:
        return float(np.median([width_at(steps, cost) for steps in scaled[way]]))

    def row(reach: float | None, measure: str, value: float | None) -> Row:
        return {
            "benchmark": "design",
            "source": source,
            "reach": reach,
            "measure": measure,
            "value": value,
            "published": None,
            "cases": len(found),
        }

    spent = sorted({step["cost"] for steps in scaled["next_run"] for step in steps})
    ladder_spent = [SEEDS * (2.0 ** (doublings + 1) - 2) for doublings in range(1, DOUBLINGS + 1)]
    rows = []
    for doublings, cost in enumerate(ladder_spent, 1):
        width = median("ladder", cost)
        if math.isinf(width):
            continue
        enough = next((c for c in spent if median("next_run", c) <= width), None)
        rows += [
            row(2**doublings, "median width, ladder", width),
            row(2**doublings, "median width, next_run, at that cost", median("next_run", cost)),
            row(2**doublings, "share of the ladder's cost", None if enough is None else enough / cost),
        ]
    for width in WIDTHS:
        ours = next((c for c in spent if median("next_run", c) <= width), None)
        theirs = next((c for c in ladder_spent if median("ladder", c) <= width), None)
        share = ours / theirs if ours is not None and theirs is not None else None
        rows.append(row(None, f"share of the ladder's cost to a width of {width:g}", share))
    stops = [next((s for s in steps if s["stop"]), steps[-1]) for steps in scaled["next_run"]]
    widths = [math.inf if s["width"] is None else s["width"] for s in stops]
    width = float(np.median(widths))
    return [
        *rows,
        row(None, "cost at stop", float(np.median([s["cost"] for s in stops]))),
        row(None, "width at stop", width if math.isfinite(width) else None),
    ]


def truths(folder: Path | None, few: bool) -> dict[str, list[Truth]]:
    found = {"synthetic": [synthetic(i) for i in range(3 if few else TRUTHS["synthetic"])]}
    if folder is not None:
        curves = sample_of(read_curves(folder, ["lcdb"]), "lcdb", 10 * TRUTHS["lcdb"])
        fit = [truth for curve in curves if (truth := real(curve)) is not None]
        found["lcdb"] = fit[: 2 if few else TRUTHS["lcdb"]]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="three synthetic truths and two of LCDB's")
    parser.add_argument("--json", action="store_true", help="print the results as one JSON object")
    parser.add_argument("--data", type=Path, metavar="DIR", help="take LCDB's curves from this folder")
    parser.add_argument("--work", type=Path, metavar="DIR", default=HERE.parent / "runs" / "scaling_design")
    asked = parser.parse_args()
    chosen = truths(asked.data, asked.quick)
    rows: list[Row] = []
    with progress("scaling_design", sum(map(len, chosen.values()))) as done:
        for source, members in chosen.items():
            found = []
            for truth in members:
                found.append(traces(truth, asked.work / f"{truth.name}.json"))
                done(1)
            rows += rows_of(source, found)
    write("scaling_design-quick" if asked.quick else "scaling_design", rows, asked.json)


if __name__ == "__main__":
    main()
