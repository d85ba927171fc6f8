"""From two stores to the score of every training example for every target."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np

from backcast.attribution.estimators import ESTIMATORS
from backcast.attribution.scores import Scores
from backcast.attribution.store import SketchStore
from backcast.errors import InputError


def attribute(
    train: SketchStore,
    target: SketchStore,
    method: str = "tracin",
    *,
    groups: Sequence[str] | None = None,
    **params: Any,
) -> Scores:
    """Score the n examples of ``train`` by what they do for the targets.

    Args:
        train: sketches of the training examples.
        target: sketches of the examples that are wanted, of the same spec and checkpoints.
        method: one of `backcast.attribution.ESTIMATORS`.
        groups: a name for each target; a group's gradient is the mean of its rows, whatever their number.
        params: the estimator's own.

    Returns:
        Scores (n, m), or (n, groups) in the order in which the names first appear.

    Raises:
        InputError: stores that do not compare, an unknown method or parameter, or groups that do not fit.
    """
    _check_comparable(train, target)
    estimator = _estimator(method, params)
    sketches = [target.sketches(c) for c in range(len(target.checkpoints))]
    names: tuple[str, ...] = target.rows.ids
    if groups is not None:
        sketches, names = _group_means(sketches, groups)
    return Scores(
        values=estimator(train, sketches, **params).astype(np.float32),
        train=train.rows,
        targets=names,
        method=method,
        params=params,
        origin={
            **train.header.origin,
            "checkpoints": [dict(c) for c in train.checkpoints],
            "spec": train.spec.to_json(),
            "target": {"dataset": target.rows.dataset, "fingerprint": target.rows.fingerprint},
        },
    )


def _check_comparable(train: SketchStore, target: SketchStore) -> None:
    if train.spec != target.spec:
        raise InputError(
            f"{target.path}: its sketch spec {_short(target)} is not {train.path}'s {_short(train)}; "
            f"collect the target with '--like {train.path}'"
        )
    if train.header.layers != target.header.layers:
        raise InputError(
            f"{target.path}: tracks other layers than {train.path}; collect both with the same task and model"
        )
    if train.header.origin != target.header.origin:
        raise InputError(
            f"{target.path}: collected with another loss than {train.path} (its settings or its bank of negatives); "
            f"collect the target with '--like {train.path}'"
        )
    if train.checkpoints != target.checkpoints:
        raise InputError(
            f"{target.path}: collected at other checkpoints than {train.path}; collect both with the same model"
        )


def _short(store: SketchStore) -> str:
    return f"({store.spec.kind}, dim {store.spec.dim}, seed {store.spec.seed})"


def _estimator(method: str, params: dict[str, Any]) -> Any:
    if method not in ESTIMATORS:
        raise InputError(f"method {method!r} does not exist; choose one of {', '.join(sorted(ESTIMATORS))}")
    known = list(inspect.signature(ESTIMATORS[method]).parameters)[2:]
    for name in params:
        if name not in known:
            raise InputError(
                f"method {method!r} has no parameter {name!r}; it takes {', '.join(known) or 'none'}"
            )
    return ESTIMATORS[method]


def _group_means(
    sketches: list[np.ndarray], groups: Sequence[str]
) -> tuple[list[np.ndarray], tuple[str, ...]]:
    if len(groups) != len(sketches[0]):
        raise InputError(f"{len(groups)} group names for {len(sketches[0])} targets; give one for each")
    names = tuple(dict.fromkeys(groups))
    member = np.array([[group == name for group in groups] for name in names], dtype=np.float32)
    member /= member.sum(axis=1, keepdims=True)
    return [member @ s for s in sketches], names
