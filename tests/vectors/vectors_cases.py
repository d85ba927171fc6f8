"""Rows for the tests of this folder: clustered, as gradients of classes are, and real gradient sketches."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from backcast.attribution import collect
from backcast.data import read_examples
from backcast.kernels import SketchSpec
from backcast.multimodal import load_task
from backcast.recipes.demo.digits import Digits
from backcast.vectors import Features


def clustered(n: int, d: int, clusters: int, seed: int = 0, noise: float = 1.0) -> np.ndarray:
    """(n, d) float32 rows of unequal length around centres."""
    rng = np.random.default_rng(seed)
    centres = 2 * rng.normal(size=(clusters, d))
    rows = centres[rng.integers(0, clusters, n)] + noise * rng.normal(size=(n, d))
    return (rows * rng.lognormal(0, 1, (n, 1))).astype(np.float32)


@cache
def sketches() -> np.ndarray:
    """(1200, 512) features of a store: gradient sketches of digits and captions by a small CLIP after a few steps."""
    with TemporaryDirectory() as folder:
        Digits().write(Path(folder), seed=0, quick=True)
        pool = read_examples(Path(folder) / "pool.jsonl")
        model, task = load_task(str(Path(folder) / "model"), pool)
        task.prepare(model)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        for start in range(0, 960, 48):
            loss = task.loss(model, task.collate(pool[start : start + 48])).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return collect(model, task, pool, Path(folder) / "store", spec=SketchSpec("kron", 512)).features()


def points(x: np.ndarray) -> np.ndarray:
    """(n, d) float64, as `Features.points` gives them."""
    return Features.of(x).points().astype(np.float64)
