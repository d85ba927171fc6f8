"""The FAISS index against brute force, near-duplicates against planted copies, and faiss beside torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from attribution_cases import Classify, examples, mlp, store_of, unit

from backcast.attribution import GradientIndex, SketchStore, attribute, collect, near_duplicates
from backcast.attribution.index import FILE, FollowedIndex
from backcast.errors import InputError
from backcast.kernels import SketchSpec
from backcast.vectors import Index
from backcast.vectors.index import Choice


def clustered(n: int, k: int, clusters: int, seed: int = 0) -> np.ndarray:
    """(n, k) rows of unequal length around centres, as the gradients of classes are."""
    rng = np.random.default_rng(seed)
    centres = 2 * rng.normal(size=(clusters, k))
    rows = centres[rng.integers(0, clusters, n)] + rng.normal(size=(n, k))
    return (rows * rng.lognormal(0, 1, (n, 1))).astype(np.float32)


def mean_cosines(queries: SketchStore, store: SketchStore) -> np.ndarray:
    """(q, n) float64, by definition."""
    each = [unit(queries.sketches(c)) @ unit(store.sketches(c)).T for c in range(len(store.checkpoints))]
    return np.mean(each, axis=0)


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """3,000 rows in 60 clusters and 100 queries, at two checkpoints of very different steepness."""
    folder = tmp_path_factory.mktemp("stores")
    sketches = [scale * clustered(3100, 64, 60, seed) for seed, scale in ((0, 1.0), (1, 50.0))]
    return (
        store_of(folder / "train", [s[:3000] for s in sketches], shard_rows=1024),
        store_of(folder / "query", [s[3000:] for s in sketches]),
    )


def test_the_exact_index_finds_what_the_definition_does(stores):
    store, queries = stores
    index = GradientIndex(store)
    assert index.kind == "flat"
    cosines, rows = index.search(queries, 10)
    expected = mean_cosines(queries, store)
    order = np.argsort(-expected, axis=1)[:, :10]
    assert np.array_equal(rows, order)
    np.testing.assert_allclose(cosines, np.take_along_axis(expected, order, 1), atol=2e-6)


def test_the_index_ranks_as_the_score_does(stores):
    """One normalisation, in one place: the neighbours are those with the highest cosines over the checkpoints."""
    store, queries = stores
    scores = attribute(store, queries, "tracin", cosine=True)
    _, rows = GradientIndex(store).search(queries, 5)
    assert np.array_equal(rows, np.argsort(-scores.values.T, axis=1)[:, :5])


@pytest.mark.parametrize(("clusters", "least"), [(20, 0.95), (60, 0.95), (200, 0.95), (1000, 0.9)])
def test_the_approximate_index_recalls_the_exact_one(clusters, least, tmp_path):
    sketches = clustered(4100, 64, clusters)
    store = store_of(tmp_path / "train", [sketches[:4000]])
    queries = store_of(tmp_path / "query", [sketches[4000:]])
    approximate = GradientIndex(store, "ivf_sq8")
    assert approximate.kind == "ivf_sq8"
    found, exact = approximate.search(queries, 10)[1], GradientIndex(store).search(queries, 10)[1]
    recall = np.mean([len(set(a) & set(e)) / 10 for a, e in zip(found, exact, strict=True)])
    assert recall >= least
    again = GradientIndex(store, "ivf_sq8").search(queries, 10)[1]
    assert np.array_equal(found, again)


def test_a_kept_index_is_opened_and_finds_the_same(stores, tmp_path):
    store, queries = stores
    built = GradientIndex(store, "ivf", path=tmp_path / "kept")
    opened = GradientIndex(store, path=tmp_path / "kept")
    assert opened.kind == "ivf"
    assert json.loads((tmp_path / "kept" / "index.json").read_text())["store"] == store.fingerprint
    for ours, theirs in zip(built.search(queries, 5), opened.search(queries, 5), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_an_index_beside_the_store_is_the_one_that_is_used(tmp_path):
    store = store_of(tmp_path / "s", [clustered(200, 8, 5)])
    GradientIndex(store, "hnsw").save()
    assert GradientIndex(SketchStore.open(store.path)).kind == "hnsw"
    with pytest.raises(InputError, match=r"index\.faiss: of kind hnsw, not flat; delete it") as refused:
        GradientIndex(store, "flat")
    assert "\n" not in str(refused.value)


def test_the_index_of_another_store_is_refused(stores, tmp_path):
    other = store_of(tmp_path / "s", [np.ones((3000, 64))] * 2)
    GradientIndex(other, "flat", path=tmp_path)
    with pytest.raises(InputError, match="the index of another store"):
        GradientIndex(stores[0], path=tmp_path)


def test_what_is_no_index_is_refused(tmp_path):
    store = store_of(tmp_path / "s", [clustered(30, 8, 3)])
    GradientIndex(store).save()
    (store.path / FILE).write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"index\.faiss: a damaged index"):
        GradientIndex(store)


@pytest.mark.parametrize("kind", ["flat", "ivf_sq8"])
def test_an_index_that_follows_a_collection_is_the_one_built_afterwards(kind, tmp_path, monkeypatch):
    monkeypatch.setattr("backcast.vectors.index.choose", lambda n, d: Choice(kind, "for this test"))
    monkeypatch.setattr("backcast.vectors.index.PER_LIST", 16)
    sketches = [clustered(3000, 16, 5, seed) for seed in (0, 1)]
    whole = store_of(tmp_path / "whole", sketches, shard_rows=100)
    store = SketchStore.create(tmp_path / "s", replace(whole.header))
    followed, added = FollowedIndex(store), []
    for c in (0, 1):
        for shard in [1, 0, *range(2, 29)]:  # out of order, as several processes would
            store.write(c, shard, whole.sketches(c)[store.header.shards()[shard]])
            followed.follow(c)
            added.append(len(followed._index))
    assert set(added[:30]) == {0}  # one checkpoint alone, then a later shard first
    assert 0 < added[-1] <= 2900
    for c in (0, 1):
        store.write(c, 29, whole.sketches(c)[2900:])
    followed.finish()
    kept, built = GradientIndex(store), Index.of(whole, kind=kind)
    assert kept.kind == kind
    assert len(kept.index) == 3000
    found, exact = kept.search(whole.features()[:50], 10)[1], built.search(whole.features()[:50], 10)[1]
    assert np.mean([len(set(a) & set(e)) / 10 for a, e in zip(found, exact, strict=True)]) >= (
        1 if kind == "flat" else 0.95
    )


@pytest.mark.parametrize("batch", [1, 64])
def test_collect_keeps_an_index(batch, tmp_path):
    rows = examples(60)
    args = mlp(), Classify(), rows, tmp_path / "s"
    store = collect(*args, spec=SketchSpec("sjlt", 32), shard_rows=16, batch_size=batch, index=True)
    assert (store.path / FILE).is_file()
    before = (store.path / FILE).stat().st_mtime_ns
    assert (GradientIndex(store).search(store, 1)[1][:, 0] == np.arange(60)).all()
    collect(*args, spec=SketchSpec("sjlt", 32), shard_rows=16, batch_size=batch, index=True)
    assert (store.path / FILE).stat().st_mtime_ns == before  # nothing was to be done
    (store.path / "checkpoint-00" / "shard-00002.safetensors").write_bytes(b"broken")
    mended = collect(*args, spec=SketchSpec("sjlt", 32), shard_rows=16, batch_size=batch, index=True)
    assert (GradientIndex(mended).search(mended, 1)[1][:, 0] == np.arange(60)).all()


def test_reads_are_the_features_in_any_order(stores):
    store, whole = stores[0], stores[0].features()
    assert store.shape == whole.shape == (3000, 128)
    for positions in (slice(1000, 1100), np.array([2999, 0, 1024, 1023, 0]), slice(0, 0)):
        np.testing.assert_array_equal(store.read(positions), whole[positions])


def test_features_and_stores_are_the_same_queries(stores):
    index = GradientIndex(stores[0])
    by_store, by_rows = index.search(stores[1], 3), index.search(stores[1].features(), 3)
    assert np.array_equal(by_store[0], by_rows[0])
    assert np.array_equal(by_store[1], by_rows[1])


def test_no_more_neighbours_than_there_are_rows(tmp_path):
    store = store_of(tmp_path / "s", [clustered(4, 8, 2)])
    cosines, rows = GradientIndex(store).search(store, 10)
    assert rows.shape == (4, 4)
    assert (np.diff(cosines) <= 0).all()
    assert (rows[:, 0] == np.arange(4)).all()


def test_queries_of_another_sketch_are_refused(stores, tmp_path):
    other = store_of(tmp_path / "s", [np.ones((2, 64))] * 2, spec=SketchSpec("sjlt", 64, seed=1))
    with pytest.raises(InputError, match=r"another sketch spec or model .*--like"):
        GradientIndex(stores[0]).search(other)
    with pytest.raises(InputError, match="another sketch spec or model"):
        GradientIndex(stores[0]).search(store_of(tmp_path / "one", [np.ones((2, 64))]))


def planted(n: int, k: int, copies: int, seed: int = 0, noise: float = 0.2) -> tuple[np.ndarray, set]:
    """Clustered rows, some of them copies of others with a little noise; and the true pairs i < j."""
    rng = np.random.default_rng(seed)
    rows = clustered(n, k, 10, seed)
    chosen = rng.permutation(n)[: 2 * copies].reshape(copies, 2)
    scale = np.abs(rows).mean(1, keepdims=True)
    rows[chosen[:, 1]] = rows[chosen[:, 0]] + noise * scale[chosen[:, 0]] * rng.normal(size=(copies, k))
    return rows, {(min(pair), max(pair)) for pair in chosen.tolist()}


@pytest.mark.parametrize("checkpoints", [1, 2])
def test_planted_copies_are_found_and_nothing_else(checkpoints, tmp_path):
    rows, truth = planted(1200, 128, 100)
    store = store_of(tmp_path / "s", [rows, 3 * rows[:, ::-1]][:checkpoints])
    pairs, cosines = near_duplicates(store)
    assert pairs.shape == (len(pairs), 2)
    assert cosines.shape == (len(pairs),)
    assert {(i, j) for i, j in pairs.tolist()} == truth
    assert (pairs[:, 0] < pairs[:, 1]).all()
    assert pairs.tolist() == sorted(pairs.tolist())
    assert (cosines >= 0.9).all()
    assert len(near_duplicates(store, threshold=0.9999)[0]) == 0


def test_the_whitening_is_what_tells_a_copy_from_a_classmate(tmp_path):
    """Gradients along a class's direction, as far as the model errs, and an example's own part.

    A copy differs in the first: in plain cosines, many classmates are more alike than it and its original.
    """
    rng = np.random.default_rng(1)
    classes, own = np.eye(128)[rng.integers(0, 5, 600)], rng.normal(size=(600, 128))
    classes[300:330], own[300:330] = classes[:30], own[:30]
    rows = rng.uniform(10, 40, (600, 1)) * classes + own
    plain = unit(rows) @ unit(rows).T
    copies = plain[np.arange(30), np.arange(300, 330)]
    others = np.triu(plain, 1)
    others[np.arange(30), np.arange(300, 330)] = 0
    assert (others > copies.min()).sum() > 1000
    pairs, _ = near_duplicates(store_of(tmp_path / "s", [rows]))
    assert pairs.tolist() == [[i, 300 + i] for i in range(30)]


def test_copies_are_found_where_the_model_has_fewer_weights_than_the_sketch_has_numbers(tmp_path):
    """Most of such a sketch is zero in every row; whitening must not blow that up."""
    rows, truth = planted(400, 20, 30, noise=0.05)
    sparse = np.zeros((400, 256), np.float32)
    sparse[:, np.random.default_rng(0).permutation(256)[:20]] = rows
    pairs, _ = near_duplicates(store_of(tmp_path / "s", [sparse]))
    assert truth <= {(i, j) for i, j in pairs.tolist()}


def test_copies_of_real_gradients_are_found(tmp_path):
    rows = examples(300)
    copied = [{**rows[i].fields, "text": f"copy of {i}"} for i in range(20)]
    rows = type(rows).from_fields([e.fields for e in rows] + copied)
    store = collect(mlp(48), Classify(), rows, tmp_path / "s", spec=SketchSpec("sjlt", 512))
    pairs, cosines = near_duplicates(store, 0.999)
    assert {(i, 300 + i) for i in range(20)} <= {(i, j) for i, j in pairs.tolist()}
    assert cosines.max() <= 1 + 1e-5


def test_none_are_found_where_there_is_one_row(tmp_path):
    pairs, cosines = near_duplicates(store_of(tmp_path / "s", [np.ones((1, 8))]))
    assert pairs.shape == (0, 2)
    assert len(cosines) == 0


WORK = """
import numpy as np
{imports}
torch.set_num_threads(2)
faiss.omp_set_num_threads(2)
x = np.random.default_rng(0).normal(size=(2000, 64)).astype("float32")
expected = np.argsort(-(x[:50].astype(float) @ x.T.astype(float)), axis=1)[:, :5]
for _ in range(3):
    index = faiss.IndexFlatIP(64)
    index.add(x)
    assert (index.search(x[:50], 5)[1] == expected).all()
    w = torch.ones(64, 64, requires_grad=True)
    (torch.from_numpy(x) @ w).sum().backward()
    assert np.allclose(w.grad, x.sum(0)[:, None], atol=1e-2)
print("done")
"""


def test_torch_and_faiss_work_in_one_process_in_either_order():
    """Each brings an OpenMP of its own; two that spin against each other would hang."""
    for imports in ("import torch, faiss", "import faiss, torch"):
        done = subprocess.run(
            [sys.executable, "-c", WORK.format(imports=imports)],
            capture_output=True,
            text=True,
            timeout=120,
            env={**os.environ, "OMP_NUM_THREADS": "2"},
            check=False,
        )
        assert done.stdout == "done\n", done.stderr
