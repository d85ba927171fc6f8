"""How much data is collected, and how often too little, when a law plans each round?

The protocol of Mahmood et al. 2022 (arXiv 2210.01234, section 7): a real learning curve, linear in log n between its
sizes, is the truth. At first 10 % of its data are at hand, and ten sizes up to there have been run. A target lies
between the score there, a point better, and the score of all the data; 1, 3 or 5 rounds may add data, each followed by
a run on what is then at hand. *fail rate*: the target is not met after the last round. *cost ratio*, of the rest:
(n_T - n_0) / (n* - n_0) - 1, as in the paper's table 1, mean and median; and beside it *excess*, (n_T - n*) / n*.

Next to `plan_round` stands what the paper compares with: a power law fitted by least squares and read off at the target
(arXiv 2207.01725), plain, and with the correction given there, a stricter target. That correction and the constants of
`plan_round` were set on every other curve, "development"; the figures to go by are those of the rest, "test".

The published figures are means over the paper's three classification sets, which are not these curves.

What has been planned is kept under --work: an interrupted run goes on from there.
"""

from __future__ import annotations

import argparse
import math
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from common import HERE, Row, write
from scaling_curves import Curve, read_curves, sample_of
from scipy.optimize import isotonic_regression

from backcast.files import read_json, write_json
from backcast.progress import progress
from backcast.scaling import Law, Observation, fit_law
from backcast.scaling.rounds import plan_round

#: Curves of each source, and targets on each.
CURVES, TARGETS = {"lcdb": 32, "llm_finetune": 16, "vision": 24}, 2
ROUNDS = (1, 3, 5)
#: The share of the data at hand at first, the sizes run up to there, and the least that a target asks beyond its score.
SHARE, SIZES, MARGIN = 0.1, 10, 0.01
#: An estimate past this many times the whole data, or none at all, collects that much.
MOST = 10.0
#: Corrections tried, as shares of the way from the first score to the target, and the fail rate that they should reach.
CORRECTIONS, GOALS = np.linspace(0, 1, 21), {1: 0.10, 3: 0.05, 5: 0.02}
#: θ_1 of the power law.
EXPONENTS = np.geomspace(0.01, 4.0, 300)
#: Fail rate and cost ratio of the paper's planner and of its power law: means of its three classification sets.
PUBLISHED = {
    "plan_round": {1: (0.34, 0.56), 3: (0.13, 0.17), 5: (0.11, 0.11)},
    "power law": {1: (0.85, 0.06), 3: (0.73, 0.04), 5: (0.63, 0.04)},
}

#: From the amounts at hand so far and the rounds left, the next one.
Plan = Callable[[Sequence[float], int], float]


