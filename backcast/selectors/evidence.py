"""What a selector may look at: the pool, its scores and its features."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from backcast.data.examples import Rows
from backcast.errors import InputError
from backcast.selectors.modality import MODALITIES

if TYPE_CHECKING:  # attribution imports torch
    from backcast.attribution.scores import Scores

#: Rows of features brought to unit norm at once.
BLOCK = 4096

#: The parts of a score; the interaction is told where there is one.
PARTS = (*MODALITIES, "interaction")


class HasFeatures(Protocol):
    """A sketch store, or anything else that gives one row of features per example.

    If it has ``rows`` (`Rows`), they must be the pool's.
    """

    def features(self) -> np.ndarray: ...


class HasParts(Protocol):
    """Scores split by modality, with the examples that they are of.

    It has ``rows`` (`Rows`) or, without them, the content ``ids``; they must be the pool's. What it says in ``made`` of
    how the scores were split, if it has that, goes into the manifest.
    """

    @property
    def parts(self) -> Mapping[str, np.ndarray]: ...


@dataclass(frozen=True, eq=False)
class Evidence:
    """A pool of n examples and what is known of them.

    Attributes:
        rows: the n examples.
        scores: (n, m), higher is more helpful to that target; None when the pool was not scored.
        features: (n, d) float32 whose rows have unit norm (or are zero), so that inner products are cosines;
            gradient sketches as a rule. None when there are none.
        targets: the m targets' names.
        parts: modality → (n,) float64, the signed parts of the examples' scores, under ``"image"``, ``"text"`` and, if
            known, ``"interaction"``; NaN in the rows that have no split, or whose split was flagged. None when the
            scores were not split.

    Raises:
        InputError: the pool is empty, the sizes differ, a number is not finite (for a part: is infinite), or a part is
            missing or unknown.
    """

    rows: Rows
    scores: np.ndarray | None = None
    features: np.ndarray | None = None
    targets: tuple[str, ...] = ()
    parts: Mapping[str, np.ndarray] | None = None

    def __post_init__(self) -> None:
        if not len(self.rows):
            raise InputError("nothing to select from: the pool is empty")
        for name, values in (("scores", self.scores), ("features", self.features)):
            if values is None:
                continue
            if values.ndim != 2 or len(values) != len(self) or not values.shape[1]:
                raise InputError(
                    f"{name} of shape {values.shape} do not fit a pool of {len(self)} examples; "
                    "give one row of numbers for each"
                )
            _refuse_broken(name, values)
        if self.parts is not None:
            _check_parts(self.parts, len(self))

    @classmethod
    def of(
        cls,
        scores: Scores | Rows,
        features: HasFeatures | np.ndarray | None = None,
        parts: HasParts | Mapping[str, np.ndarray] | None = None,
    ) -> Evidence:
        """The evidence in ``scores`` (or bare rows), in ``features``, brought to unit norm, and in ``parts``."""
        rows = scores if isinstance(scores, Rows) else scores.train
        unit = None if features is None else unit_rows(_matrix(features, rows))
        split = None if parts is None else _arrays(parts, rows)
        if isinstance(scores, Rows):
            return cls(rows, None, unit, parts=split)
        return cls(rows, scores.values, unit, scores.targets, split)

    def __len__(self) -> int:
        return len(self.rows)

    def need_scores(self, asker: str) -> np.ndarray:
        """The scores, or an `InputError` that says where ``asker`` gets them."""
        if self.scores is None:
            raise InputError(
                f"{asker} needs scores: select from Scores ('backcast score'), not from rows alone"
            )
        return self.scores

    def need_features(self, asker: str) -> np.ndarray:
        """The features, or an `InputError` that says where ``asker`` gets them."""
        if self.features is None:
            raise InputError(
                f"{asker} needs features: give features=, the pool's sketch store or an (n, d) array"
            )
        return self.features

    def need_parts(self, asker: str) -> Mapping[str, np.ndarray]:
        """The parts, or an `InputError` that says where ``asker`` gets them."""
        if self.parts is None:
            raise InputError(
                f"{asker} needs parts: give parts=, the pool's scores split by modality ('backcast split')"
            )
        return self.parts

    @cached_property
    def mean(self) -> np.ndarray:
        """(n,) float64, each example's mean score over the targets; zeros without scores."""
        return np.zeros(len(self)) if self.scores is None else self.scores.mean(axis=1, dtype=np.float64)

    @cached_property
    def best(self) -> np.ndarray:
        """(n,) float64, each example's score for the target that it serves best; zeros without scores."""
        return np.zeros(len(self)) if self.scores is None else self.scores.max(axis=1).astype(np.float64)

    @cached_property
    def by_id(self) -> np.ndarray:
        """(n,) positions by content id, equal ids by row: an order that no shuffle of the pool changes."""
        return np.lexsort((self.rows.rows, np.asarray(self.rows.ids)))

    def ranked(self, key: np.ndarray) -> np.ndarray:
        """(n,) positions from the highest ``key`` to the lowest; ties by mean score, then by content id."""
        order = self.by_id
        return order[np.lexsort((-self.mean[order], -key[order]))]

    def take(self, positions: np.ndarray) -> Evidence:
        """The evidence of some of the pool, in the order given."""
        return Evidence(
            take_rows(self.rows, positions),
            None if self.scores is None else self.scores[positions],
            None if self.features is None else self.features[positions],
            self.targets,
            None if self.parts is None else {name: part[positions] for name, part in self.parts.items()},
        )


