"""Real learning curves, and cases cut from them: what the benchmarks of the inverter share."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from backcast.scaling import Observation

#: How far past the largest n that the law sees the curve comes down to the target.
REACHES = (2, 4, 8)

#: Fewest sizes that a law is fitted to.
FEWEST = 3

#: The ranges of the metrics; accuracies of `few_shot` are percentages.
BOUNDS = {
    "test_loss": (0.0, math.inf),
    "error_rate": (0.0, 1.0),
    "accuracy": (0.0, 100.0),
    "matthews_correlation": (-100.0, 100.0),
    "test-acc-all-p": (0.0, 1.0),
    "test-f1-macro-all-p": (0.0, 1.0),
}


@dataclass(frozen=True)
class Curve:
    """A learning curve: its runs, and the metric's direction and range.

    Attributes:
        source, task, name: where it is from; `name` is its own.
        runs: sorted by n, then seed.
    """

    source: str
    task: str
    name: str
    higher_is_better: bool
    bounds: tuple[float, float]
    runs: tuple[Observation, ...]

    @cached_property
    def n(self) -> np.ndarray:
        """(K,) the sizes, ascending."""
        return np.unique([run.n for run in self.runs])

    @cached_property
    def mean(self) -> np.ndarray:
        """(K,) the mean value at each size."""
        place = np.searchsorted(self.n, [run.n for run in self.runs])
        return np.bincount(place, [run.value for run in self.runs]) / np.bincount(place)

    @property
    def loss(self) -> np.ndarray:
        """(K,) the same, turned so that lower is better."""
        return -self.mean if self.higher_is_better else self.mean

    def up_to(self, n: float) -> tuple[Observation, ...]:
        """The runs of at most that size."""
        return tuple(run for run in self.runs if run.n <= n)


@dataclass(frozen=True)
class Case:
    """A question with a known answer: from the runs up to ``n_max``, where does the curve first meet ``target``?

    Attributes:
        reach: 2, 4 or 8, about n_true / n_max.
        n_true: where the means first meet the target, interpolated linearly in log n; past n_max.
    """

    curve: Curve
    reach: int
    n_max: float
    target: float
    n_true: float

    @property
    def runs(self) -> tuple[Observation, ...]:
        """What the law sees."""
        return self.curve.up_to(self.n_max)


def read_curves(folder: Path, sources: Iterable[str] = ()) -> list[Curve]:
    """The curves of ``learning_curves/curves.csv.gz`` under ``folder``, in the file's order; some sources or all."""
    table = pd.read_csv(folder / "learning_curves" / "curves.csv.gz")
    wanted = set(sources) or set(table.source)
    found = []
    for (source, task, name), rows in table.groupby(["source", "task", "curve"], sort=False):
        if source in wanted:
            runs = [
                Observation(
                    n=n, value=v, seed="" if math.isnan(s) else str(int(s)), se=None if math.isnan(e) else e
                )
                for n, v, s, e in zip(rows.n, rows.value, rows.seed, rows.se, strict=True)
            ]
            runs.sort(key=lambda run: (run.n, run.seed))
            found.append(
                Curve(
                    source,
                    task,
                    name,
                    bool(rows.higher_is_better.iloc[0]),
                    BOUNDS[rows.metric.iloc[0]],
                    tuple(runs),
                )
            )
    return found


def first_met(curve: Curve, target: float) -> float:
    """The least n at which the curve's means meet ``target``, between sizes linearly in log n; inf if they never do."""
    loss, goal = curve.loss, -target if curve.higher_is_better else target
    met = np.flatnonzero(loss <= goal)
    if not len(met):
        return math.inf
    j = met[0]
    if j == 0:
        return float(curve.n[0])
    share = (loss[j - 1] - goal) / (loss[j - 1] - loss[j])
    return float(np.exp(np.log(curve.n[j - 1]) + share * np.log(curve.n[j] / curve.n[j - 1])))


def cut(curve: Curve, reach: int, end: int = -1) -> Case | None:
    """The curve cut ``reach`` times below its size number ``end``, whose mean is the target.

    None where the part that is left has fewer than `FEWEST` sizes, or has met the target already.
    """
    last, target = curve.n[end], float(curve.mean[end])
    seen = curve.n[curve.n <= last / reach * 1.01]
    n_true = first_met(curve, target)
    if len(seen) < FEWEST or not n_true > seen[-1]:
        return None
    return Case(curve, reach, float(seen[-1]), target, n_true)


def cases(curves: Iterable[Curve]) -> list[Case]:
    """Every curve cut at every reach."""
    return [case for curve in curves for reach in REACHES if (case := cut(curve, reach)) is not None]


def sample_of(curves: list[Curve], source: str, size: int, seed: int = 0) -> list[Curve]:
    """``size`` of a source's curves, drawn by task in turn, so that no task has many more than another."""
    rng = np.random.default_rng(seed)
    by_task: dict[str, list[Curve]] = {}
    for curve in curves:
        if curve.source == source:
            by_task.setdefault(curve.task, []).append(curve)
    for members in by_task.values():
        rng.shuffle(members)  # type: ignore[arg-type]
    turns = max(map(len, by_task.values()))
    return [members[turn] for turn in range(turns) for members in by_task.values() if turn < len(members)][
        :size
    ]
