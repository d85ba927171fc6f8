"""What a law is: a decreasing shape s(n) that goes to zero; a curve is floor + amplitude · s(n)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Parameter:
    """A shape's parameter, fitted as its log, and the normal prior of that.

    Args:
        name: what it is the log of.
        mean, sd: the prior's. For a place on the n axis, ``mean`` counts from the middle of the observed budgets in
            log n, and ``sd`` is added to half their range.
        place: whether it is such a place.
    """

    name: str
    mean: float
    sd: float
    place: bool = False


@dataclass(frozen=True)
class Form:
    """A family of learning curves y(n) = floor + amplitude · s(n), with s decreasing to 0 (lower is better).

    Args:
        name: as registered.
        log_shape: (log n, *logs of the parameters) → log s(n), broadcasting (K,) or (S, K) against (S, 1).
        parameters: those of ``log_shape``, in its order.
    """

    name: str
    log_shape: Callable[..., np.ndarray]
    parameters: tuple[Parameter, ...]
