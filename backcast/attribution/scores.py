"""The score of every training example for every target."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from backcast.data.examples import Rows
from backcast.errors import InputError
from backcast.files import write_atomic


@dataclass(frozen=True)
class Scores:
    """Scores of n training examples for m targets; a higher score means a more helpful example.

    Attributes:
        values: (n, m) float32.
        train: the n training examples.
        targets: the m targets: content ids, or the names of groups.
        method: the estimator's registered name.
        params: the estimator's parameters.
        origin: what the scores were made from (model, checkpoints, sketch spec, target data); copied into manifests.
    """

    values: np.ndarray
    train: Rows
    targets: tuple[str, ...]
    method: str
    params: Mapping[str, Any] = field(default_factory=dict)
    origin: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.values.shape != (len(self.train), len(self.targets)):
            raise InputError(
                f"scores of shape {self.values.shape} do not fit {len(self.train)} training examples "
                f"and {len(self.targets)} targets"
            )

    def __len__(self) -> int:
        return len(self.train)

    def total(self) -> np.ndarray:
        """(n,) float32, each example's mean over the targets."""
        return self.values.mean(axis=1)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, whole or not at all."""
        header = {
            "train": self.train.to_json(),
            "targets": list(self.targets),
            "method": self.method,
            "params": dict(self.params),
            "origin": dict(self.origin),
        }
        values = np.ascontiguousarray(self.values, dtype=np.float32)
        write_atomic(path, save({"values": values}, {"scores": json.dumps(header, sort_keys=True)}))

    @classmethod
    def load(cls, path: str | Path) -> Scores:
        """Read what `save` wrote; raises `InputError` for any other file."""
        if not Path(path).is_file():
            raise InputError(f"{path}: no such scores file; write one with 'backcast score'")
        try:
            with safe_open(path, framework="numpy") as file:
                header = json.loads((file.metadata() or {})["scores"])
                values = file.get_tensor("values")
        except (SafetensorError, KeyError):
            raise InputError(f"{path}: not a scores file; write one with 'backcast score'") from None
        header["train"] = Rows.from_json(header["train"])
        return cls(values=values, **{**header, "targets": tuple(header["targets"])})
