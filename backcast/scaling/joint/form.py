"""What a joint law is: a second input that changes how much data the data are worth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

#: What a combination costs, from n and the other input; it must not fall as n grows.
Cost = Callable[[float, float], float]


@dataclass(frozen=True)
class Coefficient:
    """A coefficient of a joint form and the normal prior of its coordinate.

    Args:
        name: as in the formula.
        mean, sd: the prior's.
        natural: the coordinate → the coefficient, e.g. `numpy.exp`.
    """

    name: str
    mean: float
    sd: float
    natural: Callable[[np.ndarray], np.ndarray] = np.exp


@dataclass(frozen=True)
class JointForm:
    """n examples with the other input at z are worth n_eff examples: y = floor + amplitude · s(n_eff(n, z)).

    Args:
        name: as registered.
        log_effective: (log n, z, *coefficients) → log n_eff, broadcasting (K,) or (S, K) against (S, 1). z is the log
            of the other input, or a share as it is; log n and a logarithmic z count from the middle of those observed.
        coefficients: those of ``log_effective``, in its order.
    """

    name: str
    log_effective: Callable[..., np.ndarray]
    coefficients: tuple[Coefficient, ...]


@dataclass(frozen=True)
class Input:
    """The other input of a joint law.

    Args:
        name: what a table's column is called by default.
        forms: the joint forms that hold for it.
        cost: of n examples at a value of it, when the user gives none.
        says: how a sentence writes a value of it.
        grid: the observed values → those among which the cheapest is looked for, when the user gives none.
        share: whether it lies in [0, 1] and is taken as it is; else it is above 0 and taken by its log.
        relative: whether its unit is arbitrary, so that it counts from the middle of those observed.
    """

    name: str
    forms: tuple[JointForm, ...]
    cost: Cost
    says: Callable[[float], str]
    grid: Callable[[np.ndarray], np.ndarray]
    share: bool = False
    relative: bool = False


def limited(log_n: np.ndarray, log_excess: np.ndarray, gamma: np.ndarray) -> np.ndarray:
    """log of (n^(-γ) + excess)^(-1/γ): n examples, of which no more than excess^(-1/γ) are made use of."""
    return -np.logaddexp(-gamma * log_n, log_excess) / gamma
