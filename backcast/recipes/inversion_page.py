"""The page of an inversion: curves, answers, how sure they are, and what gives the same score."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from backcast.files import write_atomic
from backcast.recipes.invert_results import Answer, Inverted
from backcast.report import Curves, Fitted, Observation, Report, render
from backcast.report.document import Answer as Told
from backcast.report.inverse import Density, Inverse, Pairs, Same, Source
from backcast.scaling import Inversion, Law
from backcast.scaling.preimage import Input, Preimage
from backcast.scaling.profile import Profile

#: Points on a curve and on a density, and how far past the largest run curves are drawn.
POINTS, REACH = 80, 8.0
#: n* is drawn between these quantiles of its finite values, at most this many times past the largest run.
SHOWN, FAR = (0.005, 0.985), 100.0
#: Nested regions of the profile inside its own.
REGIONS = (0.25, 0.5, 0.75)
#: What a table with one curve calls it.
ONLY = "the runs"


def write_page(inverted: Inverted, page: str | Path, title: str) -> Path:
    """Write the page; returns its path."""
    with tempfile.TemporaryDirectory() as empty:  # there are no images
        write_atomic(page, render(document(inverted, title), empty))
    return Path(page)


def document(inverted: Inverted, title: str) -> Report:
    """What the page says."""
    return Report(
        title=title,
        answer=_answer(inverted),
        curves=_curves(inverted),
        next_run=_advised(inverted).advice.sentence(),
        inverse=Inverse(
            densities=[_density(answer) for answer in inverted.answers],
            pairs=[
                _pairs(answer.curve, answer.profile)
                for answer in inverted.answers[: len(inverted.laws)]
                if answer.profile is not None
            ],
            same=[_same(each) for each in inverted.preimages],
            savings=[each.sentence() for each in inverted.savings],
            warnings=[
                (name or ONLY, warning) for name, law in inverted.laws.items() for warning in law.warnings
            ],
        ),
    )


def _answer(inverted: Inverted) -> list[str]:
    """The best answer to the first target, and, of several curves, what gives the same score."""
    best = _advised(inverted).inversion.sentence()
    if len(inverted.laws) == 1:
        return [best[:1].upper() + best[1:]]
    return [best, inverted.preimages[0].sentence()]


def _advised(inverted: Inverted) -> Answer:
    """The answer to the first target with the least n*, of those that have one; else the one that is least unlikely."""
    answers = [answer for answer in inverted.answers if answer.inversion.target == inverted.targets[0]]
    found = [answer for answer in answers if answer.inversion.status in ("reached", "extrapolated")]
    return min(found or answers, key=lambda a: (a.inversion.n, a.inversion.p_unreachable))


def _curves(inverted: Inverted) -> Curves:
    law = next(iter(inverted.laws.values()))
    return Curves(
        metric="the metric",
        higher_is_better=law.higher_is_better,
        target=inverted.targets[0] if len(inverted.targets) == 1 else None,
        observed=[
            Observation(selector=run.group or ONLY, n=run.n, seed=i, metric=run.value)
            for i, run in enumerate(inverted.runs)
        ],
        fitted=[_fitted(name, law, inverted) for name, law in inverted.laws.items()],
        answers=[_told(answer.curve, answer.inversion) for answer in inverted.answers],
    )


def _fitted(name: str, law: Law, inverted: Inverted) -> Fitted:
    """The curve as far as the axis may go."""
    last = max(float(law.budgets.n[-1]) for law in inverted.laws.values())
    n = np.geomspace(law.budgets.n[0], REACH * last, POINTS)
    tail = (1 - inverted.level) / 2
    predicted = law.predict(n, (tail, 1 - tail))
    low, high = predicted.quantiles
    return Fitted(
        selector=name or ONLY,
        n=n.tolist(),
        mean=predicted.mean.tolist(),
        low=low.tolist(),
        high=high.tolist(),
        level=inverted.level,
        upto=float(law.budgets.n[-1]),
    )


def _told(name: str, inversion: Inversion) -> Told:
    value = inversion.to_json()
    kept = ("target", "n", "low", "high", "p_unreachable", "status", "sentence")
    return Told(selector=name or ONLY, **{key: value[key] for key in kept})


def _density(answer: Answer) -> Density:
    """A Gaussian kernel's density of log n* (Silverman's width); what lies past the ends is not drawn."""
    inversion = answer.inversion
    finite = np.log(inversion.samples[np.isfinite(inversion.samples)])
    log_max = np.log(inversion.n_max)
    if not len(finite):
        n, density = np.array([inversion.n_min, inversion.n_max]), np.zeros(2)
    else:
        low, high = np.quantile(finite, SHOWN)
        spread = min(finite.std(), np.subtract(*np.quantile(finite, [0.75, 0.25])) / 1.34)
        width = max(0.9 * spread * len(finite) ** -0.2, 0.01)
        ends = min(low - 3 * width, log_max - 0.1), min(high + 3 * width, log_max + np.log(FAR))
        at = np.linspace(*ends, POINTS)
        kernel = np.exp(-0.5 * ((at[:, None] - finite) / width) ** 2) / (width * np.sqrt(2 * np.pi))
        n, density = np.exp(at), kernel.sum(axis=1) / len(inversion.samples)
    return Density(
        selector=answer.curve or ONLY,
        target=inversion.target,
        n=n.tolist(),
        density=density.tolist(),
        never=inversion.p_unreachable,
        n_max=inversion.n_max,
    )


def _pairs(name: str, found: Profile) -> Pairs:
    rising = slice(None) if found.floors[0] < found.floors[-1] else slice(None, None, -1)
    return Pairs(
        selector=name or ONLY,
        form=found.form,
        higher_is_better=found.higher_is_better,
        floors=found.floors[rising].tolist(),
        exponents=found.exponents.tolist(),
        log_likelihood=found.log_likelihood[rising].tolist(),
        best=(found.floor, found.exponent),
        regions=[(level, found.drop(level)) for level in (*REGIONS, found.level) if level <= found.level],
        sentence=found.sentence(),
    )


def _source(found: Input, named: bool) -> Source:
    """Where an input lies; of one that hardly gives the score, only how hardly."""
    value = found.to_json()
    ends = {key: value[key] for key in ("n", "low", "high")} if named else dict.fromkeys(("n", "low", "high"))
    return Source(selector=found.selector or ONLY, p=found.p, **ends)


def _same(found: Preimage) -> Same:
    return Same(
        target=found.target,
        tolerance=found.tolerance,
        sources=[_source(each, each in found.named) for each in found.inputs],
        sentence=found.sentence(),
    )
