"""A random sample that looks like the targets."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy.optimize import brentq

from backcast.errors import InputError
from backcast.selectors.allowance import Allowance
from backcast.selectors.draws import exact_sum, gumbel, spread
from backcast.selectors.evidence import Evidence, columns
from backcast.selectors.selection import Selection

#: The strongest tilt, as the square of η times the scores' standard deviation.
STEEPEST = 2.0**40


@dataclass(frozen=True)
class Importance:
    """Importance resampling: a draw without replacement, each example as likely as the target distribution makes it.

    The target distribution p is a mixture over the groups of targets, by their weights w_g, of the pool tilted toward
    each group's scores::

        p_i = Σ_g w_g exp(η_g s_ig) / Z_g

    An exponential tilt is, of all distributions on the pool with the same mean score, the one nearest to the pool in
    relative entropy (Csiszár 1975, *I-divergence geometry of probability distributions*, §3). Its strength η_g ≥ 0 is
    the one for which the tilted pool has the effective sample size (Σ_i w_i)² / Σ_i w_i² (Kish 1965) that ``effective``
    asks for. A mixture, and not a tilt toward the mean score, as what one group wants may hinder the others.

    The draw takes the examples with the highest ln p_i + Gumbel noise, and so has the law of drawing one after the
    other with probabilities in proportion to p (Kool et al. 2019, "Stochastic beams and where to find them"). A pick's
    gain is its log importance weight ln(p_i n). O(G n) time for G groups, O(n) memory beside the scores.

    **Weights.** Drawn without replacement, what the targets want most comes at most once, so that a mean over the
    subset is not one over p. With ``weighted`` the picks carry k p_i / (1 − exp(−p_i exp(−κ))), with κ the highest key
    that was not taken. For a budget of examples without bounds by source ``(1/k) Σ_{i∈S} weight_i f_i`` is then
    unbiased for ``Σ_i p_i f_i``, whatever f (Duffield, Lund & Thorup 2007, "Priority sampling"; Kool et al. 2019,
    §4.2), and the expected mean weight is 1. Divided by the sum of the weights it is biased, by O(1/k); and so it is
    where costs or bounds decide what is taken. What a model trained with such weights becomes is no mean, and nothing
    is claimed of it.

    Args:
        effective: the effective sample size of a tilted pool, as a share of the pool, above 0 and at most 1 (no tilt);
            by default the budget's share. Where it is given, a larger budget contains a smaller one.
        weighted: whether the picks carry weights.

    Source: Xie et al., "Data selection for language models via importance resampling" (DSIR, 2023, arXiv 2302.03169),
    §3, where p and the pool are bags of hashed n-grams and the weights their ratio; scores take that ratio's place.
    """

    effective: float | None = None
    weighted: bool = False

    def __post_init__(self) -> None:
        if self.effective is not None and not 0 < self.effective <= 1:
            raise InputError(
                f"importance: effective={self.effective!r} must be a share of the pool above 0 and at most 1"
            )

    def select(self, evidence: Evidence, allowance: Allowance, rng: np.random.Generator) -> Selection:
        evidence.need_scores("importance")
        n = len(evidence)
        p = target_distribution(evidence, allowance.size if self.effective is None else self.effective * n)
        log_p = np.log(np.maximum(p, np.finfo(np.float64).tiny))
        keys = log_p + gumbel(evidence, rng)
        chosen = allowance.first(evidence.best_first(keys))
        weights = inverse_chances(log_p, keys, chosen) * p[chosen] * len(chosen) if self.weighted else None
        return Selection(evidence, chosen, log_p[chosen] + np.log(n), weights)


def target_distribution(evidence: Evidence, effective: float) -> np.ndarray:
    """(n,) the probabilities p of `Importance`, each component of an effective sample size of so many examples."""
    p = np.zeros(len(evidence))
    for weight, scores in zip(evidence.group_weights, columns(evidence.by_group), strict=True):
        tilted = tilt(scores.astype(np.float64), effective)
        p += weight / exact_sum(tilted) * tilted
    return p


def tilt(scores: np.ndarray, effective: float) -> np.ndarray:
    """(n,) exp(η (s − max s)), with the η ≥ 0 for which the effective sample size is ``effective``, to a hundredth.

    Equal highest scores may be more than that many; then they alone are left. ln(n / effective size) is looked at as a
    function of η², in which it is linear for normal scores, so that a few evaluations do, O(n) each.
    """
    below = (scores - scores.max()) / spread(scores)
    unlike = float(np.log(len(scores) / effective))

    @cache
    def excess(square: float) -> float:
        weights = np.exp(np.sqrt(square) * below)
        size = exact_sum(weights) ** 2 / exact_sum(weights * weights)
        return float(np.log(size / effective)) if square else unlike

    high = max(unlike, 0.0)
    while excess(high) > 0 and high < STEEPEST:
        high *= 2
    square = brentq(excess, 0.0, high, xtol=1e-9, rtol=1e-3) if excess(high) < 0 < unlike else high
    return np.exp(np.sqrt(square) * below)


def inverse_chances(log_p: np.ndarray, keys: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """(k,) 1 / P(key_i > κ) for the highest key κ that was not chosen, of Gumbel keys around ``log_p``."""
    left = np.ones(len(keys), dtype=bool)
    left[chosen] = False
    if not left.any():
        return np.ones(len(chosen))
    return -1 / np.expm1(-np.exp(log_p[chosen] - keys[left].max()))
