"""The score of every training example for every target."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from backcast.attribution.mapped import map_tensors
from backcast.data.examples import Rows
from backcast.errors import InputError
from backcast.files import whole_file


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

    def best(self) -> np.ndarray:
        """(n,) float32, each example's largest score for any of the targets."""
        return self.values.max(axis=1)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, whole or not at all."""
        write_scores(path, [self.values], self.train, self.targets, self.method, self.params, self.origin)

    @classmethod
    def load(cls, path: str | Path) -> Scores:
        """What `save` wrote; the values stay in the file, mapped into memory. Raises `InputError` for any other."""
        if not Path(path).is_file():
            raise InputError(f"{path}: no such scores file; write one with 'backcast score'")
        try:
            with safe_open(path, framework="numpy") as file:
                header = json.loads((file.metadata() or {})["scores"])
            values = map_tensors(path)["values"]
        except (SafetensorError, KeyError):
            raise InputError(f"{path}: not a scores file; write one with 'backcast score'") from None
        header["train"] = Rows.from_json(header["train"])
        return cls(values=values, **{**header, "targets": tuple(header["targets"])})


def write_scores(
    path: str | Path,
    blocks: Iterable[np.ndarray],
    train: Rows,
    targets: Sequence[str],
    method: str,
    params: Mapping[str, Any],
    origin: Mapping[str, Any],
) -> None:
    """Write the safetensors file of `Scores`, whole or not at all, without holding all of its values.

    Args:
        path: the file.
        blocks: the values, some rows (r, m) at a time.
        train, targets, method, params, origin: as in `Scores`.
    """
    header = {
        "train": train.to_json(),
        "targets": list(targets),
        "method": method,
        "params": dict(params),
        "origin": dict(origin),
    }
    shape = [len(train), len(targets)]
    values = {"dtype": "F32", "shape": shape, "data_offsets": [0, 4 * shape[0] * shape[1]]}
    described = {"__metadata__": {"scores": json.dumps(header, sort_keys=True)}, "values": values}
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with whole_file(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for block in blocks:
            file.write(np.ascontiguousarray(block, dtype="<f4").data)
