"""Numbers of each example at each step, on disk in shards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import Tensor

from backcast.errors import InputError
from backcast.files import sha256, write_atomic

#: Uses of examples in a shard: what a run that is killed outright loses at most.
SHARD_ROWS = 4096


class Series:
    """A folder of shards ``step-SSSSSSSS.safetensors``, each named by its first step.

    A shard holds for N uses of an example, in order, ``steps`` (N,), ``rows`` (N,) and ``values`` (N, k), and the
    SHA-256 of their bytes. What was appended is on disk once it was flushed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._waiting: list[tuple[int, Sequence[int], Tensor]] = []

    def append(self, step: int, rows: Sequence[int], values: Tensor) -> None:
        """The values (B, k) of a step's B examples; written when there is a shard of them."""
        self._waiting.append((step, rows, values))
        if sum(len(rows) for _, rows, _ in self._waiting) >= SHARD_ROWS:
            self.flush()

    def flush(self) -> None:
        """Write what waits."""
        if self._waiting:
            steps, rows, values = zip(*self._waiting, strict=True)
            repeated = np.repeat(steps, [len(r) for r in rows])
            self._write(repeated, np.concatenate(rows), torch.cat(values).cpu().numpy())
            self._waiting = []

    def cut(self, step: int) -> None:
        """Drop what is of ``step`` and later ones; raises `InputError` where an earlier one is not there."""
        last = -1
        for shard in self._shards():
            steps, rows, values = _read(shard)
            kept = steps < step
            if kept.any():
                last = int(steps[kept][-1])
            else:
                shard.unlink()
            if kept.any() and not kept.all():
                self._write(steps[kept], rows[kept], values[kept])  # over itself
        if last + 1 < step:
            raise InputError(
                f"{self.path}: holds {last + 1} steps, and the run goes on after {step}; "
                "call Recorder.flush() where the run saves a checkpoint"
            )

    def __iter__(self) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """(step, rows (B,), values (B, k)), step by step; raises `InputError` for a damaged shard."""
        for shard in self._shards():
            steps, rows, values = _read(shard)
            for step in np.unique(steps):
                own = steps == step
                yield int(step), rows[own], values[own]

    def _shards(self) -> list[Path]:
        return sorted(self.path.glob("step-*.safetensors"))

    def _write(self, steps: np.ndarray, rows: np.ndarray, values: np.ndarray) -> None:
        tensors = {"rows": rows.astype(np.int64), "steps": steps.astype(np.int64), "values": values}
        path = self.path / f"step-{steps[0]:08d}.safetensors"
        write_atomic(path, save(tensors, {"sha256": _checksum(tensors)}))


def _read(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(steps, rows, values)"""
    try:
        with safe_open(path, framework="numpy") as file:
            tensors = {name: file.get_tensor(name) for name in ("rows", "steps", "values")}
            whole = (file.metadata() or {}).get("sha256") == _checksum(tensors)
    except SafetensorError:
        whole = False
    if not whole:
        raise InputError(f"{path}: damaged, and not to be made again without the run; record it again")
    return tensors["steps"], tensors["rows"], tensors["values"]


def _checksum(tensors: dict[str, np.ndarray]) -> str:
    return sha256(b"".join(tensors[name].tobytes() for name in sorted(tensors)))
