"""The chosen rows, as a trainer reads them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from backcast.data import load_table
from backcast.errors import InputError
from backcast.manifests.check import compare, opened, place_of
from backcast.manifests.manifest import Manifest

if TYPE_CHECKING:
    from datasets import Dataset


def load_subset(path: str | Path, data: str | Path | None = None) -> Dataset:
    """The chosen rows as a ``datasets.Dataset``: the data set's own columns and a ``weight``, in rank order.

    A view: the data are not copied, but for 8 bytes a row of the data set, its weight. What ``datasets`` maps from disk
    (saved folders, hub data sets, large Parquet files) stays there. They are checked first (see `check`).

    Args:
        path: the manifest.
        data: where the data set is now; by default where the manifest says.

    Raises:
        InputError: the manifest or the data cannot be read, do not fit, or have a ``weight`` of their own.
    """
    manifest = Manifest.load(path)
    report = compare(manifest, *opened(manifest, data))
    if not report:
        raise InputError(report.summary)
    table = load_table(place_of(manifest, data))
    if "weight" in table.column_names:
        raise InputError(
            f"{report.data}: its own column 'weight' would be hidden by the manifest's; rename it"
        )
    weights = np.zeros(len(table))
    weights[manifest.rows] = manifest.weights
    return table.add_column("weight", weights).select(manifest.rows)