@dataclass(frozen=True)
class World:
    """A curve as the truth; lower is better."""

    curve: Curve

    @cached_property
    def loss(self) -> np.ndarray:
        """(K,) the nearest curve that never rises."""
        return isotonic_regression(self.curve.loss, increasing=False).x

    @cached_property
    def start(self) -> float:
        """The size that is nearest to `SHARE` of the whole data."""
        n = self.curve.n
        return float(n[np.abs(np.log(n / (SHARE * n[-1]))).argmin()])

    @cached_property
    def first(self) -> np.ndarray:
        """At most `SIZES` of the sizes up to ``start``, as evenly as they come in log n."""
        sizes = self.curve.n[self.curve.n <= self.start]
        wanted = np.linspace(0, math.log(sizes[-1] / sizes[0]), SIZES)
        return np.unique(sizes[np.abs(np.log(sizes / sizes[0])[:, None] - wanted).argmin(axis=0)])

    def score(self, n: np.ndarray) -> np.ndarray:
        """What runs at n give: the curve as it was measured, not the one that never rises."""
        return np.interp(np.log(n), np.log(self.curve.n), self.curve.loss)

    def need(self, target: float) -> float:
        """The least n that meets the target."""
        log_n, j = np.log(self.curve.n), int(np.argmax(self.loss <= target))
        share = (self.loss[j - 1] - target) / (self.loss[j - 1] - self.loss[j])
        return float(np.exp(log_n[j - 1] + share * (log_n[j] - log_n[j - 1])))

    def seen(self, amounts: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
        """Sizes and scores after these rounds; ``amounts`` begins with the start."""
        n = np.concatenate([self.first, amounts[1:]])
        return n, self.score(n)

    def targets(self) -> list[float]:
        """`TARGETS` of them, anywhere between the first score, `MARGIN` better, and the last; none if that is worse."""
        first, last = np.interp(math.log(self.start), np.log(self.curve.n), self.loss) - MARGIN, self.loss[-1]
        rng = np.random.default_rng(zlib.crc32(self.curve.name.encode()))
        return [] if first <= last else rng.uniform(last, first, TARGETS).tolist()


def collect(world: World, target: float, rounds: int, plan: Plan) -> list[float]:
    """The amounts at hand after each round, from the start on."""
    amounts, need = [world.start], world.need(target)
    for left in range(rounds, 0, -1):
        n = min(plan(amounts, left), MOST * world.curve.n[-1])
        if n <= amounts[-1]:
            break
        amounts.append(float(n))
        if n >= need:
            break
    return amounts


def by_law(world: World, target: float, fitted: dict[tuple[float, ...], Law]) -> Plan:
    """`plan_round` on a law of all that was seen; ``fitted`` keeps the laws."""

    def plan(amounts: Sequence[float], left: int) -> float:
        seen = tuple(amounts)
        if seen not in fitted:
            n, value = world.seen(amounts)
            fitted[seen] = fit_law({"n": n, "value": value}, bounds=world.curve.bounds)
        return plan_round(fitted[seen], target, left, amounts[-1]).n

    return plan


def by_power_law(world: World, target: float, correction: float = 0.0) -> Plan:
    """A least-squares fit of θ_0 n^-θ_1 + θ_2, read off at a target that is stricter by a share of the way to it."""
    first = world.score(np.array([world.start]))[0]
    goal = target - correction * (first - target)

    def plan(amounts: Sequence[float], left: int) -> float:
        n, value = world.seen(amounts)
        # Linear in all but θ_1: a straight line through (n^-θ_1, value) for each.
        x = (n / n[0]) ** -EXPONENTS[:, None]
        x_off, y_off = x - x.mean(axis=1, keepdims=True), value - value.mean()
        slope = (x_off @ y_off) / (x_off**2).sum(axis=1)
        b = int(((y_off - slope[:, None] * x_off) ** 2).sum(axis=1).argmin())
        share = (goal - value.mean()) / slope[b] + x[b].mean()
        return float(n[0] * share ** (-1 / EXPONENTS[b])) if slope[b] > 0 and share > 0 else math.inf

    return plan


def worlds(folder: Path, few: bool) -> list[World]:
    """The curves of every source in turn, that any target can be set on."""
    curves = [*read_curves(folder, ("lcdb", "llm_finetune")), *_vision(folder)]
    found = []
    for source, size in CURVES.items():
        fit = [World(c) for c in sample_of(curves, source, 4 * size) if _long(c)]
        found += [w for w in fit if w.targets()][: 2 if few else size]
    return found


def _long(curve: Curve) -> bool:
    """Whether there is something to learn from before the start: five sizes over a factor of five."""
    world = World(curve)
    return len(world.first) >= 5 and world.start >= 5 * curve.n[0]


def _vision(folder: Path) -> Iterable[Curve]:
    table = pd.read_csv(folder / "learning_curves" / "extrapolation_vision.csv.gz")
    for (task, model), rows in table.groupby(["Task", "Model"]):
        ordered = rows.sort_values("Seen Examples")
        runs = tuple(
            Observation(n, v) for n, v in zip(ordered["Seen Examples"], ordered["Loss"], strict=True)
        )
        yield Curve("vision", str(task), f"{task}/{model}", False, (0.0, 1.0), runs)


def planned(world: World, targets: Sequence[float], place: Path) -> list[dict[int, list[float]]]:
    """For each target and number of rounds, the amounts that `plan_round` collected; kept at ``place``."""
    if not place.exists():
        fitted: dict[tuple[float, ...], Law] = {}
        write_json(
            place, [{r: collect(world, t, r, by_law(world, t, fitted)) for r in ROUNDS} for t in targets]
        )
    return [{int(r): amounts for r, amounts in plan.items()} for plan in read_json(place)]


@dataclass(frozen=True)
class Outcome:
    """What became of one target."""

    source: str
    start: float
    need: float
    end: float

    @property
    def failed(self) -> bool:
        return self.end < self.need

    @property
    def ratio(self) -> float:
        return (self.end - self.start) / (self.need - self.start) - 1

    @property
    def excess(self) -> float:
        return self.end / self.need - 1


def fail_rate(outcomes: Sequence[Outcome]) -> float:
    return sum(o.failed for o in outcomes) / len(outcomes)


def corrected(cases: Sequence[tuple[World, float]], rounds: int) -> float:
    """The least correction that fails no more often than `GOALS`, or else the one that fails least."""

    def fails(correction: float) -> float:
        return fail_rate(
            [outcome(w, t, collect(w, t, rounds, by_power_law(w, t, correction))) for w, t in cases]
        )

    rates = {c: fails(c) for c in CORRECTIONS.tolist()}
    return next((c for c, rate in rates.items() if rate <= GOALS[rounds]), min(rates, key=rates.__getitem__))


def outcome(world: World, target: float, amounts: Sequence[float]) -> Outcome:
    return Outcome(world.curve.source, world.start, world.need(target), amounts[-1])


def rows_of(method: str, half: str, rounds: int, outcomes: Sequence[Outcome]) -> list[Row]:
    """The measures over all outcomes, and over each source's."""
    found: list[Row] = []
    for source in ("all", *CURVES) if method == "plan_round" else ("all",):
        these = [o for o in outcomes if source in ("all", o.source)]
        met = [o for o in these if not o.failed]
        measures = {
            "fail rate": fail_rate(these),
            "cost ratio": float(np.mean([o.ratio for o in met])) if met else None,
            "cost ratio, median": float(np.median([o.ratio for o in met])) if met else None,
            "excess": float(np.mean([o.excess for o in met])) if met else None,
        }
        published = (
            dict(zip(measures, PUBLISHED.get(method, {}).get(rounds, ()), strict=False))
            if source == "all"
            else {}
        )
        found += [
            {
                "benchmark": "rounds",
                "method": method,
                "half": half,
                "source": source,
                "reach": rounds,
                "measure": measure,
                "value": value,
                "published": published.get(measure),
                "cases": len(these),
            }
            for measure, value in measures.items()
        ]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two curves of each source")
    parser.add_argument("--json", action="store_true", help="print the results as one JSON object")
    parser.add_argument("--data", type=Path, metavar="DIR", required=True)
    parser.add_argument("--work", type=Path, metavar="DIR", default=HERE.parent / "runs" / "scaling_rounds")
    asked = parser.parse_args()
    cases: dict[str, list[tuple[World, float]]] = {"development": [], "test": []}
    plans: dict[str, list[dict[int, list[float]]]] = {"development": [], "test": []}
    found = worlds(asked.data, asked.quick)
    with progress("scaling_rounds", len(found)) as done:
        for i, world in enumerate(found):
            half, targets = list(cases)[i % 2], world.targets()
            place = asked.work / f"{world.curve.source}-{world.curve.name.replace('/', '-')}.json"
            cases[half] += [(world, target) for target in targets]
            plans[half] += planned(world, targets, place)
            done(1)
    rows: list[Row] = []
    for rounds in ROUNDS:
        correction = corrected(cases["development"], rounds)
        for half in ("test", "development"):
            ways = {
                "plan_round": [plan[rounds] for plan in plans[half]],
                "power law": [collect(w, t, rounds, by_power_law(w, t)) for w, t in cases[half]],
                "power law, corrected": [
                    collect(w, t, rounds, by_power_law(w, t, correction)) for w, t in cases[half]
                ],
            }
            for method, ends in ways.items():
                outcomes = [outcome(w, t, end) for (w, t), end in zip(cases[half], ends, strict=True)]
                rows += rows_of(method, half, rounds, outcomes)
    write("scaling_rounds-quick" if asked.quick else "scaling_rounds", rows, asked.json)


if __name__ == "__main__":
    main()
