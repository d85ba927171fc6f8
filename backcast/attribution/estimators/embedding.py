"""Similarity of the model's own representations."""

from __future__ import annotations

import numpy as np

from backcast.attribution.estimators.passes import over_examples
from backcast.attribution.problem import Problem
from backcast.attribution.store import unit_rows


def embedding(problem: Problem) -> np.ndarray:
    """score(x, z) = cos(h(x), h(z)) of the task's `features` h; of a group, with the mean of its members' h.

    Cost: one forward of the training examples and of the targets.

    Source: Hanawa et al. 2021, Evaluation of similarity-based explanations, the cosine of last hidden layers.
    """
    _, task = problem.trained
    train, target = (over_examples(problem, examples, task.features) for examples in problem.examples)
    return unit_rows(train) @ unit_rows(problem.means(target)).T
