"""A table of results, inverted for targets: an answer for each of its curves, and how well each is known."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backcast.errors import InputError
from backcast.progress import progress
from backcast.scaling import Inversion, Law, NextRun, Observation, fit_law, next_run, read_results
from backcast.scaling.preimage import Preimage, preimage
from backcast.scaling.profile import Profile, profile
from backcast.scaling.savings import Savings, savings
from backcast.scaling.table import observations

#: More curves than this are fitted in as many processes as there are cores.
ALONE = 8


@dataclass(frozen=True)
class Answer:
    """One curve's answer for one target.

    Attributes:
        curve: its name; empty where the table has one.
        profile: of its law; None where the budgets tell no noise.
        advice: the run to make next.
    """

    curve: str
    law: Law
    inversion: Inversion
    profile: Profile | None
    advice: NextRun

    def warnings(self) -> list[str]:
        """The law's, and, where the runs cannot tell n*, what they leave open."""
        found = list(self.law.warnings)
        if self.profile is not None and self.inversion.status == "unidentified":
            found.append(self.profile.sentence())
        return found

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return {
            **self.inversion.to_json(),
            "warnings": self.warnings(),
            "profile": self.profile.to_json(self.inversion.target) if self.profile else None,
            "next_run": self.advice.sentence(),
        }


@dataclass(frozen=True)
class Inverted:
    """Every answer that a table of results gives.

    Attributes:
        runs: those of the curves that have a law.
        laws: by curve.
        answers: for each target, those of the curves.
        preimages: for each target.
        savings: for each target, of the curve with the least n* over each other one.
    """

    runs: Sequence[Observation]
    laws: Mapping[str, Law]
    targets: Sequence[float]
    level: float
    answers: Sequence[Answer]
    preimages: Sequence[Preimage]
    savings: Sequence[Savings]

    @property
    def unreachable(self) -> bool:
        """Whether every answer is that the target is out of reach."""
        return all(answer.inversion.status == "unreachable" for answer in self.answers)

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return {
            "targets": list(self.targets),
            "answers": [answer.to_json() for answer in self.answers],
            "preimages": [each.to_json() for each in self.preimages],
            "savings": [each.to_json() for each in self.savings],
            "laws": [law.to_json() for law in self.laws.values()],
        }


def invert_results(
    results: str | Path,
    targets: Sequence[float],
    higher_is_better: bool,
    bounds: tuple[float | None, float | None],
    level: float = 0.9,
    n: str = "n",
    value: str = "value",
    group: str | None = None,
    overhead: float = 0.0,
) -> Inverted:
    """Fit a law to each curve of ``results`` and invert it for each target.

    A curve of one size, such as the full pool's, has no law and is left out.

    Args:
        results: a table, or a sweep's folder.
        targets: one at least.
        bounds: of the metric; None where there is none.
        level: the intervals' probability.
        n, value, group: the table's own columns; curves are told apart by ``selector``, ``modality`` or ``run`` when
            ``group`` is None.
        overhead: what a run costs whatever its size, in examples; what to run next depends on it.

    Raises:
        InputError: a table that cannot be read, or in which no curve has two sizes; a target outside the bounds, a
            level that is no probability, an overhead below 0.
    """
    if not overhead >= 0:
        raise InputError(f"a run's cost beside its examples is {overhead:g}; it must not be negative")
    runs = read_results(results, n, value) if group is None else observations(results, n, value, group=group)
    sizes: dict[str, set[float]] = {}
    for run in runs:
        sizes.setdefault(run.group, set()).add(run.n)
    kept = [run for run in runs if len(sizes[run.group]) > 1] or runs
    low, high = bounds
    ends = (-math.inf if low is None else low, math.inf if high is None else high)
    workers = -1 if len({run.group for run in kept}) > ALONE else 1
    laws = fit_law(kept, group="group", higher_is_better=higher_is_better, bounds=ends, workers=workers)
    inversions = {(name, x): law.invert(x, level) for x in targets for name, law in laws.items()}
    profiles = {name: _profile(law, level) for name, law in laws.items()}

    def cost(n: float, seeds: int) -> float:
        return seeds * (overhead + n)

    answers = []
    with progress("next runs", len(inversions)) as advance:
        for (name, target), inversion in inversions.items():
            law = laws[name]
            answers.append(Answer(name, law, inversion, profiles[name], next_run(law, target, cost=cost)))
            advance(1)
    preimages = [preimage(laws, target, level=level) for target in targets]
    return Inverted(
        runs=kept,
        laws=laws,
        targets=targets,
        level=level,
        answers=answers,
        preimages=preimages,
        savings=[
            savings(laws[found.inputs[0].selector], laws[other.selector], value=found.target, level=level)
            for found in preimages
            for other in found.inputs[1:]
        ],
    )


def _profile(law: Law, level: float) -> Profile | None:
    try:
        return profile(law, level=level)
    except InputError:  # its budgets tell no noise: the posterior has a prior for it, a likelihood has none
        return None
