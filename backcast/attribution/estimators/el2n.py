"""The length of the model's error on each training example."""

from __future__ import annotations

import numpy as np

from backcast.attribution.estimators.passes import alike_for_all, over_examples
from backcast.attribution.problem import Problem


def el2n(problem: Problem) -> np.ndarray:
    """score(x, z) = ‖p(x) − y‖₂, whatever the target: the probabilities' distance from the one-hot answer.

    Where the task is a sequence of answers, the mean over them. The source takes the mean over several models early in
    training: give one of an early checkpoint, and add up the scores of several. Cost: one forward of the training
    examples.

    Source: Paul et al. 2021, Deep learning on a data diet, section 2.
    """
    _, task = problem.trained
    return alike_for_all(problem, over_examples(problem, problem.examples[0], task.errors))
