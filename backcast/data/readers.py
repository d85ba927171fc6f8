"""From a user's files to `Examples`: JSON, JSONL, Parquet, Hugging Face datasets."""

from __future__ import annotations

import gzip
import json
import logging
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backcast.data.conversations import arranged, asked, read_turns
from backcast.data.examples import CONTENT, Example, Examples
from backcast.data.images import BrokenImage
from backcast.data.values import ImageReader, checked_label, checked_text
from backcast.errors import InputError
from backcast.progress import progress

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger("backcast")

#: A preference pair's fields.
PAIR = ("prompt", "chosen", "rejected")

#: The kinds of example, each with the canonical fields that a row of it must have, but for images in a conversation. A
#: label makes a kind only where nothing else does; beside another it is an extra. Of two kinds that would read the same
#: columns the first is meant.
KINDS = (
    ("prompt", "response"),
    ("messages",),
    ("text",),
    ("image", "caption"),
    ("image", "prompt", "response"),
    ("images", "prompt", "response"),
    ("messages", "images"),
    PAIR,
    ("image", "label"),
)

#: Names that are taken for a canonical field when the field's own name is not among the columns.
ALIASES = {
    "prompt": ("instruction", "question", "query", "input"),
    "response": ("output", "answer", "completion"),
    "messages": ("conversation", "conversations"),
    "text": ("content",),
    "image": ("image_path", "img", "img_path", "file_name"),
    "images": ("image",),
    "caption": ("text", "alt_text", "description"),
}

JSON = (".jsonl", ".ndjson", ".json", ".jsonl.gz")
PARQUET = (".parquet",)
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")

#: Fields that any kind may have besides.
EXTRAS = ("label", "source")

Record = Mapping[str, Any]
Option = Mapping[str, Sequence[str]]  # a kind's fields, each with the columns that may hold it


def read_examples(
    path: str | Path, columns: Mapping[str, str] | None = None, skip_broken: bool = False
) -> Examples:
    """Read a data set whole, in its own order, every row and every image checked.

    Args:
        path: a JSONL file (.jsonl, .ndjson, .json, .jsonl.gz), a list of objects in a .json file, a Parquet file, a
            folder written by ``datasets.Dataset.save_to_disk``, or a hub id. ``:split`` after a folder or an id
            picks a split; the default is the only split, or ``train``.
        columns: canonical field → the data set's own column, e.g.
            ``{"prompt": "question", "response": "answer"}``. Fields left out are found by name (`ALIASES`);
            where it names a whole kind (`KINDS`), that kind is read and no other is looked for.
        skip_broken: leave rows out whose image is missing or broken, instead of stopping at the first. The others keep
            their places (`Example.row`), `Examples.skipped` lists those left out, and a warning is logged.

    Other columns are kept in ``Example.fields`` under their own names and stay out of the content id; one
    that bears a canonical name without being used as it is dropped. ``label`` is kept and enters the id.
    A column named ``source`` gives `Example.source`; without one it is the file's stem. An image's path is
    relative to the file that names it. Messages and their images are brought to one form, whatever way they are
    written in, so that a conversation has one id (see `conversation`).

    Raises:
        InputError: the file is missing, empty or unreadable (with the line); columns are missing or
            ambiguous; a row's field is missing, empty or of the wrong type, or its image is broken (with the
            row, from 0).
    """
    place = _Place.of(path)
    records, lines = _read_records(place)
    if not records:
        raise InputError(f"{path}: no rows; a data set needs at least one")
    where = _Where(str(path), lines)
    found = _resolve(records, columns or {}, where)
    read_image = ImageReader(place.folder)
    examples, skipped = [], []
    with progress(f"reading {place.stem}", len(records)) as advance:
        for row, record in enumerate(records):
            try:
                fields = _fields(record, found, read_image)
            except InputError as error:
                if not (skip_broken and isinstance(error, BrokenImage)):
                    raise InputError(f"{where(row)}: {error}") from None
                skipped.append((row, str(error)))
            else:
                examples.append(Example(fields, row, str(fields.get("source", place.stem))))
            advance(1)
    _tell(skipped, len(records), where)
    return Examples(examples, place.name, found, skipped)


