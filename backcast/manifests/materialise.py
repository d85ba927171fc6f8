"""The chosen rows written out, in rank order: JSONL and Parquet."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from backcast.data import Example, Examples
from backcast.data.arrow import one_line
from backcast.errors import InputError
from backcast.files import sha256, whole_file, write_atomic
from backcast.manifests.check import compare, opened
from backcast.manifests.manifest import Manifest, portable_path
from backcast.progress import progress

#: How many rows of a Parquet file are held at a time.
ROWS = 200

Record = dict[str, Any]
Shown = Mapping[str, Callable[[Any], Any]]  # how a field's value is written


@dataclass(frozen=True)
class Chosen:
    """The chosen examples, which were found where the manifest says.

    Attributes:
        manifest: what names them.
        examples: in rank order; their contents are read when they are asked for.
    """

    manifest: Manifest
    examples: Examples

    @classmethod
    def of(cls, manifest: Manifest, data: str | Path | Examples | None) -> Chosen:
        """Those of a manifest; raises `InputError` when it does not fit the data (see `check`)."""
        examples, name = opened(manifest, data)
        report = compare(manifest, examples, name)
        if not report:
            raise InputError(report.summary)
        return cls(manifest, examples[manifest.positions(examples.index)])

    @cached_property
    def fields(self) -> set[str]:
        """The names of all their fields."""
        return {name for example in self.examples for name in example.fields}

    @cached_property
    def pictured(self) -> bool:
        """Whether some example shows an image."""
        return not self.fields.isdisjoint({"image", "images"})

    @cached_property
    def weighted(self) -> bool:
        """Whether some weight is not 1, so that weights have to be told."""
        return bool((self.manifest.weights != 1).any())

    def __iter__(self) -> Iterator[tuple[Example, Record]]:
        """Each example with what its record holds beside its content: its weight, where they have to be told."""
        with progress(f"exporting {self.manifest.path.stem}", len(self.examples)) as advance:
            for example, weight in zip(self.examples, self.manifest.weights.tolist(), strict=True):
                yield example, {"weight": weight} if self.weighted else {}
                advance(1)


class Images:
    """How the records of an output name their images: by paths.

    Args:
        out: the file that the records go to. Images that are no files yet are written to a folder beside it, under the
            hash of their bytes.
        absolute: for readers that take a relative path to start at their working directory; else a path is relative
            to ``out`` where `portable_path` makes it so.
    """

    def __init__(self, out: Path, absolute: bool = False) -> None:
        self._out, self._absolute = out.resolve(), absolute

    def __call__(self, image: str | bytes) -> str:
        path = image if isinstance(image, str) else self._written(image)
        return path if self._absolute else portable_path(path, self._out.parent)

    def _written(self, image: bytes) -> str:
        from PIL import Image

        with Image.open(io.BytesIO(image)) as opened_image:
            suffix = str(opened_image.format).lower()
        path = self._out.with_suffix(".images") / f"{sha256(image)}.{suffix}"
        if not path.exists():
            write_atomic(path, image)
        return str(path)


def jsonl(chosen: Chosen, out: Path) -> list[Path]:
    """Their own columns as JSON lines; images as paths, relative where they lie near."""
    show = Images(out)
    shown: Shown = {"image": show, "images": lambda images: [show(image) for image in images]}
    write_jsonl(out, ({**_own(chosen, example, shown), **more} for example, more in chosen))
    return [out]


def parquet(chosen: Chosen, out: Path) -> list[Path]:
    """Their own columns as Parquet; images as a ``datasets.Image`` column, of bytes or absolute paths.

    Read twice: once for the columns' types, once to write. Where there are images, contents of messages are lists of
    parts, as a column has one type.
    """
    import pyarrow
    import pyarrow.parquet
    from datasets import Features, Image, List

    shown: Shown = {"image": _struct, "images": lambda images: [_struct(image) for image in images]}
    if chosen.pictured:
        shown = {**shown, "messages": _in_parts}

    def tables(schema: Any = None) -> Iterator[Any]:
        records = ({**_own(chosen, example, shown), **more} for example, more in chosen)
        while block := list(islice(records, ROWS)):
            names = schema.names if schema else dict.fromkeys(name for record in block for name in record)
            yield pyarrow.table({n: [r.get(n) for r in block] for n in names}, schema=schema)

    try:
        schema = pyarrow.unify_schemas([t.schema for t in tables()], promote_options="permissive")
        features = Features.from_arrow_schema(schema)
        for field, feature in (("image", Image()), ("images", List(Image()))):
            if field in chosen.fields:
                features[chosen.examples.columns.get(field, field)] = feature
        with (
            whole_file(out) as file,
            pyarrow.parquet.ParquetWriter(file, features.arrow_schema) as writer,
        ):
            for table in tables(features.arrow_schema):
                writer.write_table(table)
    except (pyarrow.lib.ArrowException, OverflowError) as error:
        raise InputError(
            f"{out}: a column's values do not fit one type ({one_line(error)}); export jsonl"
        ) from None
    return [out]


def write_jsonl(out: Path, records: Iterable[Record]) -> None:
    """A line a record; the file appears whole or not at all."""
    with whole_file(out) as file:
        for record in records:
            try:
                line = json.dumps(record, ensure_ascii=False, allow_nan=False).encode()
            except (TypeError, ValueError) as error:
                raise InputError(f"{out}: a value that JSON cannot hold ({error}); export parquet") from None
            file.write(line + b"\n")


def parts(content: str | list[Record]) -> list[Record]:
    """A message's content as a list of parts."""
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _in_parts(messages: Sequence[Record]) -> list[Record]:
    return [{**message, "content": parts(message["content"])} for message in messages]


def _own(chosen: Chosen, example: Example, shown: Shown) -> Record:
    """An example under the data set's own names."""
    names = chosen.examples.columns
    record = {
        names.get(field, field): shown[field](value) if field in shown else value
        for field, value in example.fields.items()
    }
    if chosen.weighted and "weight" in record:
        raise InputError(
            f"{chosen.manifest.path}: the data's own column 'weight' would be hidden by the manifest's; rename it"
        )
    return record


def _struct(image: str | bytes) -> Record:
    """As ``datasets`` stores an image."""
    by_path = isinstance(image, str)
    return {"bytes": None if by_path else image, "path": image if by_path else None}
