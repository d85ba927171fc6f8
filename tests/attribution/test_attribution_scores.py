"""Scores against their definition, on stored sketches and on whole gradients."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from attribution_cases import CLASSES, INPUTS, Classify, exact_gradients, examples, mlp, store_of, unit
from safetensors.torch import save_file
from torch import nn

from backcast.attribution import Checkpoint, Scores, SketchStore, attribute, collect
from backcast.data import Example, Examples
from backcast.errors import InputError
from backcast.kernels import SketchSpec
from backcast.tasks import Batch

RATES = [0.1, 0.7, 0.3]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A training store of 11 rows in 3 shards and a target store of 4, at three checkpoints."""
    folder, rng = tmp_path_factory.mktemp("pair"), np.random.default_rng(0)
    train, target = (
        store_of(
            folder / name,
            [scale * rng.normal(size=(n, 16)) for scale in (3.0, 1.0, 0.2)],
            RATES,
            name=name,
            shard_rows=5,
        )
        for name, n in (("train", 11), ("target", 4))
    )
    return train, target


def wide(store: SketchStore) -> list[np.ndarray]:
    return [store.sketches(c).astype(np.float64) for c in range(len(store.checkpoints))]


def dot(train: list[np.ndarray], target: list[np.ndarray]) -> np.ndarray:
    return train[-1] @ target[-1].T


def cos(train: list[np.ndarray], target: list[np.ndarray]) -> np.ndarray:
    return unit(train[-1]) @ unit(target[-1]).T


def traced(train: list[np.ndarray], target: list[np.ndarray]) -> np.ndarray:
    return sum(rate * g @ h.T for rate, g, h in zip(RATES, train, target, strict=False))


def traced_cos(train: list[np.ndarray], target: list[np.ndarray]) -> np.ndarray:
    return sum(rate * unit(g) @ unit(h).T for rate, g, h in zip(RATES, train, target, strict=False))


#: method, parameters, the definition
METHODS = [
    ("grad_dot", {}, dot),
    ("grad_cos", {}, cos),
    ("tracin", {}, traced),
    ("tracin", {"cosine": True}, traced_cos),
]


@pytest.mark.parametrize(("method", "params", "definition"), METHODS)
def test_scores_are_the_formula_on_the_stored_sketches(method, params, definition, pair):
    scores = attribute(*pair, method, **params)
    expected = definition(wide(pair[0]), wide(pair[1]))
    assert scores.values.dtype == np.float32
    np.testing.assert_allclose(scores.values, expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max())
    assert scores.train == pair[0].rows
    assert scores.targets == pair[1].rows.ids
    assert (scores.method, scores.params) == (method, params)