def _tell(skipped: Sequence[tuple[int, str]], rows: int, where: _Where) -> None:
    """Log what was left out; raise `InputError` where nothing is left."""
    if not skipped:
        return
    first, reason = skipped[0]
    if len(skipped) == rows:
        raise InputError(f"{where.path}: no row has a whole image; the first: {where(first)}: {reason}")
    named = ", ".join(str(row) for row, _ in skipped[:5]) + (", ..." if len(skipped) > 5 else "")
    log.warning(
        "%s: %d of %d rows skipped, their images being broken or missing: rows %s; the first: %s",
        where.path,
        len(skipped),
        rows,
        named,
        reason,
    )


def load_table(path: str | Path) -> Dataset:
    """The data set with its own columns, as ``datasets`` sees it; row i is the example with ``row == i``.

    A column of a JSON file whose values are of several types, such as contents with and without images, is of type
    ``datasets.Json``.
    """
    import pyarrow

    place = _Place.of(path)
    if place.format == "json":
        records, _ = _json_records(place)
        try:
            return _table({name: [r.get(name) for r in records] for name in _columns(records)})
        except (pyarrow.lib.ArrowException, OverflowError, UnicodeError) as error:
            raise InputError(f"{path}: a column's values do not fit one type ({_line(error)})") from None
    return _load_dataset(place)


def _table(columns: dict[str, list[Any]]) -> Dataset:
    import pyarrow
    from datasets import Dataset, concatenate_datasets

    try:
        return Dataset.from_dict(columns)
    except pyarrow.lib.ArrowException:
        return concatenate_datasets([_column(*named) for named in columns.items()], axis=1)


def _column(name: str, values: list[Any]) -> Dataset:
    """A table of one column, of type Json where its values have no type in common."""
    import pyarrow
    from datasets import Dataset, Features, Json

    try:
        return Dataset.from_dict({name: values})
    except pyarrow.lib.ArrowException:
        # Encoded here, as datasets would take a text that is JSON itself, "4", for the number.
        encoded = [None if value is None else json.dumps(value) for value in values]
        return Dataset.from_dict({name: encoded}, features=Features({name: Json()}))


# ------------------------------------------------------------------ where the data is


@dataclass(frozen=True)
class _Place:
    """A parsed ``path``: what to read and how to name it."""

    given: str
    path: Path
    format: str
    split: str | None = None

    @classmethod
    def of(cls, path: str | Path) -> _Place:
        given = str(path)
        local = Path(given).expanduser()
        before, colon, split = given.rpartition(":")
        if not local.exists() and colon and split:
            kind = cls._format(given, before)
            if kind in ("json", "parquet"):
                raise InputError(f"{given}: a file has no splits; leave ':{split}' out")
            return cls(given, Path(before).expanduser(), kind, split)
        return cls(given, local, cls._format(given, given))

    @staticmethod
    def _format(given: str, name: str) -> str:
        path = Path(name).expanduser()
        if path.is_dir():
            return "folder"
        for known, suffixes in (("json", JSON), ("parquet", PARQUET)):
            if name.endswith(suffixes):
                if not path.is_file():
                    raise InputError(f"{given}: no such file")
                return known
        if path.exists():
            raise InputError(
                f"{given}: unknown format; give {', '.join(JSON + PARQUET)}, a dataset folder or a hub id"
            )
        if not HUB_ID.fullmatch(name):
            raise InputError(f"{given}: no such file or folder")
        return "hub"

    @property
    def name(self) -> str:
        """What a manifest records: a hub id as given, a path made absolute."""
        if self.format == "hub":
            return self.given
        return str(self.path.resolve()) + (f":{self.split}" if self.split else "")

    @property
    def stem(self) -> str:
        suffix = next((s for s in JSON + PARQUET if self.path.name.endswith(s)), "")
        return self.path.name.removesuffix(suffix)

    @property
    def folder(self) -> Path:
        """Where relative image paths start."""
        return self.path.resolve() if self.format == "folder" else self.path.resolve().parent


