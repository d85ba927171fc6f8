"""From training examples and targets to the score of every one for every other."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from backcast.attribution.checkpoints import Checkpoint
from backcast.attribution.estimators import ESTIMATORS
from backcast.attribution.estimators.blocks import Blocks
from backcast.attribution.problem import Problem
from backcast.attribution.recording import Recording
from backcast.attribution.scores import Scores, write_scores
from backcast.attribution.store import SketchStore
from backcast.data import Examples
from backcast.errors import InputError
from backcast.progress import progress
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
    out: str | Path | None = None,
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
        out: a file for the scores, as `Scores.save` writes it: methods that work on sketches then hold one shard's
            scores in memory at a time, and what is returned lies in the file.
        params: the estimator's own.

    Returns:
        Scores (n, m), or (n, groups) in the order in which the names first appear.

    Raises:
        InputError: no examples, stores that do not compare, an unknown method or parameter, something that the method
            needs and was not given, groups that do not fit, or a score that is no number.
    """
    if len(train) == 0 or len(target) == 0:
        raise InputError(f"nothing to score: there are no {'targets' if len(train) else 'training examples'}")
    if isinstance(train, SketchStore) and isinstance(target, SketchStore):
        _check_comparable(train, target, method)
    if groups is not None and len(groups) != len(target):
        raise InputError(f"{len(groups)} group names for {len(target)} targets; give one for each")
    estimator = _estimator(method, params)
    problem = Problem(train, target, method, model, task, checkpoints, run, groups)
    values = estimator(problem, **params)
    blocks = values if isinstance(values, Blocks) else [values]
    if out is None:
        values = np.concatenate(list(_checked(blocks, problem))).astype(np.float32, copy=False)
        return Scores(values, problem.rows, problem.names, method, params, problem.origin)
    write_scores(out, _checked(blocks, problem), problem.rows, problem.names, method, params, problem.origin)
    return Scores.load(out)


def _checked(blocks: Iterable[np.ndarray], problem: Problem) -> Iterator[np.ndarray]:
    """The blocks as they come; raises `InputError` for one with a score that is no number."""
    first = 0
    with progress("scores", len(problem.rows)) as done:
        for block in blocks:
            if (odd := np.isnan(block).any(axis=1)).any():
                raise InputError(
                    f"method {problem.method!r} gives example {problem.rows.ids[first + int(odd.argmax())]} no number; "
                    "look for a loss that overflows"
                )
            yield block
            first += len(block)
            done(len(block))


def _check_comparable(train: SketchStore, target: SketchStore, method: str) -> None:
    if train.spec != target.spec:
        raise InputError(
            f"{target.path}: its sketch spec {_short(target)} is not {train.path}'s {_short(train)}; "
            f"collect the target with '--like {train.path}'"
        )
    if train.header.layers != target.header.layers:
        raise InputError(
            f"{target.path}: tracks other layers than {train.path}; collect both with the same task and model"
        )
    ours, theirs = (store.header.origin["direction"] for store in (train, target))
    if ours != theirs and method != "less":
        raise InputError(
            f"{train.path} is of direction {ours!r}, {target.path} of {theirs!r}; only method 'less' compares the two"
        )
    if _without("direction", train.header.origin) != _without("direction", target.header.origin):
        raise InputError(
            f"{target.path}: collected with another loss than {train.path} (its settings or its bank of negatives); "
            f"collect the target with '--like {train.path}'"
        )
    state = "optimizer" if ours != theirs else None  # what gradients do not depend on
    if [_without(state, c) for c in train.checkpoints] != [_without(state, c) for c in target.checkpoints]:
        raise InputError(
            f"{target.path}: collected at other checkpoints than {train.path}; collect both with the same model"
        )


def _without(key: str | None, mapping: Mapping[str, Any]) -> dict[str, Any]:
    return {k: value for k, value in mapping.items() if k != key}


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
