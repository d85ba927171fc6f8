"""From a user's files to `Examples`: JSONL, Parquet, Hugging Face datasets."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backcast.data.examples import CONTENT, Example, Examples
from backcast.data.images import verify_image
from backcast.errors import InputError
from backcast.progress import progress

if TYPE_CHECKING:
    from datasets import Dataset

#: The kinds of example, each with the canonical fields that a row of it must have. A label makes a kind only where
#: nothing else does; beside another it is an extra.
KINDS = (
    ("prompt", "response"),
    ("messages",),
    ("text",),
    ("image", "caption"),
    ("image", "prompt", "response"),
    ("prompt", "chosen", "rejected"),
    ("image", "label"),
)

#: Names that are taken for a canonical field when the field's own name is not among the columns.
ALIASES = {
    "prompt": ("instruction", "question", "query", "input"),
    "response": ("output", "answer", "completion"),
    "messages": ("conversation", "conversations"),
    "text": ("content",),
    "image": ("image_path", "img", "img_path", "file_name"),
    "caption": ("text", "alt_text", "description"),
}

JSONL = (".jsonl", ".ndjson", ".json", ".jsonl.gz")
PARQUET = (".parquet",)
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")

#: Fields that any kind may have besides.
EXTRAS = ("label", "source")

Record = Mapping[str, Any]
Option = Mapping[str, Sequence[str]]  # a kind's fields, each with the columns that may hold it


def read_examples(path: str | Path, columns: Mapping[str, str] | None = None) -> Examples:
    """Read a data set whole, in its own order, every row and every image checked.

    Args:
        path: a JSONL file (.jsonl, .ndjson, .json, .jsonl.gz), a Parquet file, a folder written by
            ``datasets.Dataset.save_to_disk``, or a hub id. ``:split`` after a folder or an id picks a
            split; the default is the only split, or ``train``.
        columns: canonical field → the data set's own column, e.g.
            ``{"prompt": "question", "response": "answer"}``. Fields left out are found by name (`ALIASES`);
            where it names a whole kind (`KINDS`), that kind is read and no other is looked for.

    Other columns are kept in ``Example.fields`` under their own names and stay out of the content id; one
    that bears a canonical name without being used as it is dropped. ``label`` is kept and enters the id.
    A column named ``source`` gives `Example.source`; without one it is the file's stem. An image's path is
    relative to the file that names it.

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
    examples = []
    with progress(f"reading {place.stem}", len(records)) as advance:
        for row, record in enumerate(records):
            try:
                fields = _fields(record, found, place.folder)
            except InputError as error:
                raise InputError(f"{where(row)}: {error}") from None
            examples.append(Example(fields, row, str(fields.get("source", place.stem))))
            advance(1)
    return Examples(examples, place.name, found)