@dataclass(frozen=True)
class _Where:
    """Names a row in an error: ``pool.jsonl:13 (row 12)``, or ``pool.parquet: row 12``."""

    path: str
    lines: Sequence[int] | None

    def __call__(self, row: int) -> str:
        return (
            f"{self.path}: row {row}" if self.lines is None else f"{self.path}:{self.lines[row]} (row {row})"
        )


# ------------------------------------------------------------------ records


def _read_records(place: _Place) -> tuple[list[Record], list[int] | None]:
    """The rows as dictionaries and, for a file of lines, each row's 1-based line."""
    if place.format == "json":
        return _json_records(place)
    from datasets import Features

    dataset = _load_dataset(place)
    records = dataset.with_format("arrow")[:].to_pylist()
    # Of type Json are texts to arrow; the other features are left as they are stored, so that images stay encoded.
    mixed = Features(
        {name: feature for name, feature in dataset.features.items() if "Json(" in repr(feature)}
    )
    return [
        r | mixed.decode_example({name: r[name] for name in mixed}) for r in records
    ] if mixed else records, None


def _json_records(place: _Place) -> tuple[list[Record], list[int] | None]:
    if place.path.suffix == ".json" and _opens_a_list(place.path):
        return _json_list(place), None
    numbered = list(_json_lines(place))
    return [record for _, record in numbered], [line for line, _ in numbered]


