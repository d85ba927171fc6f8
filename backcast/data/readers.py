"""From a user's files to `Examples`: JSON, JSONL, Parquet, Hugging Face datasets."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from backcast.data.columns import EXTRAS, resolve
from backcast.data.examples import Example, Examples, content_id
from backcast.data.fields import Contents, Fields, fields_of
from backcast.data.images import BrokenImage
from backcast.data.places import Name, Place, joined_name, places
from backcast.data.records import Records, open_records
from backcast.data.values import ImageReader
from backcast.errors import InputError
from backcast.progress import progress

log = logging.getLogger("backcast")

Skipped = list[tuple[int, str]]


def read_examples(
    path: Name, columns: Mapping[str, str] | None = None, skip_broken: bool = False
) -> Examples:
    """Read a data set in its own order, every row and every image checked. Contents stay in the files.

    Args:
        path: a JSONL file (.jsonl, .ndjson, .json, .jsonl.gz), a list of objects in a .json file, a Parquet file, a
            folder written by ``datasets.Dataset.save_to_disk``, or a hub id, ``owner/name/config@revision``. ``:split``
            after a folder or an id picks a split; the default is the only split, or ``train``. Several are separated
            by commas, matched by a pattern such as ``data/*.jsonl``, or given as a sequence; their rows are numbered
            through in this order.
        columns: canonical field → the data set's own column, e.g.
            ``{"prompt": "question", "response": "answer"}``. Fields left out are found by name (`ALIASES`), in
            each file by itself; where it names a whole kind (`KINDS`), that kind is read and no other is looked for.
        skip_broken: leave rows out whose image is missing or broken, instead of stopping at the first. The others keep
            their places (`Example.row`), `Examples.skipped` lists those left out, and a warning is logged.

    Other columns are kept in ``Example.fields`` under their own names and stay out of the content id; one
    that bears a canonical name without being used as it is dropped. ``label`` is kept and enters the id.
    A column named ``source`` gives `Example.source`; without one it is the file's stem. An image's path is
    relative to the file that names it. Messages and their images are brought to one form, whatever way they are
    written in, so that a conversation has one id (see `conversation`).

    What is kept of a row is its id and place, some 300 bytes; its fields are read again when they are looked into
    (see `Contents`), which raises `InputError` once the file has changed.

    Raises:
        InputError: a file is missing, empty or unreadable (with the line); columns are missing or
            ambiguous; a row's field is missing, empty or of the wrong type, or its image is broken (with the
            row, from 0); files hold different kinds of example.
    """
    files = _opened(path, columns or {})
    _refuse_different(files)
    name = files[0].records.place.stem if len(files) == 1 else f"{len(files)} files"
    examples: list[Example] = []
    skipped: Skipped = []
    with progress(f"reading {name}", sum(len(file.records) for file in files)) as advance:
        first = 0
        for file in files:
            broken: Skipped = []
            examples += file.examples(first, broken if skip_broken else None, advance)
            file.tell(broken)
            skipped += [(first + row, reason) for row, reason in broken]
            first += len(file.records)
    alike = all(file.found == files[0].found for file in files)
    dataset = joined_name([file.records.place for file in files])
    return Examples(examples, dataset, files[0].found if alike else columns, skipped)


@dataclass(frozen=True)
class _File:
    """One of a data set's files, and which of its columns hold which fields."""

    records: Records
    found: Mapping[str, str]

    def examples(
        self, first: int, broken: Skipped | None, advance: Callable[[int], None]
    ) -> Iterator[Example]:
        """Its examples.

        Args:
            first: the number of its first row in the data set.
            broken: gets the rows of the file whose images are broken, with the reason; None to stop at the first.
            advance: told the rows that are done.
        """
        place, contents = self.records.place, Contents(self.records, self.found)
        read_image = ImageReader(place.folder)
        stem = place.stem
        shapes: dict[tuple[str, ...], tuple[str, ...]] = {}
        row = 0
        for block in self.records.blocks():
            for record in block:
                try:
                    fields = fields_of(record, self.found, read_image)
                except InputError as error:
                    if broken is None or not isinstance(error, BrokenImage):
                        raise InputError(f"{self.records.where(row)}: {error}") from None
                    broken.append((row, str(error)))
                else:
                    shape = tuple(fields)  # held once for all rows that have the same
                    lazy = Fields(contents, row, shapes.setdefault(shape, shape))
                    source = sys.intern(str(fields.get("source", stem)))
                    yield Example(lazy, first + row, source, content_id(fields))
                row += 1
            advance(len(block))

    def tell(self, broken: Skipped) -> None:
        """Log which rows were left out; raise `InputError` where none is left."""
        if not broken:
            return
        path, rows = self.records.place.given, len(self.records)
        first, reason = broken[0]
        if len(broken) == rows:
            raise InputError(
                f"{path}: no row has a whole image; the first: {self.records.where(first)}: {reason}"
            )
        named = ", ".join(str(row) for row, _ in broken[:5]) + (", ..." if len(broken) > 5 else "")
        log.warning(
            "%s: %d of %d rows skipped, their images being broken or missing: rows %s; the first: %s",
            path,
            len(broken),
            rows,
            named,
            reason,
        )


def _opened(path: Name, given: Mapping[str, str]) -> list[_File]:
    found = places(path)
    name = found[0].stem if len(found) == 1 else f"{len(found)} files"
    files = []
    with progress(f"finding the rows of {name}", sum(map(_size, found))) as advance:
        for place in found:
            records = open_records(place, advance)
            if not len(records):
                raise InputError(f"{place.given}: no rows; a data set needs at least one")
            files.append(_File(records, resolve(records, given)))
    return files


def _size(place: Place) -> int:
    """The bytes that finding its rows goes through, as far as they are told."""
    told = place.format == "json" and place.path.suffix != ".gz"
    return place.path.stat().st_size if told else 0


def _refuse_different(files: Sequence[_File]) -> None:
    """Raise `InputError` where no one task could read all the files."""
    for file in files[1:]:
        if _kind(file.found) != _kind(files[0].found):
            (one, a), (other, b) = (
                (f.records.place.given, "+".join(field for field in f.found if field not in EXTRAS))
                for f in (files[0], file)
            )
            raise InputError(f"{one} holds {a} and {other} {b}: different kinds of example; read them apart")


def _kind(found: Mapping[str, str]) -> str:
    """What tells the tasks apart: captions, labelled images, pairs, or texts and conversations."""
    if "image" in found and "response" not in found and "caption" not in found:
        return "label"
    return next((field for field in ("caption", "chosen") if field in found), "text")
