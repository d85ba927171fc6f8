"""LESS: the step that Adam would make on an example, against the target's gradient."""

from __future__ import annotations

from backcast.attribution.estimators.blocks import Blocks
from backcast.attribution.estimators.tracin import tracin
from backcast.attribution.problem import Problem
from backcast.errors import InputError


def less(problem: Problem) -> Blocks:
    """score(x, J) = Σ_c η_c cos(Γ_c(x), mean_{z ∈ J} ∇ℓ_c(z)) over the checkpoints c with learning rates η_c.

    Γ_c(x) is the direction of Adam's next step, were it on x alone. The training store holds such directions
    (``collect(..., direction="adam")``), the target's store plain gradients. LESS then takes each example's largest
    score over the target groups J: `Scores.best`.

    Source: Xia et al. 2024, LESS: selecting influential data for targeted instruction tuning, arXiv 2402.04333,
    sections 3.1, 3.2 and 4.2.

    Raises:
        InputError: stores of other directions.
    """
    for store, side, wanted in zip(problem.stores, ("train", "target"), ("adam", "gradient"), strict=True):
        if store.header.origin["direction"] != wanted:
            raise InputError(
                f"{store.path}: method 'less' needs collect(..., direction=\"{wanted}\") of the {side}"
            )
    return tracin(problem, cosine=True)
