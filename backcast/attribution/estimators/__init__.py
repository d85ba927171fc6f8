"""Estimators: a `Problem` → (n, g) scores. A new one is a file and a line here."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from backcast.attribution.estimators.grad_cos import grad_cos
from backcast.attribution.estimators.grad_dot import grad_dot
from backcast.attribution.estimators.tracin import tracin

#: name → estimator(problem, **params) → (n, g): the score of every training example for every target group.
ESTIMATORS: dict[str, Callable[..., np.ndarray]] = {
    "grad_dot": grad_dot,
    "grad_cos": grad_cos,
    "tracin": tracin,
}
