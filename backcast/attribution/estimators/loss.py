"""The training examples' own losses."""

from __future__ import annotations

import numpy as np

from backcast.attribution.estimators.passes import alike_for_all, over_examples
from backcast.attribution.problem import Problem


def loss(problem: Problem) -> np.ndarray:
    """score(x, z) = ℓ(x), whatever the target: what the model has learnt least comes first.

    A baseline: it knows nothing of z. Cost: one forward of the training examples.

    Source: e.g. Loshchilov & Hutter 2015, Online batch selection for faster training of neural networks, where examples
    of large loss are drawn more often.
    """
    _, task = problem.trained
    return alike_for_all(problem, over_examples(problem, problem.examples[0], task.loss))
