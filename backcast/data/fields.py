"""A record's fields: canonical ones checked, the others as they are; read again when they are looked into."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from backcast.data.columns import EXTRAS, PAIR
from backcast.data.conversations import arranged, asked, read_turns
from backcast.data.examples import CONTENT
from backcast.data.images import BrokenImage
from backcast.data.records import Record, Records
from backcast.data.values import ImageReader, checked_label, checked_text
from backcast.errors import InputError

#: The most rows, and bytes as they are in the file, that are kept of one file.
KEPT_ROWS = 1 << 14
KEPT_BYTES = 32 << 20


class Contents:
    """The fields of a file's rows, read when they are asked for; those of the last rows are kept.

    Args:
        records: the file.
        found: its columns, canonical → own.
    """

    def __init__(self, records: Records, found: Mapping[str, str]) -> None:
        self._records, self._found = records, found
        self._read_image = ImageReader(records.place.folder, verify=False)
        self._forget()

    def __getitem__(self, row: int) -> Mapping[str, Any]:
        fields, size = self._kept.pop(row) if row in self._kept else self._read(row)
        self._kept[row] = fields, size  # the last used at the end
        return fields

    def _read(self, row: int) -> tuple[Mapping[str, Any], int]:
        record, size = self._records.read(row)
        while self._kept and (len(self._kept) >= KEPT_ROWS or self._bytes + size > KEPT_BYTES):
            self._bytes -= self._kept.pop(next(iter(self._kept)))[1]
        self._bytes += size
        return fields_of(record, self._found, self._read_image), size

    def _forget(self) -> None:
        self._kept: dict[int, tuple[Mapping[str, Any], int]] = {}
        self._bytes = 0

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_kept", "_bytes")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()


class Fields(Mapping[str, Any]):
    """One row's fields, of which only the names are held.

    Args:
        contents: the file's.
        row: in that file.
        names: the fields that the row has.
    """

    __slots__ = ("_contents", "_names", "_row")

    def __init__(self, contents: Contents, row: int, names: tuple[str, ...]) -> None:
        self._contents, self._row, self._names = contents, row, names

    def __getitem__(self, name: str) -> Any:
        if name not in self._names:
            raise KeyError(name)
        return self._contents[self._row][name]

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __repr__(self) -> str:
        return repr(dict(self))


def fields_of(record: Record, found: Mapping[str, str], read_image: ImageReader) -> dict[str, Any]:
    """A row's fields: the canonical ones checked, the others as they are."""
    used = {*found.values(), *CONTENT}
    fields = {name: value for name, value in record.items() if name not in used}
    spared = {*EXTRAS, "images", *(["image"] if "prompt" in found else [])}
    pair = PAIR if set(PAIR) <= set(found) else ()
    for field, own in found.items():
        value = record.get(own)
        if value is not None:
            fields[field] = _checked(field, value, own, read_image, pair)
        elif field not in spared:
            missing = BrokenImage if field == "image" else InputError
            raise missing(f"no {own!r}; every row needs {field}")
    if "messages" in found or "images" in found:
        turns = fields.pop("messages", None) or asked(fields.pop("prompt"), fields.pop("response"))
        beside = fields.pop("images", []) if "images" in found else None
        fields["messages"], images = arranged(turns, beside)
        fields |= {"images": images} if images else {}
    return fields


def _checked(field: str, value: Any, own: str, read_image: ImageReader, pair: Sequence[str]) -> Any:
    """A canonical field's value; ``messages`` are turns yet, to be arranged with their images.

    Those fields that are part of a preference pair may be lists of messages.
    """
    if field == "image":
        return read_image(value, own)
    if field == "images":
        return read_image.many(value, own)
    if field == "messages":
        return read_turns(value, own, read_image)
    if field in pair and isinstance(value, list):
        return _text_messages(value, own, read_image)
    if field == "label":
        return checked_label(value, own)
    return str(value) if field == "source" else checked_text(value, own)


def _text_messages(value: Any, own: str, read_image: ImageReader) -> list[dict[str, Any]]:
    turns = read_turns(value, own, read_image)
    if not all(isinstance(piece, str) for turn in turns for piece in turn.content):
        raise InputError(f"{own!r} shows an image; preference pairs are read as text alone")
    return arranged(turns, None)[0]
