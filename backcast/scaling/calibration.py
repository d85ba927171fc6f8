"""Intervals of n* that hold as often as they say, on curves like those that they were calibrated on.

The posterior of y = log(n*/n_max), given that the target is met within `WITHIN` times the largest budget, is reduced to
its median m and its spread s. On development curves the true y are known, and with them the residuals r = (y - m)/s.
The calibrated distribution of y is that of m + s·r, with r drawn from the residuals of cases of the same reach, each
source of curves counting as one, whatever its number of cases: split conformal prediction on a normalised residual
(Papadopoulos et al. 2002; Lei et al. 2018, "Distribution-free predictive inference for regression", section 5.2), by
groups (Dunn, Wasserman, Ramdas 2023, "Distribution-free prediction sets for two-layer hierarchical models"). It holds
for curves that are exchangeable with a source's, and for new sources only as far as they are like these four.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files

import numpy as np
from scipy.stats import norm

#: The interval is that of a target which is met within this many times the largest budget; P(n* = inf) is told apart.
WITHIN = 32.0
#: Least share of the draws that must meet the target by then for an interval to be told.
TOLD = 0.02
#: The part of s that no posterior knows of.
UNKNOWN = 0.1
#: How near in m a case is to count, a normal kernel's standard deviation.
BANDWIDTH = 0.4
#: Sources differ: stretched by this, intervals hold 90 % of the time over sources that are left out in turn.
STRETCH = 1.15
#: A source with less weight than this many cases near by counts in proportion.
CASES = 5.0


@dataclass(frozen=True)
class Residual:
    """A development case: its source, m, and r."""

    source: str
    reach: float
    value: float


@dataclass(frozen=True)
class Calibration:
    """Residuals of development curves.

    Attributes:
        residuals: a few hundred.
    """

    residuals: tuple[Residual, ...]

    @classmethod
    def shipped(cls) -> Calibration:
        """The residuals in ``calibration.csv``, which ``benchmarks/scaling_calibration.py`` makes."""
        return _shipped()

    def without(self, source: str) -> Calibration:
        """Without one source's, to test on it."""
        return replace(self, residuals=tuple(r for r in self.residuals if r.source != source))

    def quantiles(self, reach: float, levels: np.ndarray) -> np.ndarray:
        """(L,) of the residuals of cases of about this reach, each source counting as one."""
        values = np.array([r.value for r in self.residuals])
        near = norm.pdf(np.array([r.reach for r in self.residuals]), reach, BANDWIDTH) * BANDWIDTH
        sources = np.unique([r.source for r in self.residuals], return_inverse=True)[1]
        mass = np.bincount(sources, near)
        weight = near / np.maximum(mass, CASES)[sources]
        order = np.argsort(values, kind="stable")
        below = np.cumsum(weight[order]) - 0.5 * weight[order]
        return np.interp(levels, below / weight.sum(), values[order])


@cache
def _shipped() -> Calibration:
    with (files("backcast.scaling") / "calibration.csv").open(encoding="utf-8") as file:
        rows = csv.DictReader(file)
        return Calibration(
            tuple(Residual(row["source"], float(row["reach"]), float(row["residual"])) for row in rows)
        )


def summary(log_ratio: np.ndarray) -> tuple[float, float] | None:
    """m and s of (S,) draws of log(n*/n_max); None where too few are within `WITHIN`, or half are among the runs."""
    within = log_ratio[log_ratio < math.log(WITHIN)]
    if len(within) < TOLD * len(log_ratio):
        return None
    low, middle, high = np.quantile(within, [0.16, 0.5, 0.84]).tolist()
    return (middle, math.hypot(UNKNOWN, 0.5 * (high - low))) if middle > 0 else None


def residual(log_ratio: np.ndarray, truth: float, source: str) -> Residual | None:
    """A development case whose true log(n*/n_max) is ``truth``; None where there is no interval to calibrate."""
    found = summary(log_ratio)
    return found and Residual(source, found[0], (truth - found[0]) / found[1])


def calibrated(samples: np.ndarray, n_max: float, by: Calibration) -> np.ndarray:
    """(S,) n* whose finite ones have the calibrated distribution, in the order and the ranks of ``samples``.

    Nothing is changed where the target is as likely as not met within the budgets that were run, or where too few draws
    meet it at all. What lay past `WITHIN` times the largest budget, but not at infinity, stays beyond the others.
    """
    with np.errstate(divide="ignore"):
        log_ratio = np.log(samples / n_max)
    found = summary(log_ratio)
    if found is None:
        return samples
    reach, spread = found
    finite = np.flatnonzero(np.isfinite(samples))
    rank = np.empty(len(finite))
    rank[np.argsort(samples[finite], kind="stable")] = (np.arange(len(finite)) + 0.5) / len(finite)
    answer = samples.copy()
    least = min(0.0, float(np.quantile(log_ratio, 0.05)))  # the runs up to n_max did not meet the target
    answer[finite] = n_max * np.exp(np.maximum(reach + STRETCH * spread * by.quantiles(reach, rank), least))
    return answer


def write_residuals(path: str, residuals: Iterable[Residual]) -> None:
    """As `Calibration.shipped` reads them."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["source", "reach", "residual"])
        rows.writerows([r.source, f"{r.reach:.4f}", f"{r.value:.4f}"] for r in residuals)
