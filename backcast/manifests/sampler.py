"""The chosen rows as a sampler, for a trainer that keeps its own data set and loader."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from backcast.errors import InputError
from backcast.manifests.manifest import Manifest


class SubsetSampler:
    """Row numbers of the data set, as the ``sampler`` of a ``torch.utils.data.DataLoader``.

    In each epoch a row comes as often as its weight says: floor(w) or ceil(w) times, w on average over epochs. With
    weights of 1 an epoch is the subset, each row once. The fractional parts are drawn by systematic sampling (Madow,
    *On the theory of systematic sampling II*, 1949): with p_i their values in a random order, P_i their running sums
    and one u ~ U[0, 1) for all, row i comes once more when an integer lies in (P_{i-1} + u, P_i + u]. So every
    expectation is exact, and epochs differ in length by at most one. O(k) an epoch.

    As with torch's ``DistributedSampler``, call `set_epoch` before each epoch for another draw and order; without, all
    epochs are alike. ``accelerate``, and with it the Hugging Face ``Trainer``, calls it, and shares the batches out
    among processes.

    Args:
        manifest: a manifest or its path. Row numbers are those of the data set it was selected from.
        seed: of the draw and the order.
        shuffle: whether an epoch is in random order; else in rank order, a row's repetitions together.

    Raises:
        InputError: the manifest cannot be read, or an epoch would be empty.
    """

    def __init__(self, manifest: Manifest | str | Path, seed: int = 0, shuffle: bool = True) -> None:
        if not isinstance(manifest, Manifest):
            manifest = Manifest.load(manifest)
        self._rows, self._weights = manifest.rows, manifest.weights
        if self._weights.sum() < 1:
            raise InputError(
                f"{manifest.path}: its weights add up to less than one row an epoch; scale them up"
            )
        self.seed, self.shuffle = seed, shuffle
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Draw epoch ``epoch``, which is the same whenever it is drawn."""
        rng = np.random.PCG64(np.random.SeedSequence([self.seed, epoch]))
        times = self._times(_order(len(self._rows), rng), (rng.random_raw() >> 11) / 2**53)
        drawn = np.repeat(self._rows, times)
        self._drawn = drawn[_order(len(drawn), rng)] if self.shuffle else drawn

    def _times(self, order: np.ndarray, start: float) -> np.ndarray:
        """(k,) how often each row comes."""
        whole = np.floor(self._weights).astype(np.int64)
        passed = np.floor(np.cumsum((self._weights - whole)[order]) + start).astype(np.int64)
        whole[order] += np.diff(passed, prepend=0)
        return whole

    def __len__(self) -> int:
        return len(self._drawn)

    def __iter__(self) -> Iterator[int]:
        return iter(self._drawn.tolist())


def _order(n: int, rng: np.random.PCG64) -> np.ndarray:
    """A random order of n, from the raw stream, which numpy keeps from release to release."""
    return np.argsort(rng.random_raw(n), kind="stable")
