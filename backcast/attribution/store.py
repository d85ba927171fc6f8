"""Sketches on disk: a folder of shards that a killed run resumes, bit for bit."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from backcast.attribution.mapped import map_tensors
from backcast.attribution.quantise import Layout, decode, encode, layout
from backcast.data import Rows
from backcast.errors import InputError
from backcast.files import read_json, sha256, write_atomic, write_json
from backcast.kernels.spec import SketchSpec
from backcast.progress import progress

log = logging.getLogger("backcast")

SCHEMA = 1

#: Shards that are mapped into memory at once: systems bound the number of maps, at 65,530 as a rule.
MAPPED = 8192


@dataclass(frozen=True)
class Header:
    """All that a store's sketches depend on: two runs with equal headers write equal shards.

    Attributes:
        spec: the sketch.
        layers: the tracked modules by name, and their weights' shapes.
        rows: the examples, in order.
        checkpoints: for each, its name, its learning rate and the SHA-256 of its weights.
        dtype: one of `backcast.attribution.quantise.DTYPES`.
        shard_rows: examples in a shard.
        origin: the model's and the task's type, the task's settings, and what the gradients are of ("loss" or
            "output"); copied into scores and manifests.
    """

    spec: SketchSpec
    layers: Mapping[str, Sequence[int]]
    rows: Rows
    checkpoints: tuple[Mapping[str, Any], ...]
    dtype: str = "float32"
    shard_rows: int = 256
    origin: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # What older stores hold, which do not say it.
        object.__setattr__(self, "origin", {"of": "loss", "direction": "gradient", **self.origin})

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

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all of it."""
        return sha256(json.dumps(self.to_json(), sort_keys=True))

    def shards(self) -> list[slice]:
        """The rows of each shard."""
        return self._shards

    @cached_property
    def _shards(self) -> list[slice]:
        n = len(self.rows)
        return [slice(s, min(s + self.shard_rows, n)) for s in range(0, n, self.shard_rows)]


