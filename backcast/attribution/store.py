"""Sketches on disk: a folder of shards that a killed run resumes, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from backcast.data import Rows
from backcast.errors import InputError
from backcast.files import read_json, sha256, write_atomic, write_json
from backcast.kernels.spec import SketchSpec

SCHEMA = 1


@dataclass(frozen=True)
class Header:
    """All that a store's sketches depend on: two runs with equal headers write equal shards.

    Attributes:
        spec: the sketch.
        layers: the tracked modules by name, and their weights' shapes.
        rows: the examples, in order.
        checkpoints: for each, its name, its learning rate and the SHA-256 of its weights.
        dtype: float32 or float16.
        shard_rows: examples in a shard.
        origin: the model's and the task's type, and the task's settings; copied into scores and manifests.
    """

    spec: SketchSpec
    layers: Mapping[str, Sequence[int]]
    rows: Rows
    checkpoints: tuple[Mapping[str, Any], ...]
    dtype: str = "float32"
    shard_rows: int = 256
    origin: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "spec": self.spec.to_json(),
            "layers": {name: list(shape) for name, shape in self.layers.items()},
            "rows": self.rows.to_json(),
            "checkpoints": [dict(c) for c in self.checkpoints],
            "dtype": self.dtype,
            "shard_rows": self.shard_rows,
            "origin": dict(self.origin),
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Header:
        return cls(
            spec=SketchSpec.from_json(value["spec"]),
            layers=value["layers"],
            rows=Rows.from_json(value["rows"]),
            checkpoints=tuple(value["checkpoints"]),
            dtype=value["dtype"],
            shard_rows=value["shard_rows"],
            origin=value["origin"],
        )

    def shards(self) -> list[slice]:
        """The rows of each shard."""
        n = len(self.rows)
        return [slice(s, min(s + self.shard_rows, n)) for s in range(0, n, self.shard_rows)]


class SketchStore:
    """Gradient sketches of n examples at C checkpoints, read shard by shard.

    On disk: ``store.json`` (the header), and ``checkpoint-CC/shard-SSSSS.safetensors``, each with a (rows, k) matrix,
    its rows' ids and the SHA-256 of the matrix's bytes. A shard appears whole or not at all, so a killed `collect`
    resumes at the first one that is missing.
    """

    def __init__(self, path: str | Path, header: Header) -> None:
        self.path = Path(path)
        self.header = header

    @classmethod
    def open(cls, path: str | Path) -> SketchStore:
        """Open a complete store; raises `InputError` for a folder that is none, or that is not finished."""
        store = cls(path, _read_header(Path(path)))
        missing = store.missing()
        if missing:
            raise InputError(
                f"{path}: {len(missing)} of its shards are missing; run the same 'backcast collect' again, it resumes"
            )
        return store

    @classmethod
    def create(cls, path: str | Path, header: Header) -> SketchStore:
        """A store to write to: new, or the unfinished one of the same header.

        Raises `InputError` when the folder holds something else.
        """
        path = Path(path)
        if (path / "store.json").is_file():
            if _read_header(path).to_json() != json.loads(json.dumps(header.to_json())):
                raise InputError(
                    f"{path}: of other data, weights or settings; choose another folder or delete this one"
                )
        elif path.exists() and (not path.is_dir() or set(path.iterdir()) - set(_partial(path))):
            raise InputError(f"{path}: not a sketch store, and not empty; choose another place")
        for leftover in _partial(path):
            leftover.unlink()
        if not (path / "store.json").is_file():
            write_json(path / "store.json", header.to_json())
        return cls(path, header)

    @property
    def rows(self) -> Rows:
        return self.header.rows

    @property
    def spec(self) -> SketchSpec:
        return self.header.spec

    @property
    def checkpoints(self) -> tuple[Mapping[str, Any], ...]:
        return self.header.checkpoints

    @property
    def learning_rates(self) -> list[float]:
        return [c["learning_rate"] for c in self.checkpoints]

    def __len__(self) -> int:
        return len(self.rows)

    def missing(self) -> list[tuple[int, int]]:
        """(checkpoint, shard) of the shards that are not there yet."""
        return [
            (c, s)
            for c in range(len(self.checkpoints))
            for s in range(len(self.header.shards()))
            if not self._shard(c, s).is_file()
        ]

    def write(self, checkpoint: int, shard: int, sketches: np.ndarray) -> None:
        """Write one shard's (rows, k) sketches; raises `InputError` when they do not fit the store's dtype."""
        ids = self.rows.ids[self.header.shards()[shard]]
        with np.errstate(over="ignore"):
            stored = np.ascontiguousarray(sketches, dtype=self.header.dtype)
        if not np.isfinite(stored).all():
            row = int(np.argmin(np.isfinite(stored).all(axis=1)))
            raise InputError(
                f"the gradient of example {ids[row]} is not finite in {self.header.dtype}; "
                "collect in float32, or look for a loss that overflows"
            )
        write_atomic(self._shard(checkpoint, shard), save({"sketches": stored}, _metadata(ids, stored)))

    def shards(self, checkpoint: int) -> Iterator[tuple[slice, np.ndarray]]:
        """(rows, their (r, k) float32 sketches), shard by shard, checksums verified."""
        for shard, rows in enumerate(self.header.shards()):
            yield rows, self._read(checkpoint, shard).astype(np.float32)

    def sketches(self, checkpoint: int = -1) -> np.ndarray:
        """(n, k) float32 sketches at one checkpoint."""
        return np.concatenate([part for _, part in self.shards(range(len(self.checkpoints))[checkpoint])])

    def features(self) -> np.ndarray:
        """(n, C·k) float32 unit rows: an inner product of two is the mean over checkpoints of their cosine."""
        parts = [unit_rows(self.sketches(c)) for c in range(len(self.checkpoints))]
        return np.concatenate(parts, axis=1) / np.float32(np.sqrt(len(parts)))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the header."""
        return sha256(json.dumps(self.header.to_json(), sort_keys=True))

    def _shard(self, checkpoint: int, shard: int) -> Path:
        return self.path / f"checkpoint-{checkpoint:02d}" / f"shard-{shard:05d}.safetensors"

    def _read(self, checkpoint: int, shard: int) -> np.ndarray:
        path = self._shard(checkpoint, shard)
        ids = self.rows.ids[self.header.shards()[shard]]
        try:
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata()
                sketches = file.get_tensor("sketches")
        except (SafetensorError, FileNotFoundError):
            sketches, metadata = np.empty(0), None
        fits = sketches.shape == (len(ids), self.spec.dim) and sketches.dtype == self.header.dtype
        if not fits or metadata != _metadata(ids, sketches):
            raise InputError(f"{path}: damaged shard; delete it and run the same 'backcast collect' again")
        return sketches


def _metadata(ids: Sequence[str], sketches: np.ndarray) -> dict[str, str]:
    # One entry: safetensors writes several in an order that changes from run to run.
    return {"shard": json.dumps({"ids": ids, "sha256": sha256(sketches.tobytes())})}


def _partial(path: Path) -> list[Path]:
    """What `write_atomic` leaves behind when it is killed."""
    return list(path.rglob(".*.partial"))


def unit_rows(x: np.ndarray) -> np.ndarray:
    """Rows of ``x`` at length one; a row of zeros stays."""
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    return np.divide(x, norms, out=np.zeros_like(x), where=norms > 0)


def _read_header(path: Path) -> Header:
    if not (path / "store.json").is_file():
        raise InputError(f"{path}: not a sketch store (no store.json); write one with 'backcast collect'")
    value = read_json(path / "store.json")
    schema = value.get("schema") if isinstance(value, dict) else None
    if schema != SCHEMA:
        raise InputError(f"{path}: store schema {schema!r}, this backcast reads {SCHEMA}; collect again")
    return Header.from_json(value)
