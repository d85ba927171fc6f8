"""The rows of a file as dictionaries: in order, block by block, or one by its number."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import tempfile
import zlib
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from itertools import islice, pairwise
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from backcast.data.arrow import BLOCK_BYTES, BLOCK_ROWS, block_rows, is_json, one_line, open_dataset
from backcast.data.places import Place
from backcast.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset

Record = Mapping[str, Any]


class Records(ABC):
    """The rows of one place.

    What was opened is left out of a pickle and opened again where it is read.

    Attributes:
        place: where they are.
        columns: every column of any row, in order of first appearance.
    """

    columns: list[str]

    def __init__(self, place: Place) -> None:
        self.place = place
        self._stamp = _stamp(place)

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def blocks(self) -> Iterator[list[Record]]:
        """All rows in order, some at a time."""

    @abstractmethod
    def read(self, row: int) -> tuple[Record, int]:
        """One row, and about how many bytes it takes."""

    def where(self, row: int) -> str:
        """Names a row in an error."""
        return f"{self.place.given}: row {row}"

    def __iter__(self) -> Iterator[Record]:
        for block in self.blocks():
            yield from block

    def _check_unchanged(self) -> None:
        if _stamp(self.place) != self._stamp:
            raise InputError(f"{self.place.given}: has changed since it was first read; start again")


def open_records(place: Place, read: Callable[[int], None]) -> Records:
    """The rows of a place.

    Args:
        place: where they are.
        read: told the bytes of a file as they are gone through, for a progress bar.

    Raises:
        InputError: the place cannot be opened, or a line holds no JSON object (with its number).
    """
    if place.format != "json":
        return Table(place)
    if place.path.suffix == ".json" and _opens_a_list(place.path):
        return JsonList(place)
    if place.path.suffix == ".gz":  # what is read of it is not what it takes on disk
        return JsonLines(place, lambda _: None)
    return JsonLines(place, read)


def _stamp(place: Place) -> tuple[int, int] | None:
    """Changes whenever the file is written; None where there is none to look at.

    A saved folder's is that of the file that ``save_to_disk`` writes last.
    """
    if place.format == "hub":
        return None
    path = place.path
    if place.format == "folder":
        path = path / (place.split or "") / "state.json"
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


class JsonLines(Records):
    """A file of one JSON object a line, found again by byte offsets; a packed one is unpacked to a nameless file."""

    def __init__(self, place: Place, read: Callable[[int], None]) -> None:
        super().__init__(place)
        names: dict[str, None] = {}
        starts = array("q")
        end = 0
        with self._file() as file:
            for line, raw in enumerate(_lines(file, read), start=1):
                if raw.strip():
                    record = _object(raw, place.given, line)
                    if not record.keys() <= names.keys():
                        names.update(dict.fromkeys(record))
                    starts.append(end)
                end += len(raw)
        starts.append(end)
        self.columns = list(names)
        self._offsets = np.frombuffer(starts, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_unpacked"}

    def blocks(self) -> Iterator[list[Record]]:
        first = 0
        while first < len(self):
            full = int(np.searchsorted(self._offsets, self._offsets[first] + BLOCK_BYTES)) - 1
            last = min(max(full, first + 1), first + BLOCK_ROWS, len(self))
            raw = self._bytes(first, last)
            cuts = (self._offsets[first : last + 1] - self._offsets[first]).tolist()
            yield [_value(raw[start:end]) for start, end in pairwise(cuts)]
            first = last

    def read(self, row: int) -> tuple[Record, int]:
        raw = self._bytes(row, row + 1)
        return _value(raw), len(raw)

    def where(self, row: int) -> str:
        line, place, start = 1, 0, int(self._offsets[row])
        with self._file() as file:
            while place < start:
                raw = os.pread(file.fileno(), min(BLOCK_BYTES, start - place), place)
                line, place = line + raw.count(b"\n"), place + len(raw)
        return f"{self.place.given}:{line} (row {row})"

    def _bytes(self, first: int, last: int) -> bytes:
        """Rows ``first`` to ``last`` (without), with the blank lines after each."""
        self._check_unchanged()
        start, end = self._offsets[[first, last]].tolist()
        with self._file() as file:
            # Not by seek and read: a forked worker of a data loader shares an open file's position.
            return os.pread(file.fileno(), end - start, start)

    def _file(self) -> AbstractContextManager[IO[bytes]]:
        """Opened for each use, as there may be more files than a process may have open."""
        if self.place.path.suffix == ".gz":
            return nullcontext(self._unpacked)
        return open(self.place.path, "rb")

    @cached_property
    def _unpacked(self) -> IO[bytes]:
        return _unpacked(self.place)


class JsonList(Records):
    """A file that is one list of JSON objects, held in memory."""

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.columns = list(dict.fromkeys(name for record in self._records for name in record))

    def __len__(self) -> int:
        return len(self._records)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_records"}

    def blocks(self) -> Iterator[list[Record]]:
        records = iter(self._records)
        while block := list(islice(records, BLOCK_ROWS)):
            yield block

    def read(self, row: int) -> tuple[Record, int]:
        return self._records[row], 0

    @cached_property
    def _records(self) -> list[Record]:
        self._check_unchanged()
        return _json_list(self.place)


class Table(Records):
    """A Parquet file, a saved folder or a hub data set.

    Values of type ``datasets.Json`` are decoded; the others are as they are stored, so that images stay encoded.
    """

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.columns = self._dataset.column_names

    def __len__(self) -> int:
        return len(self._dataset)

    def __getstate__(self) -> dict[str, Any]:
        # A hub data set goes along, as a mapped file: opened anew it could be of another revision.
        kept = {"_dataset"} if self.place.format == "hub" else set()
        opened = {"_dataset", "_arrow", "_mixed"} - kept
        return {name: value for name, value in self.__dict__.items() if name not in opened}

    def blocks(self) -> Iterator[list[Record]]:
        stored = self._dataset.data  # of a selection it has all rows
        for rows in self._arrow.iter(block_rows(stored.nbytes, stored.num_rows)):
            self._check_unchanged()
            yield [self._decoded(record) for record in rows.to_pylist()]

    def read(self, row: int) -> tuple[Record, int]:
        self._check_unchanged()
        rows = self._arrow[row]
        return self._decoded(rows.to_pylist()[0]), rows.nbytes

    def _decoded(self, record: dict[str, Any]) -> Record:
        if not self._mixed:
            return record
        return record | self._mixed.decode_example({name: record[name] for name in self._mixed})

    @cached_property
    def _dataset(self) -> Dataset:
        self._check_unchanged()
        return open_dataset(self.place)

    @cached_property
    def _arrow(self) -> Dataset:
        return self._dataset.with_format("arrow")

    @cached_property
    def _mixed(self) -> Any:
        """The features of type Json, which are texts to arrow."""
        from datasets import Features

        return Features({name: f for name, f in self._dataset.features.items() if is_json(f)})


# ------------------------------------------------------------------ JSON


def _lines(file: IO[bytes], read: Callable[[int], None]) -> Iterator[bytes]:
    while lines := file.readlines(BLOCK_BYTES):
        yield from lines
        read(sum(map(len, lines)))


def _unpacked(place: Place) -> IO[bytes]:
    """The packed file's content, in a file that is gone with the process."""
    file = tempfile.TemporaryFile()  # noqa: SIM115 (open as long as the records)
    try:
        with gzip.open(place.path, "rb") as packed:
            shutil.copyfileobj(packed, file)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        file.seek(0)
        line = sum(raw.endswith(b"\n") for raw in file) + 1
        raise InputError(f"{place.given}:{line}: cannot be unpacked ({one_line(error)})") from None
    file.seek(0)
    return file


