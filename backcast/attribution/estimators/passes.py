"""One pass of the model over examples, without gradients."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from backcast.attribution.collect import batches_of, evaluation_mode, uncompiled
from backcast.attribution.problem import Problem
from backcast.data import Examples
from backcast.progress import progress
from backcast.tasks import Batch, batches, on_device

#: Examples among which batches of like length are made, and the most of the longest in a batch.
BLOCK, BATCH = 1024, 64


@torch.no_grad()
def over_examples(
    problem: Problem, examples: Examples, function: Callable[[nn.Module, Batch], Tensor]
) -> np.ndarray:
    """(n, ...) float64: ``function(model, batch) -> (B, ...)`` of n examples, by the trained model as it stands.

    The model is in evaluation mode; batches are of like length.
    """
    model, task = problem.trained
    values: list[np.ndarray] = []
    with evaluation_mode(model), uncompiled(model), progress(problem.method, len(examples)) as done:
        task.prepare(model)
        for block in batches(examples, BLOCK):
            packs = batches_of(model, task, block, BATCH)
            parts = []
            for pack in packs:
                batch = on_device(task.collate([block[row] for row in pack]), model)
                parts.append(function(model, batch).double().cpu().numpy())
                done(len(pack))
            order = np.argsort([row for pack in packs for row in pack])
            values.append(np.concatenate(parts)[order])
    return np.concatenate(values)


def alike_for_all(problem: Problem, values: np.ndarray) -> np.ndarray:
    """(n, g): scores (n,) of the training examples that do not depend on the target."""
    return np.repeat(values[:, None], len(problem.names), axis=1)
