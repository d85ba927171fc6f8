"""Nearest rows by FAISS: one interface to its kinds of index."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import faiss
import numpy as np

from backcast.errors import InputError
from backcast.files import read_json, whole_file, write_json
from backcast.progress import progress
from backcast.vectors.features import BLOCK, Features, Readable
from backcast.vectors.kmeans import kmeans

log = logging.getLogger("backcast")

SCHEMA = 1
KINDS = ("flat", "ivf", "ivf_sq8", "ivf_pq", "hnsw")
METRICS = ("cosine", "inner")

#: Rows up to which a scan of all of them is as quick as anything.
EXACT_ROWS = 20_000
#: Bytes up to which rows are kept in float32, and up to which in one byte a number.
WHOLE, QUANTISED = 2**30, 2**34
#: Rows in the training sample for each list, at least, and as a rule; numbers in it at most.
FEWEST, PER_LIST, NUMBERS = 8, 64, 2**27
#: Share of the neighbours whose lists are searched, of how many, for how many queries and among how many rows of a
#: sample this is measured.
REACHED, NEIGHBOURS, QUERIES, AMONG = 0.99, 10, 256, 2**15
#: Codes of a pair of numbers in ``ivf_pq``; rounds of the k-means that finds them, and rows for each.
CODES, CODE_ROUNDS, CODE_ROWS = 256, 10, 64
#: Links of a row, and candidates kept while building and searching, of ``hnsw``.
LINKS, BUILD_EFFORT, SEARCH_EFFORT = 32, 128, 128


class Choice(NamedTuple):
    kind: str
    reason: str


def choose(n: int, d: int) -> Choice:
    """The kind of index for n rows of d numbers, and why."""
    if n <= EXACT_ROWS:
        return Choice("flat", f"{n:,} rows are scanned in no time, and exactly")
    if 4 * n * d <= WHOLE:
        return Choice("ivf", f"{n:,} rows are too many to scan, and in float32 fit in 1 GiB")
    if n * d <= QUANTISED:
        return Choice(
            "ivf_sq8", f"{n:,} rows of {d:,} numbers need more than 1 GiB in float32, a quarter in bytes"
        )
    return Choice(
        "ivf_pq", f"{n:,} rows of {d:,} numbers need more than 16 GiB even in bytes, half in codes of 4 bits"
    )


class Index:
    """The rows with the largest inner products or cosines with a query.

    - ``flat``: all rows, exact. 4d bytes a row.
    - ``ivf``: rows in 2√n lists by k-means; the lists nearest to the query are searched, as many as hold 99 % of the
      ten nearest (see `tune`). 4d bytes.
    - ``ivf_sq8``: the same, with each number rounded to a byte. d bytes.
    - ``ivf_pq``: the same, with each pair of numbers rounded to a byte; loses some of the ten nearest. d/2 bytes.
    - ``hnsw``: a graph that is walked. Quick to search and slow to build, as one thread must, so that it is the same
      each time: never chosen, but there to be asked for where many queries follow. 4d + 256 bytes.

    Cosines are inner products of unit rows, of the indexed ones and of the queries, made here and nowhere else.

    Args:
        n: about how many rows there will be.
        d: numbers in a row.
        metric: "cosine" or "inner", the inner product.
        kind: one of `KINDS`; by default what `choose` says.
        seed: of the k-means.

    Raises:
        InputError: no such kind or metric.

    Source: Douze et al. 2024, The Faiss library; Malkov & Yashunin 2018 (HNSW); Jégou et al. 2011 (IVF, PQ).
    """

    def __init__(
        self, n: int, d: int, metric: str = "cosine", kind: str | None = None, seed: int = 0
    ) -> None:
        for name, value, known in (("kind", kind or "flat", KINDS), ("metric", metric, METRICS)):
            if value not in known:
                raise InputError(
                    f"an index of {name} {value!r} does not exist; choose one of {', '.join(known)}"
                )
        self.kind, reason = (kind, "as asked") if kind else choose(n, d)
        log.info(f"index: {self.kind}; {reason}")
        self.metric, self.d, self.seed = metric, d, seed
        self.lists = max(1, int(2 * np.sqrt(n)))
        self._mapped = False
        self._index: Any = None
        if self.kind == "flat":
            self._index = faiss.IndexFlatIP(d)
        elif self.kind == "hnsw":
            self._index = faiss.IndexHNSWFlat(d, LINKS, faiss.METRIC_INNER_PRODUCT)
            self._index.hnsw.efConstruction = BUILD_EFFORT
            self._index.hnsw.efSearch = SEARCH_EFFORT

    @classmethod
    def of(
        cls,
        rows: Features | Readable | np.ndarray,
        metric: str = "cosine",
        kind: str | None = None,
        seed: int = 0,
    ) -> Index:
        """An index of the rows, read block by block."""
        n, d = rows.shape
        index = cls(n, d, metric, kind, seed)
        index.train(_some(rows, Features.of(rows).sample(index.wanted, seed)))
        with progress(f"index: {index.kind}", n) as done:
            for start in range(0, n, BLOCK):
                block = _some(rows, slice(start, min(start + BLOCK, n)))
                index.add(block)
                done(len(block))
        index.tune(rows)
        return index

    def __len__(self) -> int:
        return self._index.ntotal if self._index else 0

    @property
    def wanted(self) -> int:
        """Rows that `train` should be given."""
        return min(PER_LIST * self.lists, NUMBERS // self.d) if self.kind.startswith("ivf") else 0

    @property
    def trained(self) -> bool:
        """Whether rows can be added."""
        return self._index is not None

    def train(self, rows: np.ndarray) -> None:
        """Learn lists and codes from a sample, `wanted` rows or so of those to come; other kinds need none."""
        if self.trained:
            return
        sample = self._checked(rows, "rows")
        if self.kind == "ivf_pq" and len(sample) < CODES:
            raise InputError(
                f"ivf_pq learns its codes from {CODES} rows or more, not {len(sample)}; choose another kind"
            )
        self.lists = max(1, min(self.lists, len(sample) // FEWEST))
        centroids = Features.of(kmeans(Features.of(sample), self.lists, self.seed).centroids)[:]
        quantizer = faiss.IndexFlatIP(self.d)
        quantizer.add(centroids)
        inner = faiss.METRIC_INNER_PRODUCT
        index: Any
        if self.kind == "ivf":
            index = faiss.IndexIVFFlat(quantizer, self.d, self.lists, inner)
        elif self.kind == "ivf_sq8":
            index = faiss.IndexIVFScalarQuantizer(
                quantizer, self.d, self.lists, faiss.ScalarQuantizer.QT_8bit, inner
            )
        else:
            codes = next(m for m in range(max(1, self.d // 2), 0, -1) if self.d % m == 0)
            index = faiss.IndexIVFPQ(quantizer, self.d, self.lists, codes, 8, inner)
            index.pq.cp.niter, index.pq.cp.max_points_per_centroid = CODE_ROUNDS, CODE_ROWS
        index.train(sample)
        self._index = index

    def add(self, rows: np.ndarray) -> None:
        """Add (r, d) rows; they take the positions after those that are there.

        Raises:
            InputError: rows of another length or with numbers that are not finite, or an index that was opened.
        """
        if self._mapped:
            raise InputError("an index that was opened from a file takes no more rows; build it again")
        threads = faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(1 if self.kind == "hnsw" else threads)  # two would race for a graph's links
        try:
            self._index.add(self._checked(rows, "rows"))
        finally:
            faiss.omp_set_num_threads(threads)

    def tune(self, rows: Features | Readable | np.ndarray) -> None:
        """Search as many lists as hold 99 % of the ten nearest, of 256 rows among at most 32,768 of a sample.

        Among all rows the ten nearest are nearer than among a sample's, and their lists too: a safe estimate.
        """
        if not self.kind.startswith("ivf"):
            return
        sample = self._checked(_some(rows, Features.of(rows).sample(AMONG, self.seed)), "rows")
        asked = np.arange(0, len(sample), max(1, len(sample) // QUERIES))
        flat = faiss.IndexFlatIP(self.d)
        flat.add(sample)
        near = flat.search(sample[asked], min(NEIGHBOURS + 1, len(sample)))[1]
        homes = self._index.quantizer.search(sample, 1)[1][:, 0]
        nearest_lists = self._index.quantizer.search(sample[asked], self.lists)[1]
        ranks = np.take_along_axis(np.argsort(nearest_lists, axis=1), homes[near], axis=1)
        needed = (
            np.quantile(ranks[near != asked[:, None]], REACHED, method="higher") if len(sample) > 1 else 0
        )
        self._index.nprobe = int(needed) + 1
        log.info(f"index: {self._index.nprobe} of {self.lists} lists are searched")

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """(q, k) float32 products or cosines, falling, and the (q, k) int64 positions that have them.

        With fewer than k rows there are as many columns; where the lists that are searched hold fewer, position −1.

        Raises:
            InputError: queries of another length, or with numbers that are not finite; k below 1.
        """
        if k < 1:
            raise InputError(f"{k} neighbours cannot be looked for; ask for at least 1")
        return self._index.search(self._checked(queries, "queries"), min(k, len(self)))

    def save(self, path: str | Path, about: Mapping[str, Any] | None = None) -> None:
        """Write the index to ``path`` and, beside it with the suffix ``.json``, what it is and what ``about`` says."""
        path = Path(path)
        path.with_suffix(".json").unlink(missing_ok=True)  # never beside another file than it describes
        with whole_file(path) as file:
            faiss.write_index(self._index, faiss.PyCallbackIOWriter(file.write))  # type: ignore[attr-defined]
        own = {"schema": SCHEMA, "kind": self.kind, "metric": self.metric, "rows": len(self), "d": self.d}
        write_json(path.with_suffix(".json"), {**(about or {}), **own})

    @staticmethod
    def described(path: str | Path) -> dict[str, Any]:
        """What stands beside a saved index; raises `InputError` where there is none, or of another schema."""
        found = read_json(Path(path).with_suffix(".json"))
        if not isinstance(found, dict) or found.get("schema") != SCHEMA or found.get("kind") not in KINDS:
            raise InputError(f"{path}: not an index that this backcast reads; delete it, and build it again")
        return found

    @classmethod
    def open(cls, path: str | Path) -> Index:
        """A saved index, mapped into memory: its rows are read when a search comes to them.

        Raises:
            InputError: no index, or a damaged one.
        """
        about = cls.described(path)
        index = cls.__new__(cls)
        index.kind, index.metric, index.d = about["kind"], about["metric"], about["d"]
        flag = faiss.IO_FLAG_MMAP if index.kind.startswith("ivf") else faiss.IO_FLAG_MMAP_IFC
        try:
            index._index = faiss.read_index(str(path), flag | faiss.IO_FLAG_READ_ONLY)
        except RuntimeError:
            raise InputError(f"{path}: a damaged index, or none; delete it, and build it again") from None
        if (index._index.ntotal, index._index.d) != (about["rows"], about["d"]):
            raise InputError(f"{path}: not the index that the file beside it describes; delete both")
        index._mapped = True
        return index

    def _checked(self, rows: np.ndarray, what: str) -> np.ndarray:
        """The rows in float32, of unit length where cosines are asked for."""
        if rows.ndim != 2 or rows.shape[1] != self.d:
            raise InputError(
                f"{what} of shape {rows.shape} do not fit an index of rows of {self.d} numbers; give a row for each"
            )
        if self.metric == "cosine":
            return Features.of(rows)[:]
        if not np.isfinite(rows).all():
            raise InputError(
                f"{what}: a NaN or an infinity is among them; leave that row out, or mend what made it"
            )
        return np.ascontiguousarray(rows, dtype=np.float32)


def _some(rows: Features | Readable | np.ndarray, positions: slice | np.ndarray) -> np.ndarray:
    return rows.read(positions) if hasattr(rows, "read") else rows[positions]
