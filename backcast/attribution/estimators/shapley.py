"""In-run data Shapley, summed over the run."""

from __future__ import annotations

from typing import Literal

import numpy as np

from backcast.attribution.problem import Problem
from backcast.errors import InputError


def shapley(problem: Problem, order: Literal[1, 2] = 1) -> np.ndarray:
    """score(x, z) = Σ_t φ_x(t): what x did to z's loss in each step that it was in, as the step's Shapley value.

    The terms were taken while the model trained (`Recorder` with ``target=``, which has the formulas): of first order
    η ⟨∇L(z), s ∇ℓ(x)⟩, of second order also −½ η² ⟨s ∇ℓ(x), H_z Σ_j s_j ∇ℓ_j⟩. What a step does to later ones is left
    out. Values of a step add up to the fall of z's loss in it, to that order.

    Args:
        order: 1, or 2 where it was recorded.

    Source: Wang et al. 2024, Data Shapley in one training run, arXiv 2406.11011, sections 4.1 and 4.2.
    """
    if order not in (1, 2):
        raise InputError(f"in-run Shapley values of order {order} do not exist; choose 1 or 2")
    recording = problem.recording
    train, target = problem.examples
    taken = recording.shapley
    if taken is None or taken["order"] < order:
        raise InputError(
            f"{recording.path}: holds no in-run Shapley values of order {order}; record with target= and order={order}"
        )
    if recording.rows.ids != train.index.ids:
        raise InputError(
            f"{recording.path}: recorded on other examples; give those it was trained on, in order"
        )
    groups = None if problem.groups is None else list(problem.groups)
    if taken["fingerprint"] != target.index.fingerprint or taken.get("groups") != groups:
        raise InputError(f"{recording.path}: its values are for other targets; give those that were recorded")
    scores = np.zeros((len(train), len(problem.names)))
    for _, rows, values in recording.contributions():
        np.add.at(scores, rows, values[:, :order].sum(1))
    return scores
