"""K-means against a plain Lloyd in float64, and the same bits whatever the threads."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
from sklearn.cluster import KMeans
from vectors_cases import clustered, points

from backcast.errors import InputError
from backcast.vectors import Features, kmeans


def inertia(x: np.ndarray, centroids: np.ndarray) -> float:
    distances = ((x[:, None] - centroids) ** 2).sum(axis=2)
    return float(distances.min(axis=1).sum())


def lloyd(x: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    for _ in range(50):
        labels = ((x[:, None] - centroids) ** 2).sum(axis=2).argmin(axis=1)
        centroids = np.stack([x[labels == c].mean(axis=0) for c in range(len(centroids))])
    return centroids


@pytest.mark.parametrize("k", [1, 7, 30])
def test_it_is_as_good_as_lloyds_algorithm_in_float64(k):
    x = clustered(1500, 12, 12)
    found, p = kmeans(Features.of(x), k), points(x)
    ours = inertia(p, found.centroids.astype(np.float64))
    assert ours <= 1.002 * inertia(
        p, lloyd(p, found.centroids.astype(np.float64))
    )  # at an optimum, but for rounding
    best = KMeans(k, n_init=3, random_state=0).fit(p).inertia_
    assert ours <= 1.05 * best


def test_rows_belong_to_the_nearest_centroid():
    x = clustered(900, 9, 5)
    found, p = kmeans(Features.of(x), 20), points(x)
    distances = ((p[:, None] - found.centroids.astype(np.float64)) ** 2).sum(axis=2)
    assert (found.labels == distances.argmin(axis=1)).all()  # exact, ties to the lower
    own = found.centroids[found.labels].astype(np.float64)
    cosines = (p * own).sum(1) / np.linalg.norm(p, axis=1) / np.linalg.norm(own, axis=1)
    np.testing.assert_allclose(found.cosines, cosines, atol=1e-6)
    assert (found.centroids * 2**11 % 1 == 0).all()


def test_no_cluster_is_empty_where_rows_differ():
    x = np.concatenate([np.tile(clustered(1, 6, 1), (500, 1)), clustered(40, 6, 40, seed=1)])
    found = kmeans(Features.of(x), 30)
    assert len(np.unique(found.labels)) == 30


def test_fewer_distinct_rows_than_clusters_leave_some_empty():
    x = np.eye(3, dtype=np.float32)[np.arange(30) % 3]
    found = kmeans(Features.of(x), 5)
    assert [len(np.unique(found.labels[i::3])) for i in range(3)] == [1, 1, 1]
    assert len(np.unique(found.labels)) == 3
    np.testing.assert_allclose(found.cosines, 1)


def test_rows_of_zeros_do_no_harm():
    x = clustered(100, 5, 3)
    x[::4] = 0
    found = kmeans(Features.of(x), 4)
    assert np.isfinite(found.cosines).all()
    assert not found.cosines[::4].any()


def test_the_sample_is_enough(monkeypatch):
    x = clustered(4000, 8, 10)
    whole = kmeans(Features.of(x), 10)
    monkeypatch.setattr(sys.modules["backcast.vectors.kmeans"], "NUMBERS", 1)
    sampled = kmeans(Features.of(x), 10)  # 640 of the rows
    assert len(sampled.labels) == 4000
    p = points(x)
    assert inertia(p, sampled.centroids.astype(float)) <= 1.05 * inertia(p, whole.centroids.astype(float))


def test_the_seed_decides():
    x = Features.of(clustered(500, 8, 50))
    first, again, other = (kmeans(x, 10, seed) for seed in (0, 0, 1))
    assert (first.labels == again.labels).all()
    assert (first.labels != other.labels).any()


@pytest.mark.parametrize("k", [0, 11, -1])
def test_a_count_out_of_range_is_refused(k):
    with pytest.raises(InputError, match="clusters of 10 rows cannot be made; choose 1 to 10"):
        kmeans(Features.of(clustered(10, 3, 2)), k)


HASHES = """
import hashlib
import numpy as np
from backcast.vectors import Features, kmeans, near_duplicates, neighbour_graph
import backcast.vectors.groups
backcast.vectors.groups.EXACT_ROWS = 1000
x = Features.of(np.random.default_rng(0).normal(size=(3000, 100)).astype("float32"))
found, graph = kmeans(x, 40), neighbour_graph(x, 9)
for part in (*vars(found).values(), graph.indices, graph.data, near_duplicates(x, 0.4)):
    print(hashlib.sha256(part.tobytes()).hexdigest())
"""


def test_threads_change_no_bit_of_clusters_graphs_and_groups():
    seen = []
    for threads in ("1", "2"):
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}
        done = subprocess.run(
            [sys.executable, "-c", HASHES],
            capture_output=True,
            text=True,
            check=True,
            timeout=300,
            env=environment,
        )
        seen.append(done.stdout.split())
    assert len(seen[0]) == 6
    assert seen[0] == seen[1]
    assert hashlib.sha256(b"").hexdigest() not in seen[0]
