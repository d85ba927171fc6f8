"""What a data set's name means: which files, folders and hub ids, in which order."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path

from backcast.errors import InputError

#: A data set's name, or several.
Name = str | Path | Sequence[str | Path]

JSON = (".jsonl", ".ndjson", ".json", ".jsonl.gz")
PARQUET = (".parquet",)

#: ``owner/name/config@revision``, all but the name being optional.
HUB = re.compile(r"(?P<path>\w[\w.-]*(?:/\w[\w.-]*)?)(?:/(?P<config>\w[\w.-]*))?(?:@(?P<revision>[^\s:@]+))?")


@dataclass(frozen=True)
class Place:
    """One parsed name: what to read and how to call it.

    Attributes:
        given: the name as it was given, for errors.
        path: the file or folder; of a hub id ``owner/name``.
        format: ``json``, ``parquet``, ``folder`` or ``hub``.
        split: what stands after the colon.
        config, revision: of a hub id.
    """

    given: str
    path: Path
    format: str
    split: str | None = None
    config: str | None = None
    revision: str | None = None

    @classmethod
    def of(cls, given: str) -> Place:
        """Of ``given``, which names one place; raises `InputError` where there is none. What exists on disk wins."""
        name, split = given, None
        before, colon, after = given.rpartition(":")
        if not _exists(given) and colon and after:
            name, split = before, after
        path = Path(name).expanduser()
        kind = _local_format(given, name)
        if kind in ("json", "parquet") and split is not None:
            raise InputError(f"{given}: a file has no splits; leave ':{split}' out")
        if kind is not None:
            return cls(given, path, kind, split)
        hub = HUB.fullmatch(name)
        if not hub:
            raise InputError(f"{given}: no such file or folder")
        return cls(given, Path(hub["path"]), "hub", split, hub["config"], hub["revision"])

    @property
    def name(self) -> str:
        """What a manifest records: a hub id as given, a path made absolute."""
        if self.format == "hub":
            return self.given
        return str(self.path.resolve()) + (f":{self.split}" if self.split else "")

    @property
    def stem(self) -> str:
        """The name of its examples' source, where they have none of their own."""
        suffix = next((s for s in JSON + PARQUET if self.path.name.endswith(s)), "")
        return self.path.name.removesuffix(suffix) + (f"/{self.config}" if self.config else "")

    @property
    def folder(self) -> Path:
        """Where relative image paths start."""
        return self.path.resolve() if self.format == "folder" else self.path.resolve().parent


def _local_format(given: str, name: str) -> str | None:
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
    return None


def places(name: Name) -> list[Place]:
    """The places that a data set is read from, in order.

    Args:
        name: names separated by commas, each a path, a pattern such as ``data/*.jsonl`` (its matches sorted) or a hub
            id; or a sequence of such names. A file that exists under the whole name is that file.

    Raises:
        InputError: a name means nothing, a pattern matches nothing, or, of several places, one is named twice or has
            a comma in its path.
    """
    given = [name] if isinstance(name, (str, Path)) else name
    found = [Place.of(each) for one in given for each in _expanded(str(one))]
    if not found:
        raise InputError("no data set: the sequence of names is empty")
    names = [place.name for place in found]
    if len(names) > 1:
        for place in found:
            if "," in place.name:
                raise InputError(f"{place.given}: has a comma in its path, which separates names; rename it")
            if names.count(place.name) > 1:
                raise InputError(f"{place.given}: is named twice; name it once")
    return found


def _expanded(name: str) -> list[str]:
    if _exists(name):
        return [name]
    if "," in name:
        parts = [part.strip() for part in name.split(",")]
        if not all(parts):
            raise InputError(f"{name}: nothing stands between two commas or after the last; leave it out")
        return [each for part in parts for each in _expanded(part)]
    if not set("*?[") & set(name):
        return [name]
    matches = sorted(glob(os.path.expanduser(name), recursive=True))
    if not matches:
        raise InputError(f"{name}: no file matches this pattern")
    return matches


def _exists(name: str) -> bool:
    # Not Path.exists, which raises where many names together are too long for one.
    return os.path.exists(os.path.expanduser(name))


def joined_name(found: Sequence[Place]) -> str:
    """One name for all the places, from which `places` finds them again."""
    return ",".join(place.name for place in found)


def split_names(dataset: str) -> list[str]:
    """The names in ``Examples.dataset``: absolute paths, perhaps with a ``:split``, and hub ids."""
    return dataset.split(",")


def map_names(dataset: str, change: Callable[[str], str]) -> str:
    """``Examples.dataset`` with each of its names changed."""
    return ",".join(map(change, split_names(dataset)))
