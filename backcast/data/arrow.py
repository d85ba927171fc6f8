"""Parquet files, saved folders and hub data sets, as ``datasets`` opens them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from backcast.data.places import Place
from backcast.errors import InputError
from backcast.files import sha256, whole_file
from backcast.progress import progress

if TYPE_CHECKING:
    from datasets import Dataset

#: A Parquet file of at most as many bytes, unpacked, is held in memory; a larger one is unpacked on disk and mapped.
IN_MEMORY = 256 << 20

#: Bytes of a column that are read from a Parquet file at a time.
BUFFER = 1 << 20

#: About how many bytes are held while a file is read in order, and the most rows.
BLOCK_BYTES = 4 << 20
BLOCK_ROWS = 1000


def open_dataset(place: Place) -> Dataset:
    """A Parquet file, a saved folder or a hub data set."""
    if place.format == "parquet":
        return _open_parquet(place)
    from datasets import DatasetDict

    loaded = _load(place)
    if not isinstance(loaded, DatasetDict):
        if place.split is None:
            return loaded
        raise InputError(f"{place.given}: the folder has no splits; leave ':{place.split}' out")
    split = place.split or (next(iter(loaded)) if len(loaded) == 1 else "train")
    if split not in loaded:
        raise InputError(f"{place.given}: no split {split!r}; it has {', '.join(loaded)}")
    return loaded[split]


def _open_parquet(place: Place) -> Dataset:
    import pyarrow
    import pyarrow.parquet
    from datasets import Dataset
    from datasets.table import InMemoryTable

    try:
        metadata = pyarrow.parquet.read_metadata(place.path)
        size = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
        if size <= IN_MEMORY:
            return Dataset(InMemoryTable(pyarrow.parquet.read_table(place.path, partitioning=None)))
        return Dataset.from_file(str(_unpacked(place, block_rows(size, metadata.num_rows))))
    except (pyarrow.lib.ArrowException, OSError) as error:
        raise InputError(f"{place.given}: not a Parquet file ({one_line(error)})") from None


def _unpacked(place: Place, rows: int) -> Path:
    """A Parquet file as a file of Arrow's, which can be mapped: in the cache of ``datasets``, made once for all runs.

    Not ``Dataset.from_parquet``, which holds whole row groups, often all of the file, while it unpacks.

    Args:
        place: the Parquet file's.
        rows: unpacked at a time.
    """
    import pyarrow
    import pyarrow.parquet
    from datasets import config

    status = place.path.stat()
    version = sha256(f"{place.path.resolve()} {status.st_size} {status.st_mtime_ns}")
    target = Path(config.HF_DATASETS_CACHE) / "backcast" / f"{version}.arrow"
    if target.exists():
        return target
    packed = pyarrow.parquet.ParquetFile(place.path, pre_buffer=False, buffer_size=BUFFER)
    with (
        whole_file(target) as file,
        pyarrow.ipc.new_stream(file, packed.schema_arrow) as writer,
        progress(f"unpacking {place.stem}", packed.metadata.num_rows) as advance,
    ):
        for batch in packed.iter_batches(rows, use_threads=False):
            writer.write_batch(batch)
            advance(batch.num_rows)
    return target


def _load(place: Place) -> Any:
    from datasets import load_dataset, load_from_disk

    try:
        if place.format == "folder":
            return load_from_disk(str(place.path))
        return load_dataset(str(place.path), place.config, revision=place.revision)
    except Exception as error:  # network, permissions, formats: ``datasets`` raises many kinds
        known = (
            "not a dataset folder"
            if place.format == "folder"
            else "no such file, and no such dataset on the hub"
        )
        raise InputError(f"{place.given}: {known} ({one_line(error)})") from None


def block_rows(size: int, rows: int) -> int:
    """How many rows of a table make a block, where all ``rows`` take ``size`` bytes."""
    return min(max(1, BLOCK_BYTES * rows // max(1, size)), BLOCK_ROWS)


def is_json(feature: Any) -> bool:
    """Whether a column is of type ``datasets.Json`` or holds such."""
    return "Json(" in repr(feature)


def one_line(error: BaseException) -> str:
    """An exception's text on one line."""
    return " ".join(str(error).split()) or type(error).__name__