class SketchStore:
    """Gradient sketches of n examples at C checkpoints, read shard by shard.

    On disk: ``store.json`` (the header and its SHA-256), and ``checkpoint-CC/shard-SSSSS.safetensors``, each with what
    `quantise.encode` makes of (rows, k) sketches, in a store of outputs also (rows,) slopes, the rows' ids and the
    SHA-256 of the tensors' bytes. A shard appears whole or not at all, so a killed `collect` resumes at the first one
    that is missing.
    """

    def __init__(self, path: str | Path, header: Header) -> None:
        self.path = Path(path)
        self.header = header

    @classmethod
    def open(cls, path: str | Path) -> SketchStore:
        """Open a complete store, having looked at every shard's size, names, shapes and ids.

        Raises `InputError` for a folder that is none, is not finished or holds a damaged file.
        """
        store = cls(path, _read_header(Path(path)))
        missing = store.missing()
        if missing:
            raise InputError(
                f"{path}: {len(missing)} of its shards are missing; run the same 'backcast collect' again, it resumes"
            )
        for place in store.places():
            with store._opened(*place):
                pass
        return store

    @classmethod
    def create(cls, path: str | Path, header: Header) -> SketchStore:
        """A store to write to: new, or the unfinished one of the same header.

        Raises `InputError` when the folder holds something else.
        """
        path = Path(path)
        if (path / "store.json").is_file():
            if _read_header(path).fingerprint != header.fingerprint:
                raise InputError(
                    f"{path}: of other data, weights or settings; choose another folder or delete this one"
                )
        elif path.exists() and (not path.is_dir() or set(path.iterdir()) - set(_partial(path))):
            raise InputError(f"{path}: not a sketch store, and not empty; choose another place")
        for leftover in _partial(path):
            leftover.unlink()
        if not (path / "store.json").is_file():
            write_json(path / "store.json", {**header.to_json(), "sha256": header.fingerprint})
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

    def places(self) -> list[tuple[int, int]]:
        """(checkpoint, shard) of every shard."""
        return list(product(range(len(self.checkpoints)), range(len(self.header.shards()))))

    def missing(self) -> list[tuple[int, int]]:
        """(checkpoint, shard) of the shards that are not there yet."""
        return [place for place in self.places() if not self._shard(*place).is_file()]

    def damaged(self, places: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """Those of the shards whose bytes are not what was written; each is logged."""
        found = []
        with progress(f"checking {self.path.name}", len(places)) as done:
            for place in places:
                try:
                    self._read(*place)
                except InputError:
                    log.warning(f"{self._shard(*place)}: damaged shard, collected again")
                    found.append(place)
                done(1)
        return found

    def write(
        self, checkpoint: int, shard: int, sketches: np.ndarray, slopes: np.ndarray | None = None
    ) -> None:
        """Write one shard's (rows, k) sketches, in a store of outputs with the (rows,) slopes.

        Raises `InputError` when one is not finite.
        """
        ids = self.rows.ids[self.header.shards()[shard]]
        finite = np.isfinite(sketches).all(axis=1)
        if not finite.all():
            raise InputError(
                f"the gradient of example {ids[int(np.argmin(finite))]} is not finite; look for a loss that overflows"
            )
        tensors = encode(sketches, self.header.dtype)
        if slopes is not None:
            tensors["slopes"] = slopes.astype(np.float32)
        write_atomic(self._shard(checkpoint, shard), save(tensors, _metadata(ids, _digest(tensors))))

    def shards(self, checkpoint: int) -> Iterator[tuple[slice, np.ndarray]]:
        """(rows, their (r, k) float32 sketches), shard by shard, checksums verified."""
        for shard, rows in enumerate(self.header.shards()):
            yield rows, self._decoded(checkpoint, shard)

    def sketches(self, checkpoint: int = -1) -> np.ndarray:
        """(n, k) float32 sketches at one checkpoint."""
        return np.concatenate([part for _, part in self.shards(range(len(self.checkpoints))[checkpoint])])

    def slopes(self, checkpoint: int = -1) -> np.ndarray:
        """(n,) float32 ∂ℓ/∂f of each example's loss ℓ by its model output f; raises `InputError` in a store of losses.

        They turn what the rows are, gradients of f, into the loss's: ∇ℓ = slope · ∇f.
        """
        if self.header.origin["of"] != "output":
            raise InputError(
                f'{self.path}: holds gradients of losses; collect those of outputs, with of="output"'
            )
        place = range(len(self.checkpoints))[checkpoint]
        return np.concatenate(
            [self._read(place, shard)["slopes"] for shard in range(len(self.header.shards()))]
        )

    def features(self) -> np.ndarray:
        """(n, C·k) float32 unit rows: an inner product of two is the mean over checkpoints of their cosine."""
        return self.read(slice(None))

    @property
    def shape(self) -> tuple[int, int]:
        """(n, C·k), the shape of `features`."""
        return len(self), len(self.checkpoints) * self.spec.dim

    def read(self, positions: slice | np.ndarray) -> np.ndarray:
        """(r, C·k) float32: the rows of `features` at the positions, in their order; O(r C k) memory.

        Shards are mapped into memory, their checksums verified when they are first come to.
        """
        asked = np.arange(len(self))[positions]
        rows = np.empty((len(asked), self.shape[1]), dtype=np.float32)
        by_shard = np.argsort(asked, kind="stable")
        shards, starts = np.unique(asked[by_shard] // self.header.shard_rows, return_index=True)
        for shard, places in zip(shards.tolist(), np.split(by_shard, starts)[1:], strict=True):
            inside = asked[places] - self.header.shards()[shard].start
            for c in range(len(self.checkpoints)):
                part = slice(c * self.spec.dim, (c + 1) * self.spec.dim)
                tensors = {name: values[inside] for name, values in self._mapped(c, shard).items()}
                rows[places, part] = unit_rows(decode(tensors, self.header.dtype, self.spec.dim))
        rows /= np.float32(np.sqrt(len(self.checkpoints)))
        return rows

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the header."""
        return self.header.fingerprint

    def _shard(self, checkpoint: int, shard: int) -> Path:
        return self.path / f"checkpoint-{checkpoint:02d}" / f"shard-{shard:05d}.safetensors"

    def _decoded(self, checkpoint: int, shard: int) -> np.ndarray:
        return decode(self._read(checkpoint, shard), self.header.dtype, self.spec.dim)

    @cached_property
    def _mapped(self) -> Callable[[int, int], Mapping[str, np.ndarray]]:
        """(checkpoint, shard) → its tensors by name, mapped into memory."""
        verified: set[tuple[int, int]] = set()

        @lru_cache(MAPPED)
        def mapped(checkpoint: int, shard: int) -> Mapping[str, np.ndarray]:
            if (checkpoint, shard) not in verified:
                self._read(checkpoint, shard)
                verified.add((checkpoint, shard))
            return map_tensors(self._shard(checkpoint, shard))

        return mapped

    def _read(self, checkpoint: int, shard: int) -> dict[str, np.ndarray]:
        """A shard's tensors by name, their sum verified."""
        with self._opened(checkpoint, shard) as (file, digest):
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if _digest(tensors) != digest:
            raise self._damage(checkpoint, shard)
        return tensors

    @contextmanager
    def _opened(self, checkpoint: int, shard: int) -> Iterator[tuple[Any, str]]:
        """A shard's file, mapped into memory, and the sum that it gives; of the right size, names, shapes and ids."""
        ids = self.rows.ids[self.header.shards()[shard]]
        layout = self._layout(len(ids))
        try:
            file = safe_open(self._shard(checkpoint, shard), framework="numpy")
        except (SafetensorError, FileNotFoundError):
            raise self._damage(checkpoint, shard) from None
        with file:
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            found = {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in parts.items()}
            if self.header.dtype == "float16":
                found.setdefault(
                    "scales", layout["scales"]
                )  # older shards have none: theirs would all be one
            metadata = file.metadata() or {}
            digest = metadata.get("shard", "")[-66:-2]
            if found != layout or metadata != _metadata(ids, digest):
                raise self._damage(checkpoint, shard)
            yield file, digest

    def _layout(self, rows: int) -> Layout:
        tensors = layout(self.header.dtype, rows, self.spec.dim)
        return {**tensors, "slopes": ("F32", (rows,))} if self.header.origin["of"] == "output" else tensors

    def _damage(self, checkpoint: int, shard: int) -> InputError:
        return InputError(
            f"{self._shard(checkpoint, shard)}: damaged shard; run the same 'backcast collect' again, "
            "it computes this one anew"
        )


def _metadata(ids: Sequence[str], digest: str) -> dict[str, str]:
    # One entry: safetensors writes several in an order that changes from run to run.
    return {"shard": json.dumps({"ids": ids, "sha256": digest})}


def _digest(tensors: Mapping[str, np.ndarray]) -> str:
    """Hex SHA-256 of the tensors' bytes, by name."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(np.ascontiguousarray(tensors[name]).data)
    return digest.hexdigest()


def _partial(path: Path) -> list[Path]:
    """What `write_atomic` leaves behind when it is killed."""
    return list(path.rglob(".*.partial"))


def unit_rows(x: np.ndarray) -> np.ndarray:
    """Rows of ``x`` at length one; a row of zeros stays. Norms in float64 come out alike on every machine."""
    norms = np.sqrt(np.square(x, dtype=np.float64).sum(axis=1, keepdims=True))
    return np.divide(x, norms, out=np.zeros_like(x), where=norms != 0)  # not a number stays one


def _read_header(path: Path) -> Header:
    if not (path / "store.json").is_file():
        raise InputError(f"{path}: not a sketch store (no store.json); write one with 'backcast collect'")
    value = read_json(path / "store.json")
    schema = value.get("schema") if isinstance(value, dict) else None
    if schema != SCHEMA:
        raise InputError(f"{path}: store schema {schema!r}, this backcast reads {SCHEMA}; collect again")
    written = value.pop("sha256", None)  # older stores have none
    if written not in (None, sha256(json.dumps(value, sort_keys=True))):
        raise InputError(
            f"{path / 'store.json'}: damaged; put back a copy of it, or collect into another folder"
        )
    return Header.from_json(value)