def _opens_a_list(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")


def _json_list(place: _Place) -> list[Record]:
    need = "the file must be one list of JSON objects"
    records = _json(place.path.read_bytes(), place.given, 1, need)
    for row, record in enumerate(records):
        if not isinstance(record, dict):
            raise InputError(
                f"{place.given}: row {row}: not a JSON object but {type(record).__name__}; {need}"
            )
    return records


def _json_lines(place: _Place) -> Iterator[tuple[int, Record]]:
    """(line number, object) of every line that is not blank."""
    need = "each line must be one JSON object"
    line = 0
    open_file = gzip.open if place.path.suffix == ".gz" else open
    with open_file(place.path, "rb") as file:
        try:
            for line, raw in enumerate(file, start=1):
                if not raw.strip():
                    continue
                value = _json(raw, place.given, line, need)
                if not isinstance(value, dict):
                    raise InputError(
                        f"{place.given}:{line}: not a JSON object but {type(value).__name__}; {need}"
                    )
                yield line, value
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise InputError(f"{place.given}:{line + 1}: cannot be unpacked ({_line(error)})") from None


def _json(raw: bytes, path: str, line: int, need: str) -> Any:
    """The value that ``raw`` spells, which begins at a line of its file."""
    try:
        return json.loads(raw.rstrip().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line += raw[: error.start].count(b"\n")
        raise InputError(f"{path}:{line}: not UTF-8; save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        line += error.lineno - 1
        raise InputError(f"{path}:{line}: not JSON ({error.msg} at column {error.colno}); {need}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}:{line}: not JSON ({_line(error)}); {need}") from None


def _load_dataset(place: _Place) -> Dataset:
    """A Parquet file, a saved folder or a hub data set."""
    import pyarrow
    import pyarrow.parquet
    from datasets import Dataset, DatasetDict, load_dataset, load_from_disk
    from datasets.table import InMemoryTable

    if place.format == "parquet":
        try:
            return Dataset(InMemoryTable(pyarrow.parquet.read_table(place.path, partitioning=None)))
        except (pyarrow.lib.ArrowException, OSError) as error:
            raise InputError(f"{place.given}: not a Parquet file ({_line(error)})") from None
    try:
        loaded = (
            load_from_disk(str(place.path)) if place.format == "folder" else load_dataset(str(place.path))
        )
    except Exception as error:  # network, permissions, formats: ``datasets`` raises many kinds
        known = (
            "not a dataset folder"
            if place.format == "folder"
            else "no such file, and no such dataset on the hub"
        )
        raise InputError(f"{place.given}: {known} ({_line(error)})") from None
    if not isinstance(loaded, DatasetDict):
        if place.split is None:
            return loaded
        raise InputError(f"{place.given}: the folder has no splits; leave ':{place.split}' out")
    split = place.split or (next(iter(loaded)) if len(loaded) == 1 else "train")
    if split not in loaded:
        raise InputError(f"{place.given}: no split {split!r}; it has {', '.join(loaded)}")
    return loaded[split]


# ------------------------------------------------------------------ columns


def _columns(records: Sequence[Record]) -> list[str]:
    """Every column of any row, in order of first appearance."""
    return list(dict.fromkeys(name for record in records for name in record))


def _resolve(records: Sequence[Record], given: Mapping[str, str], where: _Where) -> dict[str, str]:
    """Which own column holds each canonical field, canonical → own."""
    names = _columns(records)
    _check_given(given, names, where.path)
    asked = {field: own for field, own in given.items() if field not in EXTRAS}
    fixed = {field: own for field, own in given.items() if field != "source"}
    extras = {field: given.get(field, field) for field in EXTRAS if given.get(field, field) in names}
    if set(asked) in map(set, KINDS):
        return asked | extras
    kinds = [kind for kind in KINDS if set(asked) <= set(kind)]
    if not kinds:
        raise InputError(
            f"{where.path}: {'+'.join(asked)} is no kind of example; the kinds are {_listed(KINDS)}"
        )
    options = [{f: [fixed[f]] if f in fixed else _candidates(f, names) for f in kind} for kind in kinds]
    options = [option for option in options if all(option.values())]
    options = [option for option in options if "label" not in option] or options
    # image + text is a captioned image, not a text with an image to spare
    options = [o for o in options if not any(_used(o) < _used(other) for other in options)]
    options = [o for i, o in enumerate(options) if _used(o) not in map(_used, options[:i])]
    if not options:
        raise InputError(
            f"{where.path}: the columns {', '.join(names)} hold no {_listed(kinds)}; "
            "say which to use, e.g. prompt=QUESTION response=ANSWER"
        )
    if len(options) > 1:
        _refuse_mixed(records, options, where)
    if len(options) > 1 or any(len(owns) > 1 for owns in options[0].values()):
        could = " or ".join(
            " ".join(f"{field}={'|'.join(owns)}" for field, owns in o.items()) for o in options
        )
        raise InputError(
            f"{where.path}: the columns {', '.join(names)} are ambiguous; say which to use: {could}"
        )
    return {field: own for field, (own,) in options[0].items()} | extras


def _check_given(given: Mapping[str, str], names: Sequence[str], path: str) -> None:
    for field, own in given.items():
        if field not in (*CONTENT, "source"):
            raise InputError(f"{path}: no field {field!r}; the fields are {', '.join((*CONTENT, 'source'))}")
        if own not in names:
            raise InputError(f"{path}: no column {own!r} for {field!r}; the columns are {', '.join(names)}")


def _candidates(field: str, names: Sequence[str]) -> list[str]:
    """The columns that may hold a canonical field: the one of its own name, else its aliases."""
    return [field] if field in names else [alias for alias in ALIASES.get(field, ()) if alias in names]


def _listed(kinds: Sequence[Sequence[str]]) -> str:
    return " or ".join("+".join(kind) for kind in kinds)


def _used(option: Option) -> set[str]:
    return {own for owns in option.values() for own in owns}


def _refuse_mixed(records: Sequence[Record], options: Sequence[Option], where: _Where) -> None:
    """Tell rows of several kinds in one file from rows that fit several kinds."""

    def kinds(record: Record) -> str:
        fitting = [
            "+".join(o) for o in options if all(any(has(record, own) for own in owns) for owns in o.values())
        ]
        return " and ".join(fitting) or "no kind of example"

    def has(record: Record, own: str) -> bool:
        return record.get(own) is not None

    first = kinds(records[0])
    for row, record in enumerate(records):
        if kinds(record) != first:
            raise InputError(
                f"{where(row)}: mixed kinds: this row is {kinds(record)}, the first is {first}; "
                "keep one kind in a file"
            )


# ------------------------------------------------------------------ fields


def _fields(record: Record, found: Mapping[str, str], read_image: ImageReader) -> dict[str, Any]:
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


def _line(error: BaseException) -> str:
    """An exception's text on one line."""
    return " ".join(str(error).split()) or type(error).__name__
