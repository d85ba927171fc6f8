"""What a selector may look at: the pool, its scores and its features."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from backcast.data.examples import Rows
from backcast.errors import InputError
from backcast.selectors.modality import MODALITIES
from backcast.vectors import Features, Readable

if TYPE_CHECKING:  # attribution imports torch
    from backcast.attribution.scores import Scores

#: Rows of scores looked at once.
BLOCK = 65536

#: Columns of scores brought together at once.
COLUMNS = 16

#: How many of the best are looked for at first.
FIRST = 4096

#: The parts of a score; the interaction is told where there is one.
PARTS = (*MODALITIES, "interaction")

#: Positions in the pool → the metric of a model trained on them.
Trial = Callable[[np.ndarray], float]


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
        features: (n, d) rows of unit norm (or zero), so that inner products are cosines; gradient sketches as a rule.
            None when there are none.
        targets: the m targets' names.
        groups: the group of each of the m targets; by default each is its own.
        weights: group → how much it counts, above zero; those that are not named count 1.
        parts: modality → (n,) float64, the signed parts of the examples' scores, under ``"image"``, ``"text"`` and, if
            known, ``"interaction"``; NaN in the rows that have no split, or whose split was flagged. None when the
            scores were not split.
        signals: name → (n,) float64, other things measured of each example, such as its perplexity.
        trial: positions → the metric of a model trained on these examples, higher is better; for the methods that learn
            from training.

    Raises:
        InputError: the pool is empty, the sizes differ, a number is not finite (for a part: is infinite), a part is
            missing or unknown, or a weight is for no group or not above zero.
    """

    rows: Rows
    scores: np.ndarray | None = None
    features: Features | None = None
    targets: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    weights: Mapping[str, float] = field(default_factory=dict)
    parts: Mapping[str, np.ndarray] | None = None
    signals: Mapping[str, np.ndarray] = field(default_factory=dict)
    trial: Trial | None = None

    def __post_init__(self) -> None:
        if not len(self.rows):
            raise InputError("nothing to select from: the pool is empty")
        for name, values in (("scores", self.scores), ("features", self.features)):
            if values is not None and (
                len(values) != len(self) or len(values.shape) != 2 or not values.shape[1]
            ):
                raise InputError(
                    f"{name} of shape {values.shape} do not fit a pool of {len(self)} examples; "
                    "give one row of numbers for each"
                )
        if self.scores is not None:
            _refuse_broken(self.scores)
        if self.parts is not None:
            _check_parts(self.parts, len(self))
        for name, signal in self.signals.items():
            if signal.shape != (len(self),) or not np.isfinite(signal).all():
                raise InputError(f"signal {name!r}: not one finite number for each of {len(self)} examples")
        self._check_groups()

    def _check_groups(self) -> None:
        if self.groups and len(self.groups) != len(self.targets):
            raise InputError(
                f"{len(self.groups)} group names for {len(self.targets)} targets; give one for each"
            )
        for name, weight in self.weights.items():
            if name not in self.group_names:
                raise InputError(
                    f"weights: {name!r} is no group of targets; they are {', '.join(self.group_names[:9])}"
                )
            if not 0 < weight < np.inf:
                raise InputError(f"weights: {name}={weight!r} must be a number above zero")

    @classmethod
    def of(
        cls,
        scores: Scores | Rows,
        features: Features | Readable | np.ndarray | None = None,
        parts: HasParts | Mapping[str, np.ndarray] | None = None,
        signals: Mapping[str, Scores | np.ndarray] | None = None,
        **others: Any,
    ) -> Evidence:
        """The evidence in ``scores`` (or bare rows), ``features``, ``parts`` and ``signals``, each of the same pool."""
        rows = scores if isinstance(scores, Rows) else scores.train
        known: dict[str, Any] = {
            "features": None if features is None else _features(features, rows),
            "parts": None if parts is None else _arrays(parts, rows),
            "signals": {name: _signal(name, signal, rows) for name, signal in (signals or {}).items()},
        }
        if isinstance(scores, Rows):
            return cls(rows, **known, **others)
        return cls(rows, scores.values, targets=scores.targets, **known, **others)

    def __len__(self) -> int:
        return len(self.rows)

    def need_scores(self, asker: str) -> np.ndarray:
        """The scores, or an `InputError` that says where ``asker`` gets them."""
        if self.scores is None:
            raise InputError(
                f"{asker} needs scores: select from Scores ('backcast score'), not from rows alone"
            )
        return self.scores

    def need_features(self, asker: str) -> Features:
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

    def need_trial(self, asker: str) -> Trial:
        """The trial, or an `InputError` that says where ``asker`` gets it."""
        if self.trial is None:
            raise InputError(
                f"{asker} needs a trial: give trial=, a callable that trains on positions and returns a metric"
            )
        return self.trial

    @cached_property
    def group_names(self) -> tuple[str, ...]:
        """The G groups of targets, in order of first appearance; without groups the targets themselves."""
        return tuple(dict.fromkeys(self.groups)) or self.targets

    @cached_property
    def group_weights(self) -> np.ndarray:
        """(G,) float64, how much each group counts; they add up to one."""
        weights = np.asarray([self.weights.get(name, 1.0) for name in self.group_names])
        return weights / weights.sum()

    @cached_property
    def by_group(self) -> np.ndarray:
        """(n, G) each example's mean score for every group of targets, whatever their sizes."""
        scores = self.need_scores("a group of targets")
        if not self.groups:
            return scores
        members = [np.flatnonzero([name == group for name in self.groups]) for group in self.group_names]
        found = np.empty((len(self), len(members)))
        for start in range(0, len(self), BLOCK):
            block = scores[start : start + BLOCK]
            for g, own in enumerate(members):
                found[start : start + BLOCK, g] = block[:, own].mean(axis=1, dtype=np.float64)
        return found

    @cached_property
    def mean(self) -> np.ndarray:
        """(n,) float64, each example's mean score over the groups, by their weights; zeros without scores."""
        if self.scores is None:
            return np.zeros(len(self))
        if not self.weights:
            return self.by_group.mean(axis=1, dtype=np.float64)
        total = np.zeros(len(self))
        for weight, column in zip(self.group_weights, self.by_group.T, strict=True):
            total += weight * column
        return total

    @cached_property
    def best(self) -> np.ndarray:
        """(n,) float64, each example's score for the group that it serves best, whatever its weight; zeros without
        scores."""
        return np.zeros(len(self)) if self.scores is None else self.by_group.max(axis=1).astype(np.float64)

    @cached_property
    def by_id(self) -> np.ndarray:
        """(n,) positions by content id, equal ids by row: an order that no shuffle of the pool changes."""
        by_row = np.argsort(self.rows.rows, kind="stable").tolist()
        return np.asarray(sorted(by_row, key=self.rows.ids.__getitem__), dtype=np.int64)

    @cached_property
    def id_rank(self) -> np.ndarray:
        """(n,) each example's place in `by_id`."""
        ranks = np.empty(len(self), dtype=np.int64)
        ranks[self.by_id] = np.arange(len(self))
        return ranks

    def ranked(self, key: np.ndarray) -> np.ndarray:
        """(n,) positions from the highest ``key`` to the lowest; ties by mean score, then by content id."""
        return np.lexsort((self.id_rank, -self.mean, -key))

    def best_first(self, key: np.ndarray) -> Iterator[int]:
        """The positions as `ranked` gives them, for who needs only the first: O(n) for those, instead of O(n log n)."""
        left, some = np.arange(len(self)), FIRST
        while len(left):
            values = key[left]
            # with all that equal the last of them, so that ties are not torn apart
            least = -np.partition(-values, some)[some] if some < len(left) else values.min()
            now = left[values >= least]
            yield from now[np.lexsort((self.id_rank[now], -self.mean[now], -key[now]))].tolist()
            left, some = left[values < least], some * 4

    def take(self, positions: np.ndarray) -> Evidence:
        """The evidence of some of the pool, in the order given."""
        whole = self.trial
        return replace(
            self,
            rows=take_rows(self.rows, positions),
            scores=None if self.scores is None else self.scores[positions],
            features=None if self.features is None else self.features.take(positions),
            parts=None
            if self.parts is None
            else {name: part[positions] for name, part in self.parts.items()},
            signals={name: signal[positions] for name, signal in self.signals.items()},
            trial=None if whole is None else lambda chosen: whole(positions[chosen]),
        )

    def towards(self, group: int) -> Evidence:
        """The same pool, scored for one of the groups of targets alone."""
        name = self.group_names[group]
        scores = np.asarray(self.by_group[:, [group]])
        found = replace(self, scores=scores, targets=(name,), groups=(), weights={})
        found.__dict__["by_id"] = self.by_id  # of the same rows; sorting them takes longer than all the rest
        return found


