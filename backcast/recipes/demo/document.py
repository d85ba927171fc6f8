"""A run of the loop as a report."""

from __future__ import annotations

import os

import numpy as np

from backcast.recipes.demo.loop import Loop
from backcast.recipes.demo.setting import SELECTORS
from backcast.report import Answer, Curves, Figure, Fitted, Neighbours, Observation, Pair, Report
from backcast.scaling import Inversion, Law

#: Probability of the bands and intervals; near-duplicates shown; points on a fitted curve.
LEVEL, PAIRS, POINTS = 0.9, 6, 60


def document(loop: Loop) -> Report:
    """What the page of a finished run says."""
    full = loop.mean("full", "100%")
    answers = {name: law.invert(full, LEVEL) for name, law in loop.laws.items()}
    shown = loop.shown()
    return Report(
        title=loop.setting.title,
        answer=_answer(loop, full, answers),
        figures=figures(loop),
        curves=_curves(loop, full, answers),
        best=[_pair(loop, row, place) for place, row in enumerate(shown[: len(shown) // 2])],
        worst=[_pair(loop, row, place) for place, row in enumerate(shown) if place >= len(shown) // 2],
        neighbours=_neighbours(loop),
        duplicates=_duplicates(loop),
        duplicates_found=len(loop.duplicates),
        next_run=loop.advice,
        timings=list(loop.seconds.items()),
        sources=_sources(loop),
    )


def figures(loop: Loop) -> list[Figure]:
    """The run's figures beside what is wanted of them."""
    summary = loop.summary
    found: list[Figure] = []

    def add(name: str, value: str, wanted: str | None = None, met: bool | None = None) -> None:
        found.append(Figure(name=name, value=value, wanted=wanted, met=met))

    auroc, duplicates, gap = (
        summary["spoilt_auroc"],
        summary["duplicates"],
        summary["split_max_relative_gap"],
    )
    if auroc is not None:
        add("AUROC of the score, spoilt against clean", f"{auroc:.3f}", "≥ 0.90", auroc >= 0.9)
    sign = 1 if loop.setting.higher_is_better else -1
    best, full = loop.best_selector(), loop.mean("full", "100%")
    at_40 = loop.mean(best, "40%")
    add(
        f"{best} at 40 % of the pool",
        f"{at_40:.3f}",
        f"no worse than the full pool's {full:.3f}",
        sign * at_40 >= sign * full,
    )
    middle = [b for b in loop.plan.budgets if 10 <= float(b.rstrip("%")) <= 40]
    leads = [sign * (loop.mean(best, b) - loop.mean("random", b)) for b in middle]
    add(
        f"{best} over random at {', '.join(middle)}",
        f"{min(leads):+.3f} at least",
        "> 0 at each",
        min(leads) > 0,
    )
    if duplicates is not None:
        for name in ("recall", "precision"):
            add(f"near-duplicates, {name}", f"{duplicates[name]:.3f}", "≥ 0.95", duplicates[name] >= 0.95)
    factors = [f for f in map(_factor, summary["inversions"]) if f is not None]
    silent = len(summary["inversions"]) - len(factors)
    add(
        f"n* predicted from budgets up to {loop.plan.fitted[-1]}, largest factor off",
        f"{max(factors):.2f}" if factors else "cannot tell",
        f"≤ 2, or says that it cannot tell ({silent} of {len(summary['inversions'])} do)",
        max(factors, default=1.0) <= 2,
    )
    if gap is not None:
        add("split: parts against score − baseline, largest gap", f"{gap:.2%}", "≤ 1 %", gap <= 0.01)
    return found


def _factor(row: dict) -> float | None:
    """How far a predicted n* lies from what was observed; None where nothing was predicted or observed.

    A prediction below the smallest budget, for a target that the smallest budget met, is right.
    """
    if row["status"] not in ("reached", "extrapolated") or row["n"] is None or row["observed_n"] is None:
        return None
    smallest = row["observed_n"] <= row["smallest_n"]
    predicted = max(row["n"], row["smallest_n"]) if smallest else row["n"]
    return float(np.exp(abs(np.log(predicted / row["observed_n"]))))


def _answer(loop: Loop, full: float, answers: dict[str, Inversion]) -> list[str]:
    best = loop.best_selector()
    n, all_of_it = answers[best].n, len(loop.pool)
    told = answers[best].status in ("reached", "extrapolated")
    if told and n < all_of_it:
        chosen = f"About {n:,.0f} of {all_of_it:,} examples, chosen by {best},"
        headline = f"{chosen} match what the whole pool reaches ({full:.3f})."
    else:
        headline = f"{best}: {answers[best].sentence()}"
    others = [f"{name}: {answers[name].sentence()}" for name in SELECTORS if name != best]
    return [headline, *others]


def _curves(loop: Loop, full: float, answers: dict[str, Inversion]) -> Curves:
    names = {method: name for name, method in SELECTORS.items()}
    observed = [
        Observation(selector=names[r["selector"]], n=r["n"], seed=r["seed"], metric=r["metric"])
        for r in loop.results
        if r["selector"] in names
    ]
    return Curves(
        metric=loop.setting.metric,
        higher_is_better=loop.setting.higher_is_better,
        target=full,
        observed=observed,
        fitted=[_fitted(name, law) for name, law in loop.laws.items()],
        answers=[_told(name, inversion) for name, inversion in answers.items()],
        full=full,
    )


def _fitted(name: str, law: Law) -> Fitted:
    n = np.geomspace(law.budgets.n[0], law.budgets.n[-1], POINTS)
    tail = (1 - LEVEL) / 2
    predicted = law.predict(n, (tail, 1 - tail))
    low, high = predicted.quantiles
    return Fitted(
        selector=name,
        n=n.tolist(),
        mean=predicted.mean.tolist(),
        low=low.tolist(),
        high=high.tolist(),
        level=LEVEL,
    )


def _told(name: str, inversion: Inversion) -> Answer:
    value = inversion.to_json()
    kept = ("target", "n", "low", "high", "p_unreachable", "status", "sentence")
    return Answer(selector=name, **{key: value[key] for key in kept})


def _pair(loop: Loop, row: int, place: int | None = None) -> Pair:
    """Pool row ``row``; ``place`` is its place in the split."""
    example = loop.pool[int(row)]
    kind = loop.truth.kinds[int(row)] if loop.truth else None
    image = example.fields.get("image")
    pair = Pair(
        row=int(row),
        score=float(loop.best_scores()[row]),
        text=loop.setting.text(example),
        image=os.path.relpath(image, loop.folder) if isinstance(image, str) else None,
        note=None if kind == "clean" else kind,
    )
    if loop.split is None or place is None:
        return pair
    split, words = loop.split.first, loop.words(example)
    maps = split.maps or {}
    return pair.model_copy(
        update={
            "parts": {m: float(p[place]) for m, p in split.parts.items()},
            "image_map": maps["image"][place].tolist(),
            "tokens": list(zip(words, maps["text"][place].tolist(), strict=True)),
        }
    )


def _neighbours(loop: Loop) -> list[Neighbours]:
    found = []
    for query, cosines, rows in zip(loop.queries(), loop.near_cosines, loop.near_rows, strict=True):
        example = loop.target[int(query)]
        image = example.fields.get("image")
        wanted = Pair(
            row=int(query),
            score=float(cosines[0]),
            text=loop.setting.text(example),
            image=os.path.relpath(image, loop.folder) if isinstance(image, str) else None,
        )
        near = [(float(c), _pair(loop, row)) for c, row in zip(cosines, rows, strict=True)]
        found.append(Neighbours(query=wanted, found=near))
    return found


def _duplicates(loop: Loop) -> list[tuple[float, Pair, Pair]]:
    order = np.argsort(-loop.duplicate_cosines, kind="stable")
    chosen = order[np.linspace(0, len(order) - 1, min(PAIRS, len(order))).astype(int)]
    pairs = ((i, *loop.duplicates[i].tolist()) for i in chosen)
    return [(float(loop.duplicate_cosines[i]), _pair(loop, a), _pair(loop, b)) for i, a, b in pairs]


def _sources(loop: Loop) -> dict[str, dict[str, int]] | None:
    """How many examples of each source are in the pool and in each selector's 20 %; None for a single source."""
    everything = loop.pool.index.sources
    if len(set(everything)) == 1:
        return None
    columns = {"pool": everything}
    for manifest, _ in loop.manifests:
        if manifest.meta["budget"]["asked"] == "20%":
            name = next(n for n, method in SELECTORS.items() if method == manifest.meta["selector"]["method"])
            columns.setdefault(f"{name}, 20 %", tuple(line["source"] for line in manifest.lines))
    return {c: {s: list(sources).count(s) for s in sorted(set(sources))} for c, sources in columns.items()}
