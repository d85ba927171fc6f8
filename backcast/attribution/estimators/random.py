"""No information: what every other method must beat."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from backcast.attribution.problem import Problem
from backcast.files import sha256
from backcast.kernels.random import philox


def random(problem: Problem, seed: int = 0) -> np.ndarray:
    """score(x, z) uniform on [0, 1), for every target anew, by the hashes of seed, x's id and z's name alone.

    So an example's scores do not change with the order or the number of the others.

    Args:
        seed: of the draw.
    """
    rows, columns = _words(problem.rows.ids), _words(problem.names)
    scores = [philox(seed, rows[:, 0], rows[:, 1], column[0], column[1])[0] for column in columns]
    return torch.stack(scores, 1).double().div_(2**32).numpy()


def _words(names: Sequence[str]) -> torch.Tensor:
    """(n, 2) int64: 64 bits of each name's SHA-256, as two words of 32."""
    return torch.tensor([[int(sha256(name)[place : place + 8], 16) for place in (0, 8)] for name in names])
