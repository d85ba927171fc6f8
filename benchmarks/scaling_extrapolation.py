"""Extrapolation: the last part of a curve foretold from its first (Alabdulmohsin et al. 2022, arXiv 2209.06640).

Image classification (72 tasks) and language (machine translation, language models, BIG-Bench: 20). A law sees the
part that the authors kept for fitting, the ``Training`` column. *rmsle*: root mean squared error of the log of the
posterior's median over the rest, averaged over tasks. *log-likelihood*: of the rest's values under the posterior's
mixture of normals N(curve, variance of one run), likewise averaged.
"""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np
import pandas as pd
import scaling_least_squares as least_squares
from common import Row
from scaling_fits import RUNS, each, interval_of_mean, kept, row
from scipy.special import logsumexp

from backcast.scaling import LAWS, fit_law

BOUNDS = {"vision": (0.0, 1.0), "lang": (0.0, math.inf)}
SOURCES = {"vision": "image classification", "lang": "language"}
#: Published for image classification: (method, measure) → value. The network's from Lee et al. 2025 ("Bayesian neural
#: scaling law extrapolation with prior-data fitted networks"), the others as tabled there.
PUBLISHED = {
    ("BNSL", "rmsle"): 0.0406,
    ("M4", "rmsle"): 0.0415,
    ("MCMC over M4", "rmsle"): 0.0422,
    ("NSL-PFN", "rmsle"): 0.0280,
    ("NSL-PFN", "log-likelihood"): 3.33,
}


def extrapolation(data: Path, quick: bool, workers: int) -> list[Row]:
    rows = []
    for kind in BOUNDS:
        chosen = tasks(data, kind)
        names = list(chosen)[:: len(chosen) // 3] if quick else list(chosen)
        scores = each(
            f"extrapolation: {SOURCES[kind]}",
            score,
            [(kind, name, chosen[name]) for name in names],
            workers,
        )
        for method, measure in (("law", "rmsle"), ("law", "log-likelihood"), ("M4, least squares", "rmsle")):
            values = [one[f"{method} {measure}"] for one in scores]
            interval = interval_of_mean(values, names)
            value = float(np.mean(values))
            rows.append(
                row(
                    "extrapolation",
                    method,
                    SOURCES[kind],
                    None,
                    measure,
                    value,
                    interval=interval,
                    cases=len(names),
                )
            )
    return rows + [
        row("extrapolation", method, SOURCES["vision"], None, measure, None, published, cases=72)
        for (method, measure), published in PUBLISHED.items()
    ]


def tasks(data: Path, kind: str) -> dict[str, pd.DataFrame]:
    table = pd.read_csv(data / "learning_curves" / f"extrapolation_{kind}.csv.gz").drop_duplicates()
    groups = table.groupby(["Domain", "Task", "Model"], sort=False)
    return {" ".join(key).replace("/", "-"): rows for key, rows in groups}


def score(kind: str, name: str, table: pd.DataFrame) -> dict[str, float]:
    return kept(RUNS / "extrapolation" / f"{kind}-{name}.json", lambda: _score(kind, table))


def _score(kind: str, table: pd.DataFrame) -> dict[str, float]:
    seen, rest = table[table.Training == 1].sort_values("Seen Examples"), table[table.Training == 0]
    n, y = (rest[column].to_numpy(float) for column in ("Seen Examples", "Loss"))
    start = time.perf_counter()
    law = fit_law({"n": seen["Seen Examples"].tolist(), "value": seen.Loss.tolist()}, bounds=BOUNDS[kind])
    curves, variance = law.curves(n), law.run_variance(n)
    seconds = time.perf_counter() - start
    log_density = -0.5 * ((y - curves) ** 2 / variance + np.log(2 * np.pi * variance))
    point = least_squares.fit(LAWS["m4"], seen["Seen Examples"].to_numpy(), seen.Loss.to_numpy(), logs=True)
    return {
        "law rmsle": rmsle(np.median(curves, axis=0), y),
        "law log-likelihood": float(np.mean(logsumexp(log_density, axis=0) - math.log(len(curves)))),
        "M4, least squares rmsle": rmsle(point.curve(np.log(n)), y),
        "seconds": seconds,
    }


def rmsle(foretold: np.ndarray, y: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.log(foretold / y) ** 2)))