@pytest.mark.parametrize(("method", "params", "definition"), METHODS)
def test_a_groups_gradient_is_the_mean_of_its_rows(method, params, definition, pair):
    scores = attribute(*pair, method, groups=["b", "a", "b", "b"], **params)
    assert scores.targets == ("b", "a")
    means = [np.stack([z[[0, 2, 3]].mean(0), z[1]]) for z in wide(pair[1])]
    np.testing.assert_allclose(scores.values, definition(wide(pair[0]), means), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("groups", [None, ["b", "a", "b", "b"]])
@pytest.mark.parametrize(("method", "params"), [*[m[:2] for m in METHODS], ("grad_norm", {})])
def test_a_store_of_outputs_scores_as_one_of_its_losses(method, params, groups, tmp_path):
    rng = np.random.default_rng(3)
    outputs, losses = [], []
    for name, n in (("train", 11), ("target", 4)):
        rows = [rng.normal(size=(n, 16)).astype(np.float32) for _ in RATES]
        slopes = [-rng.random(n, dtype=np.float32) for _ in RATES]
        options = {"rates": RATES, "name": name, "shard_rows": 5}
        outputs.append(store_of(tmp_path / f"{name}-o", rows, slopes=slopes, **options))
        gradients = [s[:, None] * phi for s, phi in zip(slopes, rows, strict=True)]
        losses.append(store_of(tmp_path / f"{name}-l", gradients, **options))
    of_outputs, of_losses = (attribute(*pair, method, groups=groups, **params) for pair in (outputs, losses))
    np.testing.assert_array_equal(of_outputs.values, of_losses.values)


def gradients_at(weights: list[nn.Module], rows: Examples, layers: dict[str, str]) -> list[np.ndarray]:
    """(n, N) whole float64 gradients at each of the models."""
    flat = []
    for model in weights:
        model = model.double()
        exact = exact_gradients(
            model, Double(), rows, {name: model.get_parameter(p) for name, p in layers.items()}
        )
        flat.append(torch.cat([g.flatten(1) for g in exact.values()], 1).numpy())
    return flat


class Double(Classify):
    def collate(self, examples: Sequence[Example]) -> Batch:
        batch = super().collate(examples)
        return {**batch, "x": batch["x"].double()}


def stores_of(
    folder: Path, models: list[nn.Module], spec: SketchSpec, train: Examples, target: Examples
) -> tuple[SketchStore, SketchStore]:
    points = []
    for c, model in enumerate(models):
        save_file(model.state_dict(), folder / f"{c}.safetensors")
        points.append(Checkpoint(str(folder / f"{c}.safetensors"), RATES[c]))
    run = {"checkpoints": points, "spec": spec}
    return (
        collect(models[0], Classify(), train, folder / "train", **run),
        collect(models[0], Classify(), target, folder / "target", **run),
    )


@pytest.mark.parametrize(("method", "params", "definition"), METHODS)
def test_an_isometric_sketch_gives_the_scores_of_whole_gradients(method, params, definition, tmp_path):
    """`sjlt` of one layer with no more weights than numbers permutes and signs them: nothing may be lost."""

    def softmax_regression(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(INPUTS, CLASSES))

    train, target = examples(20), examples(6, seed=1)
    stores = stores_of(
        tmp_path, [softmax_regression(s) for s in range(3)], SketchSpec("sjlt", 64), train, target
    )
    models, layers = [softmax_regression(s) for s in range(3)], {"0": "0.weight"}
    expected = definition(gradients_at(models, train, layers), gradients_at(models, target, layers))
    scores = attribute(*stores, method, **params).values
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(("method", "params", "definition"), METHODS)
@pytest.mark.parametrize("kind", ["sjlt", "dense"])
def test_scores_of_sketches_follow_those_of_whole_gradients(kind, method, params, definition, tmp_path):
    train, target = examples(40), examples(8, seed=1)
    stores = stores_of(tmp_path, [mlp(96, s) for s in range(3)], SketchSpec(kind, 4096), train, target)
    models, layers = [mlp(96, s) for s in range(3)], {"0": "0.weight", "2": "2.weight"}
    expected = definition(gradients_at(models, train, layers), gradients_at(models, target, layers))
    scores = attribute(*stores, method, **params).values
    assert np.corrcoef(scores.ravel(), expected.ravel())[0, 1] >= 0.99


def test_a_training_example_is_the_most_like_itself(tmp_path):
    model, rows = mlp(), examples(30)
    store = collect(model, Classify(), rows, tmp_path / "s", spec=SketchSpec("sjlt", 512))
    values = attribute(store, store, "grad_cos").values
    np.testing.assert_allclose(values.diagonal(), 1, atol=1e-5)
    assert (values.argmax(1) == np.arange(30)).all()
    np.testing.assert_allclose(values, values.T, atol=1e-6)


def test_what_a_score_came_from_is_kept(pair, tmp_path):
    scores = attribute(*pair, "tracin", cosine=True)
    assert scores.origin["spec"] == pair[0].spec.to_json()
    assert [c["learning_rate"] for c in scores.origin["checkpoints"]] == RATES
    assert scores.origin["target"]["fingerprint"] == pair[1].rows.fingerprint
    scores.save(tmp_path / "scores")
    loaded = Scores.load(tmp_path / "scores")
    assert np.array_equal(loaded.values, scores.values)
    assert (loaded.targets, loaded.method, loaded.params) == (scores.targets, "tracin", {"cosine": True})
    assert loaded.train.fingerprint == scores.train.fingerprint
    assert loaded.origin == scores.origin


def test_unknown_methods_parameters_and_groups_are_refused(pair):
    with pytest.raises(InputError, match=r"'magic' does not exist; choose one of bm25, datainf, .*, trak$"):
        attribute(*pair, "magic")
    with pytest.raises(InputError, match=r"'tracin' has no parameter 'damping'; it takes cosine$"):
        attribute(*pair, "tracin", damping=1)
    with pytest.raises(InputError, match=r"'grad_dot' has no parameter 'cosine'; it takes none$"):
        attribute(*pair, "grad_dot", cosine=True)
    with pytest.raises(InputError, match="nothing to score: there are no targets"):
        attribute(examples(2), examples(2)[:0], "bm25")
    with pytest.raises(InputError, match="nothing to score: there are no training examples"):
        attribute(examples(2)[:0], examples(2), "bm25")
    with pytest.raises(InputError, match="3 group names for 4 targets"):
        attribute(*pair, groups=["a", "b", "c"])


def test_stores_that_do_not_compare_are_refused(pair, tmp_path):
    train, _ = pair
    rows = [np.ones((4, 16))] * 3
    other = store_of(tmp_path / "seed", rows, RATES, SketchSpec("sjlt", 16, seed=1))
    with pytest.raises(InputError, match=r"seed: its sketch spec \(sjlt, dim 16, seed 1\) is not .*--like"):
        attribute(train, other)
    with pytest.raises(InputError, match="collected at other checkpoints"):
        attribute(train, store_of(tmp_path / "rates", rows, [0.1, 0.7, 0.4]))
    with pytest.raises(InputError, match="collected at other checkpoints"):
        attribute(train, store_of(tmp_path / "fewer", rows[:2], RATES[:2]))


def test_stores_of_another_loss_are_refused(tmp_path):
    class Warm(Classify):
        def settings(self) -> dict[str, int]:
            return {"temperature": 2}

    Warm.__name__ = "Classify"
    spec = SketchSpec("sjlt", 16)
    train = collect(mlp(), Classify(), examples(4), tmp_path / "train", spec=spec)
    target = collect(mlp(), Warm(), examples(3, seed=1), tmp_path / "target", spec=spec)
    with pytest.raises(InputError, match=r"target: collected with another loss than .*--like"):
        attribute(train, target)


def test_stores_of_other_layers_are_refused(tmp_path):
    class Head(Classify):
        def modules(self, model: nn.Module) -> dict[str, nn.Module]:
            return {"2": model[2]}

    spec = SketchSpec("sjlt", 16)
    train = collect(mlp(), Classify(), examples(4), tmp_path / "train", spec=spec)
    target = collect(mlp(), Head(), examples(3, seed=1), tmp_path / "target", spec=spec)
    with pytest.raises(InputError, match="target: tracks other layers than"):
        attribute(train, target)
