"""How far apart can inputs be that give the same score, and does the inverter say so?

**The curves themselves.** A group is one task's curves: selectors, methods, models or learners, each at many n. A score
is held constant, the 25th, 50th and 75th percentile of what the group's curves reach at their ends; its inputs are the
(curve, n) at which the means first meet it. How many of the curves have one, and by what factor do their n differ? No
law is fitted.

**What is said beforehand.** Each curve is fitted to the smaller half of its sizes alone, and `preimage` names the
inputs of the same scores. Of the inputs that it names, how many are true; of the true ones, how many does it name, and
do they lie where it says? Of a curve that has not met the score at its end no more is known than that its n lies past
there: it is asked only whether an input that is named before there is true, and whether one that is named goes on past
there. Asked of the curves alone that do meet it: does the interval of the factor hold the true one?

**Ill-posedness.** The profile likelihood of the same halves: how wide the floors and by what factor the exponents and
the n* that explain a curve equally well.

Rows: benchmark, source, reach (None), measure, value, published (None), low, high, note.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import HERE, Row, arguments, write
from scaling_curves import FEWEST, Curve, first_met, read_curves, sample_of

import backcast.scaling
from backcast.errors import InputError
from backcast.files import read_json, write_json
from backcast.progress import progress
from backcast.scaling import Law, fit_law
from backcast.scaling.preimage import preimage
from backcast.scaling.profile import Profile, profile

SOURCES = ("few_shot", "prompt_vs_head", "llm_finetune", "lcdb")
#: Scores held constant: percentiles, of better and better ones, of what a group's curves reach at their ends.
QUANTILES = (0.25, 0.5, 0.75)
LEVEL = 0.9
#: Of the learners that LCDB has, those of so many data sets are fitted, so many of each.
DATA_SETS, LEARNERS = 6, 8
#: Finished groups, for fits by just this code.
RUNS = HERE.parent / "runs" / "scaling_preimage"

Group = tuple[str, str]


def main() -> None:
    args = arguments("How far apart are inputs of the same score?")
    if args.data is None:
        raise SystemExit("give the folder that learning_curves is in: --data DIR")
    curves = read_curves(args.data, SOURCES)
    groups = grouped(curves)
    chosen = {task for _, task in itertools.islice((g for g in groups if g[0] == "lcdb"), DATA_SETS)}
    fitted = {
        (source, task): members if source != "lcdb" else sample_of(members, source, LEARNERS)
        for (source, task), members in groups.items()
        if source != "lcdb" or task in chosen
    }
    if args.quick:
        fitted = {group: members[:3] for group, members in list(fitted.items())[:2]}
    rows = [row for source in SOURCES for row in real(source, groups)]
    found = said(fitted)
    for source in (*SOURCES, "all"):
        mine = [case for (name, _), cases in found.items() if source in (name, "all") for case in cases]
        if mine:
            rows += summary(source, mine)
    write("scaling_preimage", rows, args.json)


def grouped(curves: Iterable[Curve]) -> dict[Group, list[Curve]]:
    """Tasks with two curves at least, each of sizes enough that its smaller half can be fitted."""
    groups: dict[Group, list[Curve]] = {}
    for curve in curves:
        if half(curve) >= FEWEST:
            groups.setdefault((curve.source, curve.task), []).append(curve)
    return {group: members for group, members in groups.items() if len(members) > 1}


def half(curve: Curve) -> int:
    """How many sizes are the smaller half."""
    return len(curve.n) // 2


def targets(members: Sequence[Curve]) -> list[float]:
    ends = [curve.loss[-1] for curve in members]
    sign = -1.0 if members[0].higher_is_better else 1.0
    return [sign * float(loss) for loss in np.quantile(ends, [1 - q for q in QUANTILES])]


def inputs(members: Sequence[Curve], target: float) -> dict[str, float]:
    """Curve → the n that gives the score; without those that never meet it, or have met it at their smallest size."""
    met = {curve.name: first_met(curve, target) for curve in members}
    return {curve.name: met[curve.name] for curve in members if curve.n[0] < met[curve.name] < math.inf}


def unmet(members: Sequence[Curve], target: float) -> dict[str, float]:
    """Curve → its largest size, of those that have not met the score there."""
    return {curve.name: float(curve.n[-1]) for curve in members if math.isinf(first_met(curve, target))}


def real(source: str, groups: dict[Group, list[Curve]]) -> list[Row]:
    """What the curves themselves say."""
    factors, shares = [], []
    for (name, _), members in groups.items():
        if name == source:
            for target in targets(members):
                n = list(inputs(members, target).values())
                shares.append(len(n) / len(members))
                if len(n) > 1:
                    factors.append(max(n) / min(n))
    note = f"{len(shares)} scores of {sum(name == source for name, _ in groups)} groups"
    low, middle, high = np.quantile(factors, [0.1, 0.5, 0.9])
    return [
        row(
            "real curves",
            source,
            "factor between the least and the largest n of a score",
            middle,
            low,
            high,
            note,
        ),
        row("real curves", source, "share of the curves that give it", float(np.mean(shares)), note=note),
        row(
            "real curves",
            source,
            "scores with inputs at least 4 times apart",
            float(np.mean(np.array(factors) >= 4)),
        ),
    ]


# ------------------------------------------------------------------ what is said beforehand


def said(fitted: dict[Group, list[Curve]]) -> dict[Group, list[Any]]:
    """Group → for each score what was true and what was said; finished groups are kept."""
    folder = RUNS / _code()
    found = {}
    with progress("groups", len(fitted)) as advance:
        for group, members in fitted.items():
            file = folder / f"{group[0]}-{group[1]}-{len(members)}.json"
            if not file.exists():
                write_json(file, _cases(members))
            found[group] = read_json(file)
            advance(1)
    return found


def _code() -> str:
    """A hash of what fits."""
    sources = sorted(Path(backcast.scaling.__file__).parent.rglob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in sources)).hexdigest()[:12]


def _cases(members: Sequence[Curve]) -> list[Any]:
    laws = {curve.name: _law(curve) for curve in members}
    profiles = [each for law in laws.values() if (each := _profile(law)) is not None]
    return [_case(members, laws, profiles, target) for target in targets(members)]


def _case(members: Sequence[Curve], laws: dict[str, Law], profiles: list[Profile], target: float) -> Any:
    true = inputs(members, target)
    giving = {name: laws[name] for name in true}
    return {
        "true": true,
        "unmet": unmet(members, target),
        "said": preimage(laws, target, level=LEVEL).to_json(),
        "giving": preimage(giving, target, level=LEVEL).to_json() if giving else None,
        "profiles": [each.to_json(target) for each in profiles],
    }


def _law(curve: Curve) -> Law:
    return fit_law(
        curve.up_to(curve.n[half(curve) - 1]), higher_is_better=curve.higher_is_better, bounds=curve.bounds
    )


def _profile(law: Law) -> Profile | None:
    """None where the budgets tell no noise."""
    try:
        return profile(law, level=LEVEL)
    except InputError:
        return None


def summary(source: str, cases: Sequence[Any]) -> list[Row]:
    """Figures over a source's scores."""
    apart = [case for case in cases if len(case["true"]) > 1]
    truth = np.array([max(case["true"].values()) / min(case["true"].values()) for case in apart])
    told = [case["giving"] for case in apart]
    several = [len(each["named"]) > 1 for each in told]
    held = [_holds(each, factor) for each, factor in zip(told, truth, strict=True)]
    bounded = [each["factor_high"] is not None for each in told]
    errors = [
        abs(math.log2(each["factor"] / factor))
        for each, factor, two in zip(told, truth, several, strict=True)
        if two and each["factor"] is not None
    ]
    true = [(case, name) for case in cases for name in case["true"]]
    named = [(case, name) for case in cases for name in case["said"]["named"]]
    early = [  # inputs that are said to give the score within the curve's sizes
        name in case["true"]
        for case, name in named
        if name in case["true"] or _input(case, name)["n"] <= case["unmet"].get(name, 0)
    ]
    past = [(case, name) for case, name in named if name in case["unmet"]]
    where = [_lies(case, name) for case, name in [*true, *past]]
    profiles = [p for case in cases for p in case["profiles"]]
    note = f"{len(apart)} scores with two inputs at least, of {len(cases)}"
    name = "said from the smaller half"
    found = [
        row(
            name,
            source,
            "true factor between the inputs",
            float(np.median(truth)),
            *np.quantile(truth, [0.1, 0.9]),
            note,
        ),
        row(name, source, "two inputs at least are named", np.mean(several)),
        row(name, source, "90 % interval of the factor holds", float(np.mean(held))),
        row(name, source, "that interval has an upper end", np.mean(bounded)),
        row(name, source, "median error of the factor, log2", float(np.median(errors)) if errors else None),
        row(name, source, "true inputs that are named", np.mean([n in c["said"]["named"] for c, n in true])),
        row(
            name,
            source,
            "inputs named within the sizes that are true",
            float(np.mean(early)),
        ),
        row(
            name,
            source,
            "inputs lie where it says (90 %)",
            float(np.mean(where)),
            note=f"{len(where)} inputs",
        ),
    ]
    ratio, width, spread = (
        [math.inf if p[key] is None else p[key] for p in profiles]
        for key in ("exponent_ratio", "floor_width", "n_spread")
    )
    note = f"{len(profiles)} profiles"
    return [
        *found,
        row("ill-posedness of the half", source, "floors, in observed spreads", _median(width), note=note),
        row("ill-posedness of the half", source, "exponents, factor", _median(ratio), note=note),
        row("ill-posedness of the half", source, "n* of a score, factor", _median(spread), note=note),
        row(
            "ill-posedness of the half",
            source,
            "fits whose starts agreed",
            float(np.mean([p["converged"] for p in profiles])),
        ),
    ]


