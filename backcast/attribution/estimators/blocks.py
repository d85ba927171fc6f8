"""A store's rows through a formula, one shard in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from backcast.attribution.store import SketchStore


class Blocks:
    """(n, g) float32 scores that are computed a shard of rows at a time, whenever they are gone through.

    numpy takes them for the array that they stand for, and then holds all of it.
    """

    def __init__(self, blocks: Callable[[], Iterable[np.ndarray]]) -> None:
        self._blocks = blocks

    def __iter__(self) -> Iterator[np.ndarray]:
        """(r, g) each, one below the other."""
        return iter(self._blocks())

    def __add__(self, other: Blocks) -> Blocks:
        return Blocks(lambda: (ours + theirs for ours, theirs in zip(self, other, strict=True)))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.concatenate(list(self)).astype(dtype or np.float32, copy=False)


def blocks(train: SketchStore, checkpoint: int, formula: Callable[[np.ndarray], np.ndarray]) -> Blocks:
    """(n, g): ``formula`` of each shard's (r, k) sketches of loss gradients, one below the other."""
    place = range(len(train.checkpoints))[checkpoint]
    return Blocks(lambda: (formula(gradients) for gradients in _loss_gradients(train, place)))


def _loss_gradients(train: SketchStore, place: int) -> Iterator[np.ndarray]:
    """(r, k) of each shard; in a store of outputs f, ∇ℓ = ∂ℓ/∂f ∇f."""
    slopes = train.slopes(place)[:, None] if train.header.origin["of"] == "output" else None
    for rows, sketches in train.shards(place):
        yield sketches if slopes is None else slopes[rows] * sketches
