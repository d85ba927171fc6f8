"""The training examples' perplexities."""

from __future__ import annotations

import numpy as np

from backcast.attribution.estimators.passes import alike_for_all, over_examples
from backcast.attribution.problem import Problem


def perplexity(problem: Problem) -> np.ndarray:
    """score(x, z) = exp(mean loss of x's tokens), whatever the target: the most surprising comes first.

    The score is the perplexity itself, so whoever holds plain text for good text, or keeps the middle, selects from
    the other end. Of tasks without tokens it is e^ℓ. Cost: one forward of the training examples.

    Source: Marion et al. 2023, When less is more: investigating data pruning for pretraining LLMs at scale; there
    the middle of the distribution did best.
    """
    _, task = problem.trained
    return alike_for_all(problem, over_examples(problem, problem.examples[0], task.perplexity))