def _holds(told: Any, factor: float) -> bool:
    """Whether the factor's interval holds the true one; where fewer than two inputs are named none is given."""
    low, high = (math.inf if told[end] is None else told[end] for end in ("factor_low", "factor_high"))
    return len(told["named"]) > 1 and low <= factor <= high


def _input(case: Any, name: str) -> Any:
    return next(each for each in case["said"]["inputs"] if each["selector"] == name)


def _lies(case: Any, name: str) -> bool:
    """Whether the true n is in the input's interval; of a curve that has not met the score it is past its end."""
    low, high = (math.inf if (end := _input(case, name)[key]) is None else end for key in ("low", "high"))
    n = case["true"].get(name)
    return high >= case["unmet"][name] if n is None else low <= n <= high


def _median(values: Sequence[float]) -> float | None:
    middle = float(np.median(values))
    return middle if math.isfinite(middle) else None


def row(
    benchmark: str,
    source: str,
    measure: str,
    value: float | None,
    low: float | None = None,
    high: float | None = None,
    note: str | None = None,
) -> Row:
    return {
        "benchmark": benchmark,
        "source": source,
        "reach": None,
        "measure": measure,
        "value": None if value is None else float(value),
        "published": None,
        "low": low,
        "high": high,
        "note": note,
    }


if __name__ == "__main__":
    main()