def take_rows(rows: Rows, positions: np.ndarray) -> Rows:
    """Some of the rows, in the order given; they keep where they came from."""

    def some(values: tuple[str, ...]) -> Iterable[str]:
        return (values[i] for i in positions)

    return Rows(
        tuple(some(rows.ids)), rows.rows[positions], tuple(some(rows.sources)), rows.dataset, rows.columns
    )


def _matrix(features: HasFeatures | np.ndarray, rows: Rows) -> np.ndarray:
    if isinstance(features, np.ndarray):
        return features
    own = getattr(features, "rows", rows)
    if own.ids != rows.ids:
        raise InputError(
            f"the features are those of {len(own)} other examples than the {len(rows)} of the pool; "
            "give the store that the scores were made from"
        )
    return features.features()


def _arrays(parts: HasParts | Mapping[str, np.ndarray], rows: Rows) -> dict[str, np.ndarray]:
    if not isinstance(parts, Mapping):
        own: Any = getattr(parts, "rows", parts)
        if tuple(own.ids) != rows.ids:
            raise InputError(
                f"the parts are those of {len(own.ids)} other examples than the {len(rows)} of the pool, "
                "or in another order; split the whole pool that the scores are of"
            )
        parts = parts.parts
    try:
        return {name: np.asarray(part, dtype=np.float64) for name, part in parts.items()}
    except (TypeError, ValueError):
        raise InputError(
            "parts: not arrays of numbers; give one number an example for each modality"
        ) from None


def _check_parts(parts: Mapping[str, np.ndarray], n: int) -> None:
    if not set(MODALITIES) <= set(parts) <= set(PARTS):
        raise InputError(
            f"parts: {', '.join(map(repr, parts)) or 'none'}; give 'image', 'text' and, if known, 'interaction'"
        )
    for name, part in parts.items():
        if part.shape != (n,):
            raise InputError(
                f"parts: {name} of shape {part.shape} does not fit a pool of {n} examples; give one number for each"
            )
        infinite = np.flatnonzero(np.isinf(part))
        if len(infinite):
            raise InputError(
                f"parts: {name} of row {infinite[0]} is infinite; give NaN where there is no split"
            )


def unit_rows(features: np.ndarray) -> np.ndarray:
    """(n, d) float32 of the same directions; rows of zeros stay zero.

    Norms are taken in float64, so that they come out alike on every machine.

    Raises:
        InputError: the features are not a matrix of finite numbers.
    """
    if features.ndim != 2 or not np.issubdtype(features.dtype, np.number):
        raise InputError(
            f"features of shape {features.shape} and type {features.dtype} are not an (n, d) array"
        )
    unit = np.empty(features.shape, dtype=np.float32)
    for start in range(0, len(features), BLOCK):
        block = np.asarray(features[start : start + BLOCK], dtype=np.float64)
        _refuse_broken("features", block, start)
        norms = np.linalg.norm(block, axis=1, keepdims=True)
        unit[start : start + BLOCK] = block / np.where(norms > 0, norms, 1)
    return unit


def _refuse_broken(name: str, values: np.ndarray, start: int = 0) -> None:
    broken = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(broken):
        raise InputError(
            f"{name}: row {start + broken[0]} holds a NaN or an infinity; "
            "leave the example out, or mend what made it"
        )
