"""A subset as other programs read it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from backcast.data import Examples, split_names
from backcast.errors import InputError
from backcast.manifests.manifest import Manifest, meta_path
from backcast.manifests.materialise import Chosen, jsonl, parquet
from backcast.manifests.trainers import axolotl, llamafactory, rows_of, trl

log = logging.getLogger("backcast")

Writer = Callable[[Chosen, Path], list[Path]]

#: What writes each format.
FORMATS: dict[str, Writer] = {
    "jsonl": jsonl,
    "parquet": parquet,
    "llamafactory": llamafactory,
    "axolotl": axolotl,
    "trl": trl,
}

#: What the name of a file ends in; the other formats are folders.
SUFFIXES = {"jsonl": (".jsonl",), "parquet": (".parquet",), "axolotl": (".yaml", ".yml"), "trl": (".py",)}


def export(
    manifest: Manifest | str | Path,
    out: str | Path,
    format: str = "jsonl",
    data: str | Path | Examples | None = None,
) -> list[Path]:
    """Write the chosen examples, in rank order, for another program to read.

    The data are checked first (see `check`) and read an example at a time. Every file appears whole or not at all. A
    column ``weight`` is there where some weight is not 1.

    Args:
        manifest: a manifest or its path.
        out: a ``*.jsonl`` or ``*.parquet`` file; for ``llamafactory`` a folder, its ``dataset_dir``; for ``axolotl`` a
            ``*.yaml`` and for ``trl`` a ``*.py`` file, their rows going to ``*.data.jsonl`` beside it.
        format: one of `FORMATS`.
        data: where the data set is now; by default where the manifest says.

    Returns:
        The files written, that which names the others first.

    Raises:
        InputError: the manifest or the data cannot be read, do not fit, or have no form in the format; ``out`` is
            no name for it, or the manifest's own, or the data's.
    """
    if format not in FORMATS:
        raise InputError(f"format {format!r}: the formats are {', '.join(FORMATS)}")
    out = Path(out)
    if format in SUFFIXES and out.suffix not in SUFFIXES[format]:
        raise InputError(f"{out}: the name of a file for {format} ends in {' or '.join(SUFFIXES[format])}")
    if not isinstance(manifest, Manifest):
        manifest = Manifest.load(manifest)
    for_trainer = format not in ("jsonl", "parquet")
    _refuse_inputs([out, *([rows_of(out, manifest)] if for_trainer else [])], manifest, data)
    chosen = Chosen.of(manifest, data)
    if chosen.weighted and for_trainer:
        log.warning("%s: its weights are written, but %s does not read them", manifest.path, format)
    return FORMATS[format](chosen, out)


def _refuse_inputs(outputs: Sequence[Path], manifest: Manifest, data: str | Path | Examples | None) -> None:
    place = (data.dataset if isinstance(data, Examples) else str(data)) if data else manifest.dataset
    inputs = [manifest.path, meta_path(manifest.path), *map(Path, split_names(place))]
    for path in outputs:
        if path.resolve() in [read.resolve() for read in inputs]:
            raise InputError(f"{path}: is what is to be exported; choose another name")
