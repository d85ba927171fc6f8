"""Which columns of a file hold which canonical fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from backcast.data.examples import CONTENT
from backcast.data.records import Record, Records
from backcast.errors import InputError

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

#: Fields that any kind may have besides.
EXTRAS = ("label", "source")

Option = Mapping[str, Sequence[str]]  # a kind's fields, each with the columns that may hold it


def resolve(records: Records, given: Mapping[str, str]) -> dict[str, str]:
    """Which own column holds each canonical field, canonical → own.

    Raises:
        InputError: columns are missing or ambiguous, or the rows are of several kinds.
    """
    names, path = records.columns, records.place.given
    _check_given(given, names, path)
    asked = {field: own for field, own in given.items() if field not in EXTRAS}
    fixed = {field: own for field, own in given.items() if field != "source"}
    extras = {field: given.get(field, field) for field in EXTRAS if given.get(field, field) in names}
    if set(asked) in map(set, KINDS):
        return asked | extras
    kinds = [kind for kind in KINDS if set(asked) <= set(kind)]
    if not kinds:
        raise InputError(f"{path}: {'+'.join(asked)} is no kind of example; the kinds are {_listed(KINDS)}")
    options = [{f: [fixed[f]] if f in fixed else _candidates(f, names) for f in kind} for kind in kinds]
    options = [option for option in options if all(option.values())]
    options = [option for option in options if "label" not in option] or options
    # image + text is a captioned image, not a text with an image to spare
    options = [o for o in options if not any(_used(o) < _used(other) for other in options)]
    options = [o for i, o in enumerate(options) if _used(o) not in map(_used, options[:i])]
    if not options:
        raise InputError(
            f"{path}: the columns {', '.join(names)} hold no {_listed(kinds)}; "
            "say which to use, e.g. prompt=QUESTION response=ANSWER"
        )
    if len(options) > 1:
        _refuse_mixed(records, options)
    if len(options) > 1 or any(len(owns) > 1 for owns in options[0].values()):
        could = " or ".join(
            " ".join(f"{field}={'|'.join(owns)}" for field, owns in o.items()) for o in options
        )
        raise InputError(f"{path}: the columns {', '.join(names)} are ambiguous; say which to use: {could}")
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


def _refuse_mixed(records: Records, options: Sequence[Option]) -> None:
    """Tell rows of several kinds in one file from rows that fit several kinds."""

    def kinds(record: Record) -> str:
        fitting = [
            "+".join(o) for o in options if all(any(has(record, own) for own in owns) for owns in o.values())
        ]
        return " and ".join(fitting) or "no kind of example"

    def has(record: Record, own: str) -> bool:
        return record.get(own) is not None

    first = None
    for row, record in enumerate(records):
        first = first or kinds(record)
        if kinds(record) != first:
            raise InputError(
                f"{records.where(row)}: mixed kinds: this row is {kinds(record)}, the first is {first}; "
                "keep one kind in a file"
            )
