"""What every embedded corpus is: four splits, and how they are written to disk."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from backcast.data.examples import Examples
from backcast.files import write_atomic


@dataclass(frozen=True)
class Corpus:
    """A data set made for the whole loop.

    Attributes:
        warmup: clean examples for the first checkpoint.
        pool: what a subset is selected from.
        target: clean examples of what is wanted; disjoint from the pool.
        test: clean examples to measure on; disjoint from the others.
    """

    warmup: Examples
    pool: Examples
    target: Examples
    test: Examples

    def write(self, folder: str | Path) -> dict[str, Path]:
        """Write each split to ``folder/SPLIT.jsonl`` and its images beside; returns split → file.

        `read_examples` reads the files back with the same ids. The bytes depend on the corpus alone, and a
        split's file appears only after every image that it names.
        """
        folder = Path(folder)
        splits = {name: getattr(self, name) for name in ("warmup", "pool", "target", "test")}
        return {name: _write_split(folder, name, examples) for name, examples in splits.items()}


def _write_split(folder: Path, name: str, examples: Examples) -> Path:
    lines = []
    for row, example in enumerate(examples):
        fields = {**example.fields, "source": example.source}
        if "image" in fields:
            image = Path("images") / f"{name}-{row:04d}.png"
            (folder / image).parent.mkdir(parents=True, exist_ok=True)
            (folder / image).write_bytes(fields["image"])
            fields["image"] = image.as_posix()
        lines.append(json.dumps(fields, sort_keys=True, ensure_ascii=False) + "\n")
    write_atomic(folder / f"{name}.jsonl", "".join(lines))
    return folder / f"{name}.jsonl"
