"""A store's rows through a formula, one shard in memory at a time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from backcast.attribution.store import SketchStore


def blocks(train: SketchStore, checkpoint: int, formula: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """(n, g) float32: ``formula`` of each shard's (r, k) sketches, one below the other."""
    place = range(len(train.checkpoints))[checkpoint]
    return np.concatenate([formula(sketches) for _, sketches in train.shards(place)])
