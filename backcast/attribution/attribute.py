"""From training examples and targets to the score of every one for every other."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import nn

from backcast.attribution.checkpoints import Checkpoint
from backcast.attribution.estimators import ESTIMATORS
from backcast.attribution.problem import Problem
from backcast.attribution.recording import Recording
from backcast.attribution.scores import Scores
from backcast.attribution.store import SketchStore
from backcast.data import Examples
from backcast.errors import InputError
from backcast.tasks import Task


def attribute(
    train: SketchStore | Examples,
    target: SketchStore | Examples,
    method: str = "tracin",
    *,
    model: nn.Module | None = None,
    task: Task | None = None,
    checkpoints: Sequence[Checkpoint] | None = None,
    run: Recording | None = None,
    groups: Sequence[str] | None = None,
    **params: Any,
) -> Scores:
    """Score the n training examples by what they do for the targets.

    Args:
        train: the training examples: their store, for methods that work on sketches; themselves, for the others.
        target: the examples that are wanted, likewise; a store of the same spec and checkpoints.
        method: one of `backcast.attribution.ESTIMATORS`.
        model: the trained model, for methods that run it.
        task: what an example's loss is, for the same.
        checkpoints: points on the training run, oldest first, for methods that visit several.
        run: the recorded training run, for methods that go back through it.
        groups: a name for each target; a group counts as the mean of its rows, whatever their number.
        params: the estimator's own.

    Returns:
        Scores (n, m), or (n, groups) in the order in which the names first appear.

    Raises:
        InputError: stores that do not compare, an unknown method or parameter, something that the method needs and
            was not given, or groups that do not fit.
    """
    if isinstance(train, SketchStore) and isinstance(target, SketchStore):
        _check_comparable(train, target)
    if groups is not None and len(groups) != len(target):
        raise InputError(f"{len(groups)} group names for {len(target)} targets; give one for each")
    estimator = _estimator(method, params)
    problem = Problem(train, target, method, model, task, checkpoints, run, groups)
    return Scores(
        values=estimator(problem, **params).astype(np.float32),
        train=problem.rows,
        targets=problem.names,
        method=method,
        params=params,
        origin=problem.origin,
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
    known = list(inspect.signature(ESTIMATORS[method]).parameters)[1:]
    for name in params:
        if name not in known:
            raise InputError(
                f"method {method!r} has no parameter {name!r}; it takes {', '.join(known) or 'none'}"
            )
    return ESTIMATORS[method]
