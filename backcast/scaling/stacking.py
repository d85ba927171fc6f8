"""Weights of the forms by how well each had foreseen the later budgets from the earlier ones."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

#: Observations' worth of evidence that every form starts with: with few budgets the weights stay near equal.
PSEUDO = 0.3
STEPS = 300
#: A form whose evidence is within this many nats of the best one's is not contradicted by the table.
LEEWAY = 3.0
#: Forms are scored on at most this many earlier tables.
PREFIXES = 4


def stack(scores: Sequence[Sequence[np.ndarray]], log_evidence: Sequence[float]) -> np.ndarray:
    """(M,) weights that maximise the mixture's log score, with a Dirichlet prior.

    Stacking of predictive distributions (Yao et al. 2018, Bayesian Analysis 13), on later budgets in place of left-out
    ones: Σ_p mean_k log Σ_m w_m p_m(y_k | earlier table p) + PSEUDO · Σ_m log w_m, by expectation-maximisation. An
    earlier table counts once, however many budgets come after it: those are foreseen together or not at all.

    What foresaw well from half the table may be contradicted by the whole of it, e.g. a power law by a plateau. A form
    whose evidence is below the best one's by more than `LEEWAY` loses weight by as much as it is.

    Args:
        scores: for each form, for each earlier table, the log densities of the later budgets' means.
        log_evidence: (M,) of the whole table under each form.
    """
    tables = [np.stack(form) for form in zip(*scores, strict=True)]
    density = [np.exp(table - table.max(axis=0)) for table in tables]
    weights = np.full(len(scores), 1.0 / len(scores))
    for _ in range(STEPS):
        credit = np.full(len(weights), PSEUDO)
        for table in density:
            share = weights[:, None] * table
            credit += (share / share.sum(axis=0)).mean(axis=1)
        weights = credit / credit.sum()
    deficit = np.max(log_evidence) - np.asarray(log_evidence)
    weights = weights * np.exp(np.minimum(LEEWAY - deficit, 0.0))
    return weights / weights.sum()


def prefixes(budgets: int) -> list[int]:
    """Lengths of the growing tables that a law is fitted to: 2, 3, ... up to all, thinned to `PREFIXES` + 1."""
    first = max(2, math.ceil(budgets / 3))
    return sorted(
        set(np.linspace(first, budgets, min(PREFIXES, budgets - first) + 1).round().astype(int).tolist())
    )
