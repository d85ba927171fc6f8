"""The nouns of the user's data: a row, its content id, and an ordered set of rows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from sys import intern
from typing import Any, overload

import numpy as np

from backcast.errors import InputError
from backcast.files import sha256

#: The fields that are an example's content, and so enter its id. Any other column is kept, not hashed.
CONTENT = (
    "messages",
    "prompt",
    "response",
    "text",
    "image",
    "images",
    "caption",
    "label",
    "chosen",
    "rejected",
)

#: An image as a field: encoded bytes, or an absolute path.
Image = str | bytes


def content_id(fields: Mapping[str, Any]) -> str:
    """SHA-256 of an example's canonical content, an image standing in by the SHA-256 of its bytes.

    Key order, file format and the place of an image on disk do not change it.
    """
    content = {name: fields[name] for name in CONTENT if fields.get(name) is not None}
    if "image" in content:
        content["image"] = sha256(image_bytes(content["image"]))
    images = content.pop("images", ())
    if images:
        content["images"] = [sha256(image_bytes(image)) for image in images]
    return sha256(json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":")))


def image_bytes(image: Image) -> bytes:
    """An image field's encoded bytes: itself, or those of the file it names."""
    return image if isinstance(image, bytes) else Path(image).read_bytes()


@dataclass(frozen=True, slots=True)
class Example:
    """A row of the user's data.

    ``fields`` holds canonical names: ``prompt`` and ``response``, with an ``image`` (encoded bytes, or an absolute
    path) or without; ``messages``, whose contents may be lists of parts, with the ``images`` of their image parts in
    order; ``text``; ``image`` and ``caption`` or ``label``; ``prompt``, ``chosen`` and ``rejected``.
    ``id`` is the SHA-256 of its content, ``row`` its 0-based place in the data set it was read from, ``source`` the
    name that balancing and reports use. Of an example that was read from a file ``fields`` reads them again when they
    are looked into; do so once for a use.
    """

    fields: Mapping[str, Any]
    row: int
    source: str
    id: str = ""

    def __post_init__(self) -> None:
        if not self.id:
            object.__setattr__(self, "id", content_id(self.fields))


@dataclass(frozen=True)
class Rows:
    """Which examples, without their content: what stores, scores and manifests carry.

    Attributes:
        ids: content ids, in order.
        rows: (n,) int64, each example's place in its data set.
        sources: each example's source.
        dataset: where the data set is: a file, a folder or a hub id, or several separated by commas; empty when it was
            made in memory.
        columns: how the data set's columns were renamed to canonical fields, canonical → own.
        fingerprint: SHA-256 over the ids in order.
    """

    ids: tuple[str, ...]
    rows: np.ndarray
    sources: tuple[str, ...]
    dataset: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def fingerprint(self) -> str:
        return sha256("\n".join(self.ids))

    def to_json(self) -> dict[str, Any]:
        """A JSON object that `from_json` reads back."""
        return {
            "ids": list(self.ids),
            "rows": self.rows.tolist(),
            "sources": list(self.sources),
            "dataset": self.dataset,
            "columns": dict(self.columns),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Rows:
        return cls(
            ids=tuple(value["ids"]),
            rows=np.asarray(value["rows"], dtype=np.int64),
            sources=tuple(map(intern, value["sources"])),  # a few names, many times
            dataset=value["dataset"],
            columns=value["columns"],
        )


class Examples(Sequence[Example]):
    """An ordered set of examples and where they came from; slicing keeps that origin.

    ``skipped`` holds (row, reason) of the data set's rows that were left out for a broken or missing image.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        dataset: str = "",
        columns: Mapping[str, str] | None = None,
        skipped: Sequence[tuple[int, str]] = (),
    ) -> None:
        self._examples = list(examples)
        self.dataset = dataset
        self.columns = dict(columns or {})
        self.skipped = tuple(skipped)

    @classmethod
    def from_fields(cls, fields: Sequence[Mapping[str, Any]], source: str = "memory") -> Examples:
        """Examples made in memory, e.g. ``Examples.from_fields([{"text": "..."}])``.

        A ``source`` key names a row's source.
        """
        if not fields:
            raise InputError("no examples: the sequence of fields is empty")
        return cls([Example(f, row, str(f.get("source", source))) for row, f in enumerate(fields)])

    def __len__(self) -> int:
        return len(self._examples)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice | Sequence[int] | np.ndarray) -> Examples: ...
    def __getitem__(self, index: int | slice | Sequence[int] | np.ndarray) -> Example | Examples:
        if isinstance(index, (int, np.integer)):
            return self._examples[index]
        chosen = self._examples[index] if isinstance(index, slice) else [self._examples[i] for i in index]
        return Examples(chosen, self.dataset, self.columns, self.skipped)

    @cached_property
    def index(self) -> Rows:  # type: ignore[override]
        """These examples' `Rows`."""
        return Rows(
            ids=tuple(e.id for e in self),
            rows=np.asarray([e.row for e in self], dtype=np.int64),
            sources=tuple(e.source for e in self),
            dataset=self.dataset,
            columns=self.columns,
        )
