"""A data set with its own columns, as ``datasets`` sees it."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from backcast.data.arrow import is_json, one_line, open_dataset
from backcast.data.places import Name, Place, places
from backcast.data.records import open_records
from backcast.errors import InputError
from backcast.progress import progress

if TYPE_CHECKING:
    from datasets import Dataset


def load_table(path: Name) -> Dataset:
    """The data set with its own columns, as ``datasets`` sees it; row i is the example with ``row == i``.

    Several files are concatenated; a column that a file lacks is None in its rows. A column whose values are of
    several types, such as contents with and without images, is of type ``datasets.Json``. JSON files are held in
    memory, in Arrow's form.

    Args:
        path: as for `read_examples`.

    Raises:
        InputError: a file is missing or unreadable (with the line), or a column's values fit no one type.
    """
    import pyarrow
    from datasets import concatenate_datasets

    found = places(path)
    mixed: set[str] = set()
    try:
        while True:
            tables = [table for place in found for table in _tables(place, mixed)]
            common = _common_features(tables)
            clashing = {name for name, feature in common.items() if feature is None}
            if not clashing:
                return concatenate_datasets([_cast(table, common) for table in tables])
            mixed |= clashing
    except (pyarrow.lib.ArrowException, OverflowError, UnicodeError, TypeError) as error:
        raise InputError(
            f"{','.join(place.given for place in found)}: a column's values do not fit one type ({one_line(error)})"
        ) from None


def _tables(place: Place, mixed: Collection[str]) -> Iterator[Dataset]:
    """The place's rows, those of a JSON file in blocks; columns named in ``mixed`` are of type Json."""
    from datasets import Dataset

    if place.format != "json":
        table = open_dataset(place)
        for name in set(mixed) & set(table.column_names):
            table = _with_json(table, name)
        yield table
        return
    with progress(f"loading {place.stem}", place.path.stat().st_size) as advance:
        records = open_records(place, advance)
    if not len(records):
        yield Dataset.from_dict({})
    for block in records.blocks():
        yield _table({name: [record.get(name) for record in block] for name in records.columns}, mixed)


def _table(columns: Mapping[str, list[Any]], mixed: Collection[str]) -> Dataset:
    import pyarrow
    from datasets import Dataset, concatenate_datasets

    if not any(name in mixed for name in columns):
        try:
            return Dataset.from_dict(dict(columns))
        except pyarrow.lib.ArrowException:
            pass
    return concatenate_datasets([_column(name, columns[name], name in mixed) for name in columns], axis=1)


def _column(name: str, values: Sequence[Any], mixed: bool) -> Dataset:
    """A table of one column, of type Json where its values have no type in common, here or elsewhere."""
    import pyarrow
    from datasets import Dataset, Features, Json

    if not mixed:
        try:
            return Dataset.from_dict({name: values})
        except pyarrow.lib.ArrowException:
            pass
    # Encoded here, as datasets would take a text that is JSON itself, "4", for the number.
    encoded = [None if value is None else json.dumps(value) for value in values]
    return Dataset.from_dict({name: encoded}, features=Features({name: Json()}))


def _with_json(table: Dataset, name: str) -> Dataset:
    """The table with one column of type Json."""
    from datasets import concatenate_datasets

    if is_json(table.features[name]):
        return table
    column = _column(name, table[name][:], True)
    return concatenate_datasets([table.remove_columns(name), column], axis=1).select_columns(
        table.column_names
    )


def _common_features(tables: Sequence[Dataset]) -> dict[str, Any]:
    """Each column's type in all the tables; None where there is none."""
    of: dict[str, list[Any]] = {}
    for table in tables:
        for name, feature in table.features.items():
            if feature not in (seen := of.setdefault(name, [])):
                seen.append(feature)
    return {name: features[0] if len(features) == 1 else _common(features) for name, features in of.items()}


def _common(features: Sequence[Any]) -> Any:
    import pyarrow
    from datasets import Features

    schemas = [Features({"column": feature}).arrow_schema for feature in features]
    told = [
        f for f, schema in zip(features, schemas, strict=True) if not pyarrow.types.is_null(schema.types[0])
    ]
    if all(feature == told[0] for feature in told):
        return told[0]
    if any(map(is_json, told)):
        return None
    try:
        common = pyarrow.unify_schemas(schemas, promote_options="permissive")
    except pyarrow.lib.ArrowException:
        return None
    # Bytes and texts would become bytes.
    bytewise = [pyarrow.types.is_binary(schema.types[0]) for schema in (*schemas, common)]
    return None if any(bytewise) and not all(bytewise) else Features.from_arrow_schema(common)["column"]


def _cast(table: Dataset, common: Mapping[str, Any]) -> Dataset:
    from datasets import Features

    features = Features({name: common[name] for name in table.column_names})
    return table if features == table.features else table.cast(features)
