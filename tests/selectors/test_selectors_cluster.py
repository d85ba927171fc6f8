"""cluster against its rule, written out plainly."""

from __future__ import annotations

from math import exp

import numpy as np
import pytest
from selectors_cases import check_allowance, evidence, points, room, rows, scores, shuffled

from backcast.errors import InputError
from backcast.selectors import Evidence, select
from backcast.selectors.methods.cluster import Cluster
from backcast.vectors import Clusters, Features, kmeans
from backcast.vectors.kmeans import assign


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def clusters_of(pool: Evidence, count: int, seed: int = 0) -> tuple[Clusters, np.ndarray]:
    """The clusters that the selector makes, and each example's, in the pool's order."""
    assert pool.features is not None
    draw = int(np.random.PCG64(seed).random_raw())
    found = assign(pool.features, kmeans(Features.of(pool.features[pool.by_id]), count, draw).centroids)
    return found, found.labels


def shares(pool: Evidence, count: int, temperature: float) -> np.ndarray:
    """P_c, not normalised, from the docstring."""
    found, labels = clusters_of(pool, count)
    wide = found.centroids.astype(np.float64)
    if pool.scores is None:
        unit = wide / np.linalg.norm(wide, axis=1, keepdims=True)
        cosines = unit @ unit.T
        good = (cosines.sum(axis=1) - 1) / (count - 1)
    else:
        quality = (np.maximum(pool.best, 0) / pool.best.max()) ** 2
        good = np.array([quality[labels == c].mean() for c in range(count)])
        good /= good.max()
    return np.array([exp(good[c] / (temperature * exp(-2 * (1 - wide[c] @ wide[c])))) for c in range(count)])


@pytest.mark.parametrize("scored", [True, False])
@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_each_cluster_gets_its_share_and_what_one_lacks_goes_to_the_others(
    scored: bool, temperature: float
) -> None:
    pool = evidence(300, d=16, seed=6)
    pool = pool if scored else Evidence.of(pool.rows, pool.features)
    share = shares(pool, 5, temperature)
    _, labels = clusters_of(pool, 5)
    chosen = Cluster(5, temperature).select(pool, room(120, pool), generator())
    assert chosen.clusters is not None
    np.testing.assert_array_equal(chosen.clusters, labels[chosen.indices])
    got, sizes = np.bincount(chosen.clusters, minlength=5), np.bincount(labels, minlength=5)
    turns = np.zeros(5, dtype=int)  # D'Hondt, one turn after another
    for _ in range(120):
        waiting = np.where(turns < sizes, share / (turns + 1), -1)
        turns[waiting.argmax()] += 1
    assert got.tolist() == turns.tolist()
    assert np.isnan(chosen.gains).all()


def test_dense_clusters_give_less_and_helpful_ones_more() -> None:
    rng = np.random.default_rng(0)
    centres = np.eye(12)[:3].repeat(100, axis=0)
    x = centres + np.repeat([0.02, 0.15, 0.15], 100)[:, None] * rng.normal(size=(300, 12))
    value = np.repeat([0.8, 0.8, 0.2], 100)[:, None] + 0.01 * rng.random((300, 1))
    chosen = select(scores(value), 60, "cluster", features=x, clusters=3)
    tight, loose, useless = np.bincount(chosen.indices // 100, minlength=3)
    assert loose > tight > useless > 0


@pytest.mark.parametrize("within", ["score", "nearest", "random"])
def test_a_cluster_gives_its_members_in_the_order_asked(within: str) -> None:
    pool = evidence(120, d=8, seed=1)
    found, labels = clusters_of(pool, 4)
    chosen = Cluster(4, within=within).select(pool, room(60, pool), generator())
    key = pool.best if within == "score" else found.cosines
    for c in range(4):
        given = chosen.indices[labels[chosen.indices] == c]
        left = np.setdiff1d(np.flatnonzero(labels == c), given)
        in_order = (np.diff(key[given]) <= 0).all() and (not len(left) or key[left].max() <= key[given].min())
        assert in_order == (within != "random")


def test_by_default_the_best_scored_and_without_scores_the_nearest() -> None:
    pool = evidence(120, d=8, seed=1)
    bare = Evidence.of(pool.rows, pool.features)
    for some, within in ((pool, "score"), (bare, "nearest")):
        default, asked = (
            Cluster(4, within=w).select(some, room(40, some), generator()).indices.tolist()
            for w in (None, within)
        )
        assert default == asked


@pytest.mark.parametrize("within", ["score", "nearest", "random"])
def test_the_order_of_the_pool_does_not_matter_and_the_seed_does(within: str) -> None:
    pool = evidence(200, d=16, seed=3)
    mine, theirs = (
        Cluster(within=within).select(p, room(60, p), generator()) for p in (pool, shuffled(pool, 1))
    )
    assert mine.rows.ids == theirs.rows.ids
    np.testing.assert_array_equal(mine.clusters, theirs.clusters)
    assert Cluster(within=within).select(pool, room(60, pool), generator(1)).rows.ids != mine.rows.ids


def test_all_of_the_pool_and_copies_only() -> None:
    chosen = select(rows(30), 30, "cluster", features=np.repeat(points(1, 5), 30, axis=0))
    assert sorted(chosen.indices) == list(range(30))
    assert select(rows(1), 1, "cluster", features=points(1, 5)).indices.tolist() == [0]


def test_no_pick_breaks_the_allowance() -> None:
    check_allowance(Cluster())


@pytest.mark.parametrize(
    "params",
    [
        {"clusters": 0},
        {"clusters": 2.5},
        {"temperature": 0},
        {"within": "best"},
        {"quality": -1},
        {"temperature": float("inf")},
    ],
)
def test_a_parameter_out_of_range_is_refused(params: dict[str, float]) -> None:
    with pytest.raises(InputError, match=f"cluster: {next(iter(params))}="):
        select(rows(4), 1, "cluster", features=points(4, 2), **params)
