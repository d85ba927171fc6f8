"""What an estimator is given: which examples, towards which targets, and all that is known of the model between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from torch import nn

from backcast.attribution.checkpoints import Checkpoint
from backcast.attribution.recording import Recording
from backcast.attribution.store import SketchStore
from backcast.data import Examples, Rows
from backcast.errors import InputError
from backcast.tasks import Task
from backcast.tasks.hashes import weights_hash


@dataclass(frozen=True, eq=False)
class Problem:
    """n training examples, m targets in g groups, and the model.

    An estimator takes what it needs; what was not given raises an `InputError` that says what to give. Wherever a
    score is linear in the target's gradient, a group's is the mean over its members.

    Attributes:
        train: the n training examples, or their sketches.
        target: the m target examples, or their sketches.
        method: who asks, for messages.
        model: the trained model; estimators leave it as they found it.
        task: what an example's loss is.
        checkpoints: points on the training run, oldest first; without any, the model as it stands.
        run: the recorded training run.
        groups: the name of each target's group; without names every target is a group.
    """

    train: SketchStore | Examples
    target: SketchStore | Examples
    method: str
    model: nn.Module | None = None
    task: Task | None = None
    checkpoints: Sequence[Checkpoint] | None = None
    run: Recording | None = None
    groups: Sequence[str] | None = None

    @property
    def rows(self) -> Rows:
        """The n training examples."""
        return _rows(self.train)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The g groups' names, in the order in which they first appear; the targets' ids where there are no groups."""
        return _rows(self.target).ids if self.groups is None else tuple(dict.fromkeys(self.groups))

    @cached_property
    def member(self) -> np.ndarray:
        """(g, m) float32: the rows are the means over the groups."""
        if self.groups is None:
            return np.eye(len(self.names), dtype=np.float32)
        member = np.array([[group == name for group in self.groups] for name in self.names], dtype=np.float32)
        return member / member.sum(axis=1, keepdims=True)

    def means(self, values: np.ndarray) -> np.ndarray:
        """(g, ...): the groups' means of the targets' values (m, ...)."""
        return values if self.groups is None else self.member @ values

    @property
    def origin(self) -> dict[str, Any]:
        """What the scores are made from, for the manifests that rest on them."""
        wanted = _rows(self.target)
        target = {"dataset": wanted.dataset, "fingerprint": wanted.fingerprint}
        if isinstance(self.train, SketchStore):
            store = self.train
            checkpoints = [dict(c) for c in store.checkpoints]
            return {
                **store.header.origin,
                "checkpoints": checkpoints,
                "spec": store.spec.to_json(),
                "target": target,
            }
        if self.model is None or self.task is None:
            return {"target": target}
        model, task = self.trained
        return {
            "model": type(model).__name__,
            "task": type(task).__name__,
            "settings": dict(task.settings()),
            "sha256": weights_hash(model),
            "target": target,
        }

    @property
    def stores(self) -> tuple[SketchStore, SketchStore]:
        """The two stores, that of the n training examples and that of the m targets."""
        if not (isinstance(self.train, SketchStore) and isinstance(self.target, SketchStore)):
            raise InputError(
                f"method {self.method!r} works on sketches: give two stores, which 'backcast collect' writes"
            )
        return self.train, self.target

    @cached_property
    def sketches(self) -> list[np.ndarray]:
        """For each checkpoint the groups' mean sketches (g, k), float32."""
        target = self.stores[1]
        return [self.means(target.sketches(c)) for c in range(len(target.checkpoints))]

    @property
    def examples(self) -> tuple[Examples, Examples]:
        """The n training examples and the m targets."""
        if isinstance(self.train, SketchStore) or isinstance(self.target, SketchStore):
            raise InputError(
                f"method {self.method!r} reads the examples themselves: give both as examples, not as stores"
            )
        return self.train, self.target

    @property
    def trained(self) -> tuple[nn.Module, Task]:
        """The model, as it was written where torch.compile wraps it, and its task."""
        if self.model is None or self.task is None:
            raise InputError(f"method {self.method!r} runs the model: give model= and task=")
        return getattr(self.model, "_orig_mod", self.model), self.task

    @property
    def recording(self) -> Recording:
        """The recorded training run."""
        if self.run is None:
            raise InputError(
                f"method {self.method!r} goes back through a training run: give run=, a Recording"
            )
        return self.run


def _rows(side: SketchStore | Examples) -> Rows:
    return side.rows if isinstance(side, SketchStore) else side.index
