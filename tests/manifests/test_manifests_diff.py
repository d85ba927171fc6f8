"""Two subsets side by side, against counts by hand and by simulation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import hypergeom, spearmanr
from selectors_cases import rows, scores

from backcast.manifests import Manifest, diff
from backcast.selectors import select

N = 60


@pytest.fixture
def values() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(N, 3))


@pytest.fixture
def two(tmp_path: Path, values: np.ndarray) -> tuple[Manifest, Manifest]:
    a = select(scores(values), 20, "top_k").save(tmp_path / "a.jsonl")
    b = select(scores(values + 0.5), 30, "random", 4).save(tmp_path / "b.jsonl")
    return a, b


def test_the_overlap_is_counted(two: tuple[Manifest, Manifest]) -> None:
    a, b = two
    common = set(a.rows.tolist()) & set(b.rows.tolist())
    found = diff(a.path, b.path).overlap
    assert (found.a, found.b, found.common, found.pool) == (20, 30, len(common), N)
    assert found.jaccard == len(common) / (50 - len(common))


def test_chance_is_the_hypergeometric_distribution(two: tuple[Manifest, Manifest]) -> None:
    found, law = diff(*two).overlap, hypergeom(N, 20, 30)
    assert found.expected == pytest.approx(law.mean(), rel=1e-12)
    assert found.spread == pytest.approx(law.std(), rel=1e-12)


def test_sources_side_by_side(two: tuple[Manifest, Manifest]) -> None:
    a, b = two
    found = diff(a, b)
    for row in found.sources:
        for side, manifest in (("a", a), ("b", b)):
            count = sum(line["source"] == row["source"] for line in manifest.lines)
            assert (row[side], row[f"share_{side}"]) == (count, count / len(manifest))
        assert row["shift"] == row["share_b"] - row["share_a"]
    assert sum(row["a"] for row in found.sources) == 20
    assert found.shift == pytest.approx(max(abs(row["shift"]) for row in found.sources))  # two sources


def test_a_source_of_one_alone_is_there(tmp_path: Path) -> None:
    pool = scores(np.arange(9.0)[:, None], rows(9, "aab"))  # source b is rows 2, 5, 8
    a = select(pool, 1, "top_k").save(tmp_path / "a.jsonl")
    lines = tuple(
        line for line in select(pool, 9, "top_k").save(tmp_path / "b.jsonl").lines if line["source"] == "a"
    )
    found = diff(a, Manifest(tmp_path / "b.jsonl", lines, a.meta))
    assert [(row["source"], row["a"], row["b"]) for row in found.sources] == [("a", 0, 6), ("b", 1, 0)]
    assert found.shift == 1


def test_scores_of_the_common_and_of_each_alone(two: tuple[Manifest, Manifest]) -> None:
    a, b = two
    mine, theirs = ({line["row"]: line["score"] for line in m.lines} for m in two)
    common = [row for row in mine if row in theirs]
    expected = {
        "common, scored by a": [mine[row] for row in common],
        "common, scored by b": [theirs[row] for row in common],
        "only in a": [mine[row] for row in mine if row not in theirs],
        "only in b": [theirs[row] for row in theirs if row not in mine],
    }
    found = diff(a, b)
    assert [row["examples"] for row in found.scores] == list(expected)
    for row, values in zip(found.scores, expected.values(), strict=True):
        assert row["n"] == len(values)
        quantiles = np.quantile(values, [0.05, 0.25, 0.5, 0.75, 0.95])
        told = [row[name] for name in ("mean", "5 %", "25 %", "median", "75 %", "95 %")]
        np.testing.assert_allclose(told, [np.mean(values), *quantiles], rtol=1e-8)
    pairs = np.asarray([(mine[row], theirs[row]) for row in common])
    assert found.agreement == pytest.approx(spearmanr(*pairs.T).statistic, rel=1e-12)


def test_without_scores_there_are_none(tmp_path: Path) -> None:
    a, b = (select(rows(30), 9, "random", seed).save(tmp_path / f"{seed}.jsonl") for seed in (0, 1))
    found = diff(a, b)
    assert (found.scores, found.agreement) == ((), None)


def test_what_made_them_differently_is_named(two: tuple[Manifest, Manifest]) -> None:
    made = {what: (x, y) for what, x, y in diff(*two).made}
    assert made["selector.method"] == ("top_k", "random")
    assert made["seed"] == (0, 4)
    assert made["budget.asked"] == (20, 30)
    assert not {"sha256", "budget.got", "schema", "scores.method", "dataset.fingerprint"} & set(made)
    assert diff(two[0], two[0]).made == ()


def test_the_first_examples_of_one_alone(two: tuple[Manifest, Manifest]) -> None:
    a, b = two
    found = diff(a, b)
    there = set(b.ids)
    alone = [line for line in a.lines if line["id"] not in there][:5]
    assert [row["rank"] for row in found.only_a] == [line["rank"] for line in alone]
    assert [row["id"] for row in found.only_a] == [line["id"] for line in alone]


def test_two_pools_have_no_chance_to_compare_with(two: tuple[Manifest, Manifest], tmp_path: Path) -> None:
    other = select(rows(90), 20, "random").save(tmp_path / "other.jsonl")  # its first 60 are the others' pool
    found = diff(two[0], other)
    assert (found.overlap.pool, found.overlap.expected, found.overlap.spread) == (None, None, None)
    assert found.overlap.common == len(set(two[0].ids) & set(other.ids))
    assert found.summary.endswith("chosen from different pools")
    assert "dataset.fingerprint" in [what for what, _, _ in found.made]


def test_it_is_json(two: tuple[Manifest, Manifest]) -> None:
    found = diff(*two)
    told = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert told["overlap"]["common"] == found.overlap.common
    assert told["made"][0].keys() == {"what", "a", "b"}
    assert told["summary"] == found.summary
