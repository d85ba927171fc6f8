"""The index against the definition, on real gradient sketches, in memory and from a file."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys

import numpy as np
import pytest
from vectors_cases import clustered, sketches

from backcast.errors import InputError
from backcast.vectors import Features, Index, choose
from backcast.vectors.index import KINDS


def nearest(x: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
    return np.argsort(-(queries.astype(np.float64) @ x.T.astype(np.float64)), axis=1)[:, :k]


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)


def recall(found: np.ndarray, exact: np.ndarray) -> float:
    return float(np.mean([len(set(a) & set(e)) / len(e) for a, e in zip(found, exact, strict=True)]))


@pytest.fixture(scope="module")
def real():
    """Real sketches to index, others to ask for, and the ten nearest of these."""
    x = sketches()
    return x[:-200], x[-200:], nearest(unit(x[:-200]), unit(x[-200:]), 10)


@pytest.mark.parametrize(
    ("kind", "least"), [("flat", 1), ("ivf", 0.95), ("ivf_sq8", 0.95), ("hnsw", 0.95), ("ivf_pq", 0.85)]
)
def test_recall_at_ten_on_real_sketches(kind, least, real):
    x, queries, exact = real
    assert recall(Index.of(x, kind=kind).search(queries, 10)[1], exact) >= least


@pytest.mark.parametrize("metric", ["cosine", "inner"])
@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw"])
def test_what_is_found_are_the_metrics_values(kind, metric):
    x, queries = clustered(600, 16, 8), clustered(20, 16, 8, seed=1)
    values, rows = Index.of(x, metric, kind).search(queries, 5)
    a, b = (unit(queries), unit(x)) if metric == "cosine" else (queries, x)
    np.testing.assert_allclose(values, np.einsum("qd,qkd->qk", a, b[rows]), rtol=1e-4, atol=1e-5)
    assert (np.diff(values) <= 0).all()
    if kind == "flat":
        assert (rows == nearest(b, a, 5)).all()


def test_size_and_dimension_choose_and_the_reason_is_logged(caplog):
    kinds = [choose(n, 512).kind for n in (20_000, 20_001, 500_000, 1_000_000, 40_000_000)]
    assert kinds == ["flat", "ivf", "ivf", "ivf_sq8", "ivf_pq"]
    assert choose(1_000_000, 64).kind == "ivf"
    with caplog.at_level(logging.INFO, "backcast"):
        Index(1_000_000, 512)
    assert "index: ivf_sq8; 1,000,000 rows of 512 numbers need more than 1 GiB" in caplog.text


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_index_is_the_same_and_takes_no_rows(kind, real, tmp_path):
    x, queries, _ = real
    built = Index.of(x[:600], kind=kind)
    built.save(tmp_path / "x.faiss", {"of": "these"})
    opened = Index.open(tmp_path / "x.faiss")
    assert (opened.kind, opened.metric, len(opened)) == (kind, "cosine", 600)
    assert Index.described(tmp_path / "x.faiss")["of"] == "these"
    for ours, theirs in zip(built.search(queries, 10), opened.search(queries, 10), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(InputError, match="takes no more rows"):
        opened.add(x[:1])


def test_a_saved_index_is_mapped_and_not_read(tmp_path):
    x = np.random.default_rng(0).normal(size=(20_000, 512)).astype(np.float32)
    Index.of(x, kind="flat").save(tmp_path / "x.faiss")
    program = f"""
from backcast.vectors import Index
def resident():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS"))
before = resident()
index = Index.open({str(tmp_path / "x.faiss")!r})
print(len(index), resident() - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    rows, kib = map(int, done.stdout.split())
    assert rows == 20_000
    assert kib < 20_000 * 512 * 4 / 1024 / 4


def test_rows_added_in_parts_are_those_added_at_once():
    x = clustered(1000, 12, 9)
    parts = Index(1000, 12, kind="ivf")
    assert not parts.trained
    parts.train(x)
    for start in range(0, 1000, 300):
        parts.add(x[start : start + 300])
    parts.tune(x)
    for ours, theirs in zip(parts.search(x[:50], 8), Index.of(x, kind="ivf").search(x[:50], 8), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_features_and_arrays_are_the_same_rows():
    x = clustered(400, 12, 9)
    for ours, theirs in zip(Index.of(x).search(x, 8), Index.of(Features.of(x)).search(x, 8), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_no_more_neighbours_than_rows():
    x = clustered(3, 4, 2)
    values, rows = Index.of(x).search(x, 10)
    assert rows.shape == values.shape == (3, 3)


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (
            lambda x: Index.of(x).search(x[:, :3], 1),
            "queries of shape (30, 3) do not fit an index of rows of 4",
        ),
        (lambda x: Index.of(x).search(x[0], 1), "queries of shape (4,)"),
        (lambda x: Index.of(x).search(x, 0), "0 neighbours cannot be looked for"),
        (lambda x: Index.of(x).search(x / 0, 1), "holds a NaN or an infinity"),
        (lambda x: Index.of(x, "inner").search(x / 0, 1), "a NaN or an infinity"),
        (lambda x: Index.of(x, kind="ivf").add(x[:, :2]), "rows of shape (30, 2)"),
        (lambda x: Index.of(x, kind="lsh"), "kind 'lsh' does not exist; choose one of flat, ivf"),
        (lambda x: Index.of(x, "l2"), "metric 'l2' does not exist"),
        (lambda x: Index.of(x, kind="ivf_pq"), "256 rows or more, not 30"),
        (lambda x: Index.open("/nowhere/x.faiss"), "no such file"),
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_bad_input_is_told_in_a_line(act, said):
    with pytest.raises(InputError) as refused:
        act(clustered(30, 4, 2))
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("spoil", [lambda p: p.write_bytes(b"x"), lambda p: p.unlink()])
def test_a_damaged_index_is_told(spoil, tmp_path):
    path = tmp_path / "x.faiss"
    Index.of(clustered(30, 4, 2)).save(path)
    spoil(path)
    with pytest.raises(InputError, match="a damaged index, or none"):
        Index.open(path)


def test_an_index_beside_the_description_of_another_is_refused(tmp_path):
    path = tmp_path / "x.faiss"
    Index.of(clustered(30, 4, 2)).save(path)
    said = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps({**said, "rows": 31}))
    with pytest.raises(InputError, match="not the index that the file beside it describes"):
        Index.open(path)


FOUND = """
import numpy as np
from backcast.vectors import Index
x = np.random.default_rng(0).normal(size=(3000, 40)).astype("float32")
for kind in ("flat", "ivf", "ivf_sq8", "hnsw"):
    print(Index.of(x, kind=kind).search(x[:100], 10)[1].tolist())
"""


def test_threads_change_no_neighbour():
    seen = [
        subprocess.run(
            [sys.executable, "-c", FOUND],
            capture_output=True,
            text=True,
            check=True,
            timeout=300,
            env={**os.environ, "OMP_NUM_THREADS": threads},
        ).stdout
        for threads in ("1", "2")
    ]
    assert seen[0].count("\n") == 4
    assert seen[0] == seen[1]
