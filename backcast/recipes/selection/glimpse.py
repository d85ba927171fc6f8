"""A data set's size and some of its rows, without reading the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from backcast.data import Example, Examples
from backcast.data.columns import resolve
from backcast.data.fields import fields_of
from backcast.data.images import BrokenImage
from backcast.data.places import joined_name, places
from backcast.data.records import Records, open_records
from backcast.data.values import ImageReader
from backcast.errors import InputError


@dataclass(frozen=True)
class Glimpse:
    """What was seen of a data set.

    Attributes:
        rows: how many it has.
        examples: some of them, spread evenly.
        seconds: what reading all of them would take.
    """

    rows: int
    examples: Examples
    seconds: float


def glimpse(
    data: str, columns: Mapping[str, str] | None, skip_broken: bool, size: int, clock: Callable[[], float]
) -> Glimpse:
    """Look at about ``size`` rows; what goes wrong with one of them is what `read_examples` raises."""
    began = clock()
    files = [open_records(place, lambda _: None) for place in places(data)]
    found = [resolve(records, columns or {}) for records in files]
    counted = clock() - began

    ends = np.cumsum([len(records) for records in files])
    rows = int(ends[-1])
    examples, began = [], clock()
    chosen = np.unique(np.linspace(0, rows - 1, min(size, rows)).round().astype(int))
    for row in chosen.tolist():
        file = int(np.searchsorted(ends, row, side="right"))
        records, own = files[file], row - int(ends[file] - len(files[file]))
        try:
            examples.append(_example(records, found[file], own, row))
        except BrokenImage:
            if not skip_broken:
                raise
    if not examples:
        raise InputError(f"{data}: no row of {len(chosen)} has a whole image")
    seconds = counted + rows * (clock() - began) / len(chosen)
    name = joined_name([records.place for records in files])
    return Glimpse(rows, Examples(examples, name, found[0]), seconds)


def _example(records: Records, found: Mapping[str, str], own: int, row: int) -> Example:
    try:
        fields = fields_of(records.read(own)[0], found, ImageReader(records.place.folder))
    except InputError as error:
        raise type(error)(f"{records.where(own)}: {error}") from None
    return Example(fields, row, str(fields.get("source", records.place.stem)))
