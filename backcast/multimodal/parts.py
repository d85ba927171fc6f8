"""The parts of scores by modality: what a split gives, and the file that carries it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.stats import spearmanr

from backcast.data import Rows
from backcast.errors import InputError
from backcast.files import whole_file

#: What a file's metadata is kept under, and its version.
KEY, SCHEMA = b"backcast.parts", 1
#: A split's columns, after the baseline's name.
COLUMNS = ("baseline", "image", "text", "interaction", "gap")


def shares(values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """modality → (r,) |value| / Σ |values|: adding up to 1, but zero where nothing contributes."""
    total = sum(np.abs(own) for own in values.values())
    return {
        m: np.divide(np.abs(own), total, out=np.zeros(len(own)), where=total > 0) for m, own in values.items()
    }


@dataclass(frozen=True)
class Split:
    """Scores of r examples, split between modalities against one baseline; all in the score's own unit and sign.

    Attributes:
        score: (r,) s(x).
        baseline: (r,) s(b), the score of the example without content.
        parts: modality → (r,), with Σ parts = s(x) − s(b) up to ``gap``.
        interaction: (r,) s(both) − s(image alone) − s(text alone) + s(b): half of it is in each Shapley value.
        gap: (r,) |Σ parts − (s(x) − s(b))| / |s(x) − s(b)|, Captum's convergence delta made relative.
        maps: modality → for each example its part by patch (h, w), or by word (w,); None of Shapley values.
    """

    score: np.ndarray
    baseline: np.ndarray
    parts: dict[str, np.ndarray]
    interaction: np.ndarray
    gap: np.ndarray
    maps: dict[str, list[np.ndarray]] | None = None

    def flagged(self, tolerance: float = 0.01) -> np.ndarray:
        """(r,) bool: rows whose parts do not add up, and should not be read."""
        return ~(self.gap <= tolerance)

    def shares(self) -> dict[str, np.ndarray]:
        """modality → (r,) |part| / Σ |parts|: magnitudes without signs, zero where nothing contributes."""
        return shares(self.parts)


@dataclass(frozen=True)
class Parts:
    """The splits of r examples' scores, one for each baseline; the first is what selectors and reports go by.

    Attributes:
        rows: the r examples.
        splits: by the baseline's name.
        made: how: method (integrated_gradients or shapley), score, parameters, origin.
    """

    rows: Rows
    splits: Mapping[str, Split]
    made: Mapping[str, Any] = field(default_factory=dict)

    @property
    def first(self) -> Split:
        """The split against the first baseline."""
        return next(iter(self.splits.values()))

    @property
    def parts(self) -> dict[str, np.ndarray]:
        """image, text and interaction of the first split, (r,) each; not a number where the row is flagged."""
        split = self.first
        columns = {**split.parts, "interaction": split.interaction}
        return {name: np.where(split.flagged(), np.nan, values) for name, values in columns.items()}

    def agreement(self) -> list[dict[str, Any]]:
        """How far the baselines agree, for each two of them and each modality, over rows that neither flags.

        ``rank`` is Spearman's correlation of the parts, ``sign`` the share of rows with parts of one sign.
        """
        return [
            {
                "baselines": [a, b],
                "modality": modality,
                **_agreement(self.splits[a], self.splits[b], modality),
            }
            for a, b in combinations(self.splits, 2)
            for modality in self.first.parts
        ]

    def save(self, path: str | Path) -> None:
        """Write one Parquet file, whole or not at all: row, id, source, score, and the columns of each baseline.

        The first baseline's columns are named baseline, image, text, interaction and gap; the others' begin with the
        baseline's name and a colon. Maps are not kept. Raises `InputError` for a name that does not end in .parquet.
        """
        if Path(path).suffix != ".parquet":
            raise InputError(f"{path}: parts are a Parquet file; give a name that ends in .parquet")
        columns: dict[str, Any] = {
            "row": self.rows.rows,
            "id": list(self.rows.ids),
            "source": list(self.rows.sources),
            "score": self.first.score,
        }
        for prefix, split in zip(_prefixes(self.splits), self.splits.values(), strict=True):
            values = (split.baseline, split.parts["image"], split.parts["text"], split.interaction, split.gap)
            columns |= {prefix + name: value for name, value in zip(COLUMNS, values, strict=True)}
        meta = {
            "schema": SCHEMA,
            "baselines": list(self.splits),
            "dataset": self.rows.dataset,
            "columns": dict(self.rows.columns),
            "made": dict(self.made),
        }
        table = pa.table(columns).replace_schema_metadata({KEY: json.dumps(meta, sort_keys=True)})
        with whole_file(path) as file:
            pq.write_table(table, file)

    @classmethod
    def load(cls, path: str | Path) -> Parts:
        """What `save` wrote. Raises `InputError` for any other file."""
        try:
            table = pq.read_table(path, partitioning=None)
            meta = json.loads((table.schema.metadata or {})[KEY])
        except FileNotFoundError:
            raise InputError(f"{path}: no such file; write one with 'backcast split'") from None
        except (pa.ArrowException, OSError, KeyError, ValueError):
            raise InputError(f"{path}: not a file of parts; write one with 'backcast split'") from None
        if meta["schema"] != SCHEMA:
            raise InputError(
                f"{path}: parts of schema {meta['schema']}, this backcast reads {SCHEMA}; split again"
            )
        column = {name: table[name].to_numpy() for name in table.column_names if name not in ("id", "source")}
        rows = Rows(
            tuple(table["id"].to_pylist()),
            column["row"],
            tuple(table["source"].to_pylist()),
            meta["dataset"],
            meta["columns"],
        )
        splits = {
            name: Split(
                column["score"],
                column[prefix + "baseline"],
                {modality: column[prefix + modality] for modality in ("image", "text")},
                column[prefix + "interaction"],
                column[prefix + "gap"],
            )
            for name, prefix in zip(meta["baselines"], _prefixes(meta["baselines"]), strict=True)
        }
        return cls(rows, splits, meta["made"])


def _prefixes(baselines: Sequence[str] | Mapping[str, Any]) -> Iterator[str]:
    for place, name in enumerate(baselines):
        yield f"{name}:" if place else ""


def _agreement(a: Split, b: Split, modality: str) -> dict[str, Any]:
    kept = ~(a.flagged() | b.flagged())
    x, y = a.parts[modality][kept], b.parts[modality][kept]
    defined = len(x) > 1 and np.ptp(x) > 0 and np.ptp(y) > 0
    return {
        "rank": float(spearmanr(x, y).statistic) if defined else None,
        "sign": float((np.sign(x) == np.sign(y)).mean()) if len(x) else None,
        "rows": int(kept.sum()),
    }
