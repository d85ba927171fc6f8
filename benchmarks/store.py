"""How fast, and in how much memory, is a large store scored against many targets?

A store of random rows is written, and its scores for 1,000 targets go to a file (``attribute(..., out=)``). Beside the
seconds of that: those of reading the same files and doing nothing, and of the bare float32 products of the same sizes.
The peak is the resident memory of a process that scores and does nothing else, its imports included. The page cache is
as it happens to be.

Rows: dtype, rows, k, targets, store_gb, scores_gb, seconds, gb_per_s, read_seconds, product_seconds, peak_gib, note.
"""

from __future__ import annotations

import resource
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from common import Row, arguments, clock, write

from backcast.attribution import SketchStore, attribute
from backcast.attribution.store import Header
from backcast.data import Rows
from backcast.files import sha256
from backcast.kernels import SketchSpec
from backcast.progress import progress

K, TARGETS, SHARD_ROWS = 1024, 1000, 1024
DTYPES = ("float16", "int8", "sign")


def synthetic(path: Path, n: int, dtype: str) -> SketchStore:
    """A store of Gaussian rows: in each shard the same ones, but for their places."""
    ids = tuple(sha256(f"{path.name} {row}") for row in range(n))
    rows = Rows(ids, np.arange(n), ("memory",) * n)
    checkpoint = {"name": "model", "learning_rate": 1.0, "sha256": "0"}
    store = SketchStore.create(
        path, Header(SketchSpec("sjlt", K), {"layer": [K, K]}, rows, (checkpoint,), dtype, SHARD_ROWS)
    )
    block = np.random.default_rng(0).normal(size=(SHARD_ROWS, K)).astype(np.float32)
    with progress(f"writing {dtype}", n) as done:
        for shard, place in enumerate(store.header.shards()):
            store.write(0, shard, np.roll(block, shard, axis=0)[: place.stop - place.start])
            done(place.stop - place.start)
    return store


def score(train: Path, target: Path, out: Path) -> None:
    attribute(SketchStore.open(train), SketchStore.open(target), "grad_cos", out=out)


def read(folder: Path) -> None:
    for path in sorted(folder.rglob("shard-*")):
        path.read_bytes()


def multiply(n: int) -> None:
    block, towards = np.ones((SHARD_ROWS, K), np.float32), np.ones((K, TARGETS), np.float32)
    for _ in range(n // SHARD_ROWS):
        block @ towards


def measured(function: Callable[..., None], *arguments: Any) -> tuple[float, float]:
    """The seconds of a call in a process of its own, and the GiB of memory that the process had at most."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_measured, function, *arguments).result()


def _measured(function: Callable[..., None], *arguments: Any) -> tuple[float, float]:
    seconds = clock(lambda: function(*arguments))
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measure(folder: Path, n: int, dtype: str) -> Row:
    train, target = (synthetic(folder / name, m, dtype) for name, m in (("train", n), ("target", TARGETS)))
    read_seconds, _ = measured(read, train.path)
    product_seconds, _ = measured(multiply, n)
    seconds, peak = measured(score, train.path, target.path, folder / "scores")
    size = sum(path.stat().st_size for path in train.path.rglob("shard-*")) / 1e9
    return {
        "dtype": dtype,
        "rows": n,
        "k": K,
        "targets": TARGETS,
        "store_gb": size,
        "scores_gb": (folder / "scores").stat().st_size / 1e9,
        "seconds": seconds,
        "gb_per_s": size / seconds,
        "read_seconds": read_seconds,
        "product_seconds": product_seconds,
        "peak_gib": peak,
        "note": None,
    }


def main() -> None:
    options = arguments(__doc__ or "")
    n = 100_000 if options.quick else 1_000_000
    rows = []
    for dtype in DTYPES:
        with tempfile.TemporaryDirectory(dir=options.data) as folder:
            rows.append(measure(Path(folder), n, dtype))
    write("store", rows, options.json)


if __name__ == "__main__":
    main()
