"""What a subset is worth: the metric of the model that was fine-tuned on it."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean

import numpy as np
from torch import nn

from backcast.data import Examples
from backcast.errors import InputError
from backcast.files import read_json, sha256, write_json
from backcast.finetune import FinetuneConfig, finetune
from backcast.recipes.selection.run_config import TrialConfig
from backcast.tasks import Task
from backcast.tasks.hashes import weights_hash


class Trial:
    """A callable: positions in the pool → the task's metric, the mean over seeds; higher is better, so a loss is
    negated.

    Each call fine-tunes from the model's own weights, which it finds and leaves as they are, on the examples in the
    order of their content ids: the value depends on which they are, not on their order. A subset that is tried once
    more gets the next seeds. Values are kept in ``folder``, under the hash of all that they depend on, so that an
    interrupted run makes no trial twice.

    Args:
        model, task: what is fine-tuned, and on which loss.
        pool: the examples that positions refer to.
        test: what the fine-tuned model is measured on.
        config: how it is fine-tuned; see `FinetuneConfig`.
        folder: where values are kept.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        pool: Examples,
        test: Examples,
        config: TrialConfig,
        folder: str | Path,
    ) -> None:
        self.model, self.task, self.pool, self.test, self.config = model, task, pool, test, config
        self.folder = Path(folder)
        self._seeds: Counter[str] = Counter()  # subset → its seeds so far
        self._common = [
            weights_hash(model),
            type(task).__name__,
            dict(task.settings()),
            test.index.fingerprint,
            config.model_dump(exclude={"test", "seeds"}),
        ]

    def __call__(self, positions: np.ndarray) -> float:
        """Raises `InputError` for no positions, or a fine-tune that diverges."""
        ids = self.pool.index.ids
        chosen = sorted(np.asarray(positions).tolist(), key=ids.__getitem__)
        subset = sha256("\n".join(ids[i] for i in chosen))
        first = self._seeds[subset]
        self._seeds[subset] += self.config.seeds
        values = [self._value(chosen, subset, seed) for seed in range(first, self._seeds[subset])]
        return fmean(values) if self.task.higher_is_better else -fmean(values)

    def _value(self, chosen: Sequence[int], subset: str, seed: int) -> float:
        file = self.folder / f"{sha256(json.dumps([*self._common, subset, seed]))[:16]}.json"
        if file.is_file():
            return float(read_json(file)["metric"])
        own = self.config
        how = FinetuneConfig(steps=own.steps, batch_size=own.batch_size, learning_rate=own.learning_rate)
        with _weights_kept(self.model):
            finetune(self.model, self.task, self.pool[chosen], how, seed)
            value = self.task.evaluate(self.model, self.test)
        if not math.isfinite(value):
            raise InputError(f"a trial's {self.task.metric} is {value}; lower trial.learning_rate")
        write_json(file, {"metric": value, "measure": self.task.metric, "n": len(chosen), "seed": seed})
        return value


@contextmanager
def _weights_kept(model: nn.Module) -> Iterator[None]:
    """The model's weights and its mode are those of before when the block is left."""
    own = {name: value.detach().clone() for name, value in model.state_dict().items()}
    training = model.training
    try:
        yield
    finally:
        model.load_state_dict(own)
        model.train(training)