def columns(matrix: np.ndarray) -> Iterator[np.ndarray]:
    """The columns in order, each contiguous, of a matrix that may be a memory map: it is not read once a column."""
    for start in range(0, matrix.shape[1], COLUMNS):
        yield from np.ascontiguousarray(matrix[:, start : start + COLUMNS].T)


def take_rows(rows: Rows, positions: np.ndarray) -> Rows:
    """Some of the rows, in the order given; they keep where they came from."""

    def some(values: tuple[str, ...]) -> Iterable[str]:
        return (values[i] for i in positions)

    return Rows(
        tuple(some(rows.ids)), rows.rows[positions], tuple(some(rows.sources)), rows.dataset, rows.columns
    )


def _features(features: Features | Readable | np.ndarray, rows: Rows) -> Features:
    own = getattr(features, "rows", rows)
    if own.ids != rows.ids:
        raise InputError(
            f"the features are those of {len(own)} other examples than the {len(rows)} of the pool; "
            "give the store that the scores were made from"
        )
    return Features.of(features)


def _signal(name: str, signal: Scores | np.ndarray, rows: Rows) -> np.ndarray:
    if isinstance(signal, np.ndarray):
        return signal.astype(np.float64)
    if signal.train.ids != rows.ids:
        raise InputError(
            f"signal {name!r}: of {len(signal)} other examples than the {len(rows)} of the pool; score the pool"
        )
    return signal.values.mean(axis=1, dtype=np.float64)


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


def _refuse_broken(scores: np.ndarray) -> None:
    for start in range(0, len(scores), BLOCK):
        broken = np.flatnonzero(~np.isfinite(scores[start : start + BLOCK]).all(axis=1))
        if len(broken):
            raise InputError(
                f"scores: row {start + broken[0]} holds a NaN or an infinity; "
                "leave the example out, or mend what made it"
            )
