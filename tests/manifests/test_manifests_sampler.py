"""How often a row comes, and in what order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from selectors_cases import rows
from torch.utils.data import DataLoader

from backcast.errors import InputError
from backcast.manifests import Manifest, SubsetSampler
from backcast.selectors import select

K = 40


def weighted(tmp_path: Path, weights: list[float]) -> Manifest:
    saved = select(rows(100), len(weights), "random").save(tmp_path / "subset.jsonl")
    lines = tuple({**line, "weight": w} for line, w in zip(saved.lines, weights, strict=True))
    manifest = Manifest(saved.path, lines, saved.meta)
    manifest.save()
    return manifest


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return weighted(tmp_path, [1.0] * K)


def test_weights_of_one_give_each_row_once(manifest: Manifest) -> None:
    sampler = SubsetSampler(manifest.path, seed=3)
    epoch = list(sampler)
    assert len(sampler) == len(epoch) == K
    assert epoch != manifest.rows.tolist()
    assert sorted(epoch) == sorted(manifest.rows.tolist())
    assert all(type(row) is int for row in epoch)
    assert list(sampler) == epoch


def test_an_epoch_depends_on_its_number_and_the_seed_alone(manifest: Manifest) -> None:
    sampler, other = SubsetSampler(manifest), SubsetSampler(manifest)
    first = list(sampler)
    sampler.set_epoch(5)
    fifth = list(sampler)
    other.set_epoch(5)
    assert fifth == list(other) != first
    sampler.set_epoch(0)
    assert list(sampler) == first != list(SubsetSampler(manifest, seed=1))


def test_in_rank_order_without_shuffling(tmp_path: Path) -> None:
    manifest = weighted(tmp_path, [1.0, 3.0, 0.0, 2.0])
    a, b, _, d = manifest.rows.tolist()
    assert list(SubsetSampler(manifest, shuffle=False)) == [a, b, b, b, d, d]


def test_rows_come_as_often_as_their_weights_say(tmp_path: Path) -> None:
    """floor or ceil of the weight in each epoch; over many the mean is the weight, within four standard errors."""
    weights = np.random.default_rng(0).uniform(0, 3, K)
    manifest = weighted(tmp_path, weights.tolist())
    sampler = SubsetSampler(manifest)
    place = {row: k for k, row in enumerate(manifest.rows.tolist())}
    times = np.zeros((epochs := 3000, K))
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        drawn = [place[row] for row in sampler]
        assert len(sampler) == len(drawn) in (np.floor(weights.sum()), np.ceil(weights.sum()))
        times[epoch] = np.bincount(drawn, minlength=K)
    assert (times >= np.floor(weights)).all()
    assert (times <= np.ceil(weights)).all()
    rest = weights % 1
    assert (abs(times.mean(axis=0) - weights) < 4 * np.sqrt(rest * (1 - rest) / epochs) + 1e-9).all()


def test_the_draw_is_the_same_on_any_machine(tmp_path: Path) -> None:
    """Written down once; PCG64's raw stream does not change."""
    manifest = weighted(tmp_path, [0.5, 1.5, 0.25, 2.0, 0.75])
    rows = manifest.rows.tolist()
    assert [rows.index(row) for row in SubsetSampler(manifest, seed=7)] == [0, 4, 3, 3, 1]


def test_a_data_loader_takes_it(manifest: Manifest) -> None:
    data = torch.arange(100) * 10
    loader = DataLoader(data, batch_size=16, sampler=SubsetSampler(manifest))
    assert len(loader) == 3
    seen = torch.cat(list(loader))
    assert sorted(seen.tolist()) == sorted((manifest.rows * 10).tolist())


def test_weights_without_a_row_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="add up to less than one row"):
        SubsetSampler(weighted(tmp_path, [0.1] * 9))
