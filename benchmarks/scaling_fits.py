"""Fits that the sections of scaling.py share: made once, kept under runs/, and asked again without refitting."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import HERE, Row
from joblib import Parallel, delayed

import backcast.scaling
from backcast.files import read_json, sha256, whole_file, write_json
from backcast.progress import progress
from backcast.scaling import Inversion, Observation, fit_law
from backcast.scaling.calibration import Calibration, calibrated

LEVEL = 0.9
#: Bootstrap draws of a mean's interval.
DRAWS = 2000


def _code() -> str:
    """A hash of the inverter's code without its calibration, which works on what is kept here."""
    folder = Path(backcast.scaling.__file__).parent
    files = (path for path in sorted(folder.rglob("*.py")) if path.name != "calibration.py")
    return sha256("".join(f"{path.relative_to(folder)}\n{path.read_text()}" for path in files))[:12]


RUNS = HERE.parent / "runs" / "scaling" / _code()


@dataclass(frozen=True)
class Question:
    """Which n meets each of the targets, for a law that has seen these runs alone?"""

    source: str
    runs: tuple[Observation, ...]
    higher_is_better: bool
    bounds: tuple[float, float]
    targets: tuple[float, ...]

    @property
    def place(self) -> Path:
        """Where its answer is kept, by all that it depends on."""
        runs = [(run.n, run.value, run.seed, run.se) for run in self.runs]
        content = json.dumps([runs, self.higher_is_better, self.bounds, self.targets])
        return RUNS / "fits" / f"{self.source}-{sha256(content)[:16]}.npz"


@dataclass(frozen=True)
class Fitted:
    """What is kept of a fit.

    Attributes:
        samples: (targets, S) n*/n_max of the law's curves, sorted; inf where the target is never met.
        facts: n_min, n_max, budgets, flat, saturated, rises, spread (of the budgets' means), seed_noise, run_noise (of
            one run at n_max, the posterior's median), level (of the metric at n_max), weights, r_hat, seconds.
    """

    question: Question
    samples: np.ndarray
    facts: dict[str, Any]


def answer(fit: Fitted, at: int, source: str) -> Inversion:
    """What `Law.invert` says of the question's target number ``at``, calibrated without the curves of ``source``."""
    facts, question = fit.facts, fit.question
    samples = fit.samples[at].astype(float) * facts["n_max"]
    return Inversion.of(
        calibrated(samples, facts["n_max"], Calibration.shipped().without(source)),
        target=question.targets[at],
        level=LEVEL,
        n_min=facts["n_min"],
        n_max=facts["n_max"],
        higher_is_better=question.higher_is_better,
        flat=facts["flat"],
    )


def fitted(questions: Iterable[Question], workers: int) -> list[Fitted]:
    """Every question's fit, in order; those that are not kept yet are made, in so many processes."""
    questions = list(questions)
    missing = list({q.place: q for q in questions if not q.place.exists()}.values())
    each("fits", _keep, [(question,) for question in missing], workers)
    return [_read(question) for question in questions]


def each(name: str, do: Callable[..., Any], arguments: Sequence[tuple[Any, ...]], workers: int) -> list[Any]:
    """``do`` of each, in order, in so many processes."""
    found = []
    with progress(name, len(arguments)) as done:
        for result in Parallel(n_jobs=workers, return_as="generator")(delayed(do)(*one) for one in arguments):
            found.append(result)
            done(1)
    return found


def kept(place: Path, make: Callable[[], Any]) -> Any:
    """What ``make`` gives, a JSON value; made once."""
    if not place.exists():
        write_json(place, make())
    return read_json(place)


def _keep(question: Question) -> None:
    start = time.perf_counter()
    law = fit_law(question.runs, higher_is_better=question.higher_is_better, bounds=question.bounds)
    budgets = law.budgets
    n_max = float(budgets.n[-1])
    samples = np.sort([law.n_at(target) for target in question.targets], axis=1) / n_max
    facts = {
        "seconds": time.perf_counter() - start,
        "n_min": float(budgets.n[0]),
        "n_max": n_max,
        "budgets": len(budgets),
        "flat": budgets.flat,
        "saturated": budgets.saturated,
        "rises": budgets.rise is not None,
        "spread": budgets.spread,
        "seed_noise": budgets.seed_noise,
        "run_noise": float(np.sqrt(np.median(law.run_variance(n_max)))),
        "level": float(np.median(law.curves(n_max))),
        "weights": dict(law.weights),
        "r_hat": law.r_hat,
    }
    with whole_file(question.place) as file:
        np.savez_compressed(file, samples=samples.astype(np.float32), facts=np.array(json.dumps(facts)))


def _read(question: Question) -> Fitted:
    with np.load(question.place, allow_pickle=False) as file:
        return Fitted(question, file["samples"], json.loads(str(file["facts"])))


def row(
    benchmark: str,
    method: str,
    source: str,
    reach: int | str | None,
    measure: str,
    value: float | None,
    published: float | None = None,
    interval: tuple[float, float] | None = None,
    cases: int | None = None,
    note: str | None = None,
) -> Row:
    """A result; a value that is not finite is None."""
    low, high = interval or (None, None)
    return {
        "benchmark": benchmark,
        "method": method,
        "source": source,
        "reach": reach,
        "measure": measure,
        "value": value if value is None or np.isfinite(value) else None,
        "published": published,
        "low": low,
        "high": high,
        "cases": cases,
        "note": note,
    }


def interval_of_mean(values: Sequence[float], units: Sequence[Any]) -> tuple[float, float]:
    """The 90 % interval of the mean, by drawing whole units (curves, whose cases go together) with replacement."""
    place = np.unique(np.asarray(units), return_inverse=True)[1]
    sums, counts = np.bincount(place, np.asarray(values, dtype=float)), np.bincount(place)
    drawn = np.random.default_rng(0).integers(len(sums), size=(DRAWS, len(sums)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, [0.05, 0.95]).tolist()
    return low, high