def load_table(path: str | Path) -> Dataset:
    """The data set with its own columns, as ``datasets`` sees it; row i is the example with ``row == i``."""
    import pyarrow
    from datasets import Dataset

    place = _Place.of(path)
    if place.format == "jsonl":
        records = [record for _, record in _json_lines(place)]
        names = _columns(records)
        try:
            return Dataset.from_dict({name: [r.get(name) for r in records] for name in names})
        except (pyarrow.lib.ArrowException, OverflowError, UnicodeError) as error:
            raise InputError(f"{path}: a column's values do not fit one type ({_line(error)})") from None
    return _load_dataset(place)


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
            if kind in ("jsonl", "parquet"):
                raise InputError(f"{given}: a file has no splits; leave ':{split}' out")
            return cls(given, Path(before).expanduser(), kind, split)
        return cls(given, local, cls._format(given, given))

    @staticmethod
    def _format(given: str, name: str) -> str:
        path = Path(name).expanduser()
        if path.is_dir():
            return "folder"
        for known, suffixes in (("jsonl", JSONL), ("parquet", PARQUET)):
            if name.endswith(suffixes):
                if not path.is_file():
                    raise InputError(f"{given}: no such file")
                return known
        if path.exists():
            raise InputError(
                f"{given}: unknown format; give {', '.join(JSONL + PARQUET)}, a dataset folder or a hub id"
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
        suffix = next((s for s in JSONL + PARQUET if self.path.name.endswith(s)), "")
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
    """The rows as dictionaries and, for a JSONL file, each row's 1-based line."""
    if place.format == "jsonl":
        numbered = list(_json_lines(place))
        return [record for _, record in numbered], [line for line, _ in numbered]
    return _load_dataset(place).with_format("arrow")[:].to_pylist(), None


def _json_lines(place: _Place) -> Iterator[tuple[int, Record]]:
    """(line number, object) of every line that is not blank."""
    line = 0
    open_file = gzip.open if place.path.suffix == ".gz" else open
    with open_file(place.path, "rb") as file:
        try:
            for line, raw in enumerate(file, start=1):
                if raw.strip():
                    yield line, _json_object(raw, f"{place.given}:{line}")
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise InputError(f"{place.given}:{line + 1}: cannot be unpacked ({_line(error)})") from None


def _json_object(raw: bytes, where: str) -> Record:
    try:
        value = json.loads(raw.rstrip().decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise InputError(f"{where}: not UTF-8; save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        reason = f"{error.msg} at column {error.colno}"
        raise InputError(f"{where}: not JSON ({reason}); each line must be one JSON object") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not JSON ({_line(error)}); each line must be one JSON object") from None
    if not isinstance(value, dict):
        raise InputError(
            f"{where}: not a JSON object but {type(value).__name__}; each line must be one JSON object"
        )
    return value


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


def _fields(record: Record, found: Mapping[str, str], folder: Path) -> dict[str, Any]:
    """A row's fields: the canonical ones checked, the others as they are."""
    used = {*found.values(), *CONTENT}
    fields = {name: value for name, value in record.items() if name not in used}
    for field, own in found.items():
        value = record.get(own)
        if value is None and field in EXTRAS:
            continue
        if value is None:
            raise InputError(f"no {own!r}; every row needs {field}")
        check = _text_or_messages if field == "prompt" and "chosen" in found else _CHECKS[field]
        fields[field] = check(value, own, folder)
    return fields


def _text(value: Any, own: str, folder: Path) -> str:
    if not isinstance(value, str):
        raise InputError(f"{own!r} must be text, not {type(value).__name__}")
    if not value.strip():
        raise InputError(f"{own!r} is empty")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InputError(f"{own!r} holds half of a surrogate pair, which is not Unicode text") from None
    return value


def _messages(value: Any, own: str, folder: Path) -> list[dict[str, str]]:
    if not isinstance(value, list):
        raise InputError(f"{own!r} must be a list of messages, not {type(value).__name__}")
    if not value:
        raise InputError(f"{own!r} is empty")
    for i, message in enumerate(value):
        if not isinstance(message, dict) or not {"role", "content"} <= set(message):
            raise InputError(f"{own!r}[{i}] must have a role and a content")
    return [
        {key: _text(m[key], f"{own}[{i}].{key}", folder) for key in ("role", "content")}
        for i, m in enumerate(value)
    ]


def _text_or_messages(value: Any, own: str, folder: Path) -> str | list[dict[str, str]]:
    return _messages(value, own, folder) if isinstance(value, list) else _text(value, own, folder)


def _image(value: Any, own: str, folder: Path) -> str | bytes:
    if isinstance(value, dict):  # how ``datasets`` stores an Image feature
        value = value.get("bytes") or value.get("path")
    if not isinstance(value, (str, bytes)):
        raise InputError(f"{own!r} must be a path or encoded bytes, not {type(value).__name__}")
    if not value:
        raise InputError(f"{own!r} is empty")
    image = value if isinstance(value, bytes) else str(folder / value)
    verify_image(image)
    return image


def _label(value: Any, own: str, folder: Path) -> str | int | float:
    if not isinstance(value, (str, int, float)):
        raise InputError(f"{own!r} must be a number or text, not {type(value).__name__}")
    return value


def _source(value: Any, own: str, folder: Path) -> str:
    return str(value)


_CHECKS = {
    "prompt": _text,
    "response": _text,
    "text": _text,
    "caption": _text,
    "messages": _messages,
    "chosen": _text_or_messages,
    "rejected": _text_or_messages,
    "image": _image,
    "label": _label,
    "source": _source,
}


def _line(error: BaseException) -> str:
    """An exception's text on one line."""
    return " ".join(str(error).split()) or type(error).__name__
