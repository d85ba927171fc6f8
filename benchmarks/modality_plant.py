"""Rows that are ruined on purpose, for the settings of `modality.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from backcast.data import Example, Examples

CLEAN, RUINED_IMAGE, RUINED_TEXT = "clean", "ruined image", "ruined text"

#: From a row's fields and a generator to the fields that change.
Ruin = Callable[[Mapping[str, Any], np.random.Generator], Mapping[str, Any]]


def planted(pool: Examples, image: Ruin, text: Ruin, share: float, seed: int) -> tuple[Examples, np.ndarray]:
    """The pool with ``image`` applied to ``share`` of its rows and ``text`` to another ``share``; and which, (n,)."""
    rng = np.random.default_rng(
        (seed, len(pool))
    )  # a seed alone is what a random selection permutes the pool by
    count = round(share * len(pool))
    order = rng.permutation(len(pool))
    kinds = np.full(len(pool), CLEAN, dtype=object)
    kinds[order[:count]], kinds[order[count : 2 * count]] = RUINED_IMAGE, RUINED_TEXT
    ruins: dict[str, Ruin] = {CLEAN: lambda fields, rng: {}, RUINED_IMAGE: image, RUINED_TEXT: text}
    rows = [
        Example({**example.fields, **ruins[kind](example.fields, rng)}, example.row, example.source)
        for example, kind in zip(pool, kinds, strict=True)
    ]
    return Examples(rows), kinds