def _opens_a_list(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")


def _json_list(place: Place) -> list[Record]:
    need = "the file must be one list of JSON objects"
    records = _json(place.path.read_bytes(), place.given, 1, need)
    for row, record in enumerate(records):
        if not isinstance(record, dict):
            raise InputError(
                f"{place.given}: row {row}: not a JSON object but {type(record).__name__}; {need}"
            )
    return records


def _object(raw: bytes, path: str, line: int) -> dict[str, Any]:
    need = "each line must be one JSON object"
    value = _json(raw, path, line, need)
    if not isinstance(value, dict):
        raise InputError(f"{path}:{line}: not a JSON object but {type(value).__name__}; {need}")
    return value


def _json(raw: bytes, path: str, line: int, need: str) -> Any:
    """The value that ``raw`` spells, which begins at a line of its file."""
    try:
        return _value(raw)
    except UnicodeDecodeError as error:
        line += raw[: error.start].count(b"\n")
        raise InputError(f"{path}:{line}: not UTF-8; save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        line += error.lineno - 1
        raise InputError(f"{path}:{line}: not JSON ({error.msg} at column {error.colno}); {need}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}:{line}: not JSON ({one_line(error)}); {need}") from None


def _value(raw: bytes) -> Any:
    return json.loads(raw.rstrip().decode("utf-8-sig"))
