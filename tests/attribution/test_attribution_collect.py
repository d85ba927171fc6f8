"""`collect`: what it writes does not depend on batches, and leaves the model as it was."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from attribution_cases import INPUTS, Classify, Margin, contents, exact_gradients, examples, mlp, sketch_of
from safetensors.torch import save_file
from torch import nn

from backcast.attribution import Checkpoint, attribute, collect
from backcast.data import Examples
from backcast.errors import InputError
from backcast.kernels import SketchSpec
from backcast.tasks import Batch

SPEC = SketchSpec("sjlt", 64)


def checkpoint(path, model: nn.Module, rate: float = 1.0) -> Checkpoint:
    save_file(model.state_dict(), path)
    return Checkpoint(str(path), rate)


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_the_store_holds_each_examples_sketch_in_order(tmp_path):
    model, task, rows = mlp(), Classify(), examples(11)
    store = collect(model, task, rows, tmp_path / "s", spec=SPEC, batch_size=4, shard_rows=3)
    exact = exact_gradients(model, task, rows, {"0": model[0].weight, "2": model[2].weight})
    np.testing.assert_allclose(store.sketches(), sketch_of(exact, SPEC).numpy(), rtol=1e-4, atol=1e-6)
    assert store.rows.ids == rows.index.ids
    assert store.header.layers == {"0": [16, INPUTS], "2": [5, 16]}
    assert len(list((tmp_path / "s").rglob("*.safetensors"))) == 4


@pytest.mark.parametrize("kind", ["kron", "sjlt"])
def test_batches_do_not_change_a_sketch(kind, tmp_path):
    """With dropout and batch statistics in the model, which evaluation mode must still."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(True), nn.Dropout(0.5), nn.Flatten(), nn.Linear(150, 5)
    )
    model[1].running_var.uniform_(0.5, 2)
    model.train()
    rows = examples(45, (3, 7, 7))
    stores = [
        collect(model, Classify(), rows, tmp_path / str(size), spec=SketchSpec(kind, 64), batch_size=size)
        for size in (1, 7, 32)
    ]
    one, seven, many = (store.sketches().astype(np.float64) for store in stores)
    norms = np.linalg.norm(one, axis=1)
    assert np.linalg.norm(seven - one, axis=1).max() <= 1e-5 * norms.min()
    assert np.linalg.norm(many - one, axis=1).max() <= 1e-5 * norms.min()
    assert all(module.training for module in model.modules())


def test_two_runs_write_the_same_bytes(tmp_path):
    for name in "ab":
        collect(mlp(), Classify(), examples(20), tmp_path / name, spec=SPEC, shard_rows=8)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_checkpoints_are_visited_in_turn_and_the_models_own_weights_come_back(tmp_path):
    model, task, rows = mlp(seed=0), Classify(), examples(9)
    own = state(model)
    points = [checkpoint(tmp_path / f"{s}.safetensors", mlp(seed=s), s / 10) for s in (1, 2)]
    store = collect(model, task, rows, tmp_path / "s", checkpoints=points, spec=SPEC)
    assert store.learning_rates == [0.1, 0.2]
    for c, seed in enumerate((1, 2)):
        alone = collect(mlp(seed=seed), task, rows, tmp_path / f"alone{seed}", spec=SPEC)
        assert np.array_equal(store.sketches(c), alone.sketches())
        assert store.checkpoints[c]["sha256"] == alone.checkpoints[0]["sha256"]
    assert np.array_equal(store.sketches(), store.sketches(1))
    assert not np.allclose(store.sketches(0), store.sketches(1))
    assert all(torch.equal(own[name], value) for name, value in model.state_dict().items())


def test_a_loss_prepared_at_one_checkpoint_is_prepared_again_at_the_next(tmp_path):
    class Sized(Classify):
        def prepare(self, model: nn.Module) -> None:
            self.size = model[0].weight.detach().norm()

        def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
            return super().loss(model, batch) * self.size

    points = [checkpoint(tmp_path / f"{s}.safetensors", mlp(seed=s)) for s in (1, 2)]
    rows = examples(6)
    plain = collect(mlp(), Classify(), rows, tmp_path / "plain", checkpoints=points, spec=SPEC)
    sized = collect(mlp(), Sized(), rows, tmp_path / "sized", checkpoints=points, spec=SPEC)
    for c, seed in enumerate((1, 2)):
        size = mlp(seed=seed)[0].weight.detach().norm().item()
        np.testing.assert_allclose(sized.sketches(c), size * plain.sketches(c), rtol=1e-4, atol=1e-6)


def test_weights_of_another_shape_are_refused_and_none_are_loaded(tmp_path):
    model = mlp(hidden=16)
    own = state(model)
    wrong = checkpoint(tmp_path / "wide.safetensors", mlp(hidden=17, seed=5))
    with pytest.raises(InputError, match=r"wide\.safetensors: 0\.weight has shape \(17, 12\), .* \(16, 12\)"):
        collect(model, Classify(), examples(4), tmp_path / "s", checkpoints=[wrong])
    assert all(torch.equal(own[name], value) for name, value in model.state_dict().items())
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("change", ["less", "more"])
def test_weights_of_another_model_are_refused(change, tmp_path):
    weights = state(mlp(seed=5))
    if change == "less":
        del weights["2.weight"]
    else:
        weights["3.weight"] = torch.ones(1)
    save_file(weights, tmp_path / "odd.safetensors")
    model = mlp()
    own = state(model)
    with pytest.raises(
        InputError, match=rf"not a checkpoint of this model .*{'2' if change == 'less' else '3'}"
    ):
        collect(
            model,
            Classify(),
            examples(4),
            tmp_path / "s",
            checkpoints=[Checkpoint(str(tmp_path / "odd.safetensors"))],
        )
    assert all(torch.equal(own[name], value) for name, value in model.state_dict().items())


def test_an_error_while_a_checkpoint_is_loaded_restores_the_models_own_weights(tmp_path):
    class Breaks(Classify):
        def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
            raise RuntimeError("the user's own")

    model = mlp()
    own = state(model)
    point = checkpoint(tmp_path / "other.safetensors", mlp(seed=7))
    with pytest.raises(RuntimeError, match="the user's own"):
        collect(model, Breaks(), examples(4), tmp_path / "s", checkpoints=[point])
    assert all(torch.equal(own[name], value) for name, value in model.state_dict().items())


def test_like_takes_over_the_other_stores_sketch(tmp_path):
    train = collect(mlp(), Classify(), examples(4), tmp_path / "t", spec=SketchSpec("sjlt", 33, seed=9))
    assert collect(mlp(), Classify(), examples(3, seed=1), tmp_path / "w", like=train).spec == train.spec


def test_slopes_turn_the_outputs_gradients_into_the_losses(tmp_path):
    rows = examples(11)
    model = mlp().double()
    for row in rows:
        row.fields["x"] = row.fields["x"].double()
    losses = collect(model, Margin(), rows, tmp_path / "l", spec=SPEC, shard_rows=4)
    outputs = collect(model, Margin(), rows, tmp_path / "o", spec=SPEC, shard_rows=4, of="output")
    assert (losses.header.origin["of"], outputs.header.origin["of"]) == ("loss", "output")
    slopes = outputs.slopes()
    assert (slopes.shape, slopes.dtype) == ((11,), np.float32)
    with torch.no_grad():
        wrong = 1 - torch.exp(-Margin().loss(model, Margin().collate(rows)))
    np.testing.assert_allclose(slopes, -wrong.numpy(), rtol=1e-6)
    np.testing.assert_allclose(slopes[:, None] * outputs.sketches(), losses.sketches(), rtol=1e-4, atol=1e-7)
    with pytest.raises(InputError, match=r"l: holds gradients of losses; collect those of outputs"):
        losses.slopes()


def test_a_store_of_outputs_does_not_compare_with_one_of_losses(tmp_path):
    losses = collect(mlp(), Margin(), examples(4), tmp_path / "l", spec=SPEC)
    outputs = collect(mlp(), Margin(), examples(4), tmp_path / "o", like=losses, of="output")
    with pytest.raises(InputError, match="collected with another loss"):
        attribute(losses, outputs, "grad_dot")


def test_a_task_without_an_output_is_told_so(tmp_path):
    with pytest.raises(InputError, match=r"Classify defines no model-output function; override output\(\)"):
        collect(mlp(), Classify(), examples(4), tmp_path / "s", of="output")
    assert not (tmp_path / "s").exists()


def test_nothing_to_collect_is_refused(tmp_path):
    with pytest.raises(InputError, match="there are no examples"):
        collect(mlp(), Classify(), Examples([]), tmp_path / "s")
    with pytest.raises(
        InputError, match="'int4' cannot be stored; choose one of float32, float16, int8, sign"
    ):
        collect(mlp(), Classify(), examples(2), tmp_path / "s", dtype="int4")
    with pytest.raises(InputError, match="gradients of 'logits' do not exist; choose loss or output"):
        collect(mlp(), Classify(), examples(2), tmp_path / "s", of="logits")
    model = nn.Sequential(nn.Embedding(3, 4), nn.Bilinear(4, 4, 5))
    with pytest.raises(InputError, match="Sequential has no module that can be tracked"):
        collect(model, Classify(), examples(2), tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_a_gradient_that_is_not_finite_is_told_with_its_example(tmp_path):
    class Infinite(Classify):
        def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
            return super().loss(model, batch) / (batch["x"][:, 0] != batch["x"].amax())

    rows = examples(6)
    loudest = max(range(6), key=lambda i: rows[i].fields["x"].max())
    rows[loudest].fields["x"].copy_(rows[loudest].fields["x"].sort(descending=True).values)
    with pytest.raises(InputError, match=rows.index.ids[loudest]):
        collect(mlp(), Infinite(), rows, tmp_path / "s", shard_rows=2)
    assert not (tmp_path / "s").exists()


def test_what_is_tracked_and_what_is_not_is_logged(tmp_path, caplog):
    caplog.set_level(logging.INFO, "backcast")
    model = nn.Sequential(nn.Linear(INPUTS, 15), nn.Conv1d(15, 5, 1), nn.Flatten())
    model.insert(1, nn.Unflatten(1, (15, 1)))
    collect(model, Classify(), examples(2), tmp_path / "s")
    total = 15 * INPUTS + 15 + 15 * 5 + 5
    assert f"tracking {180 / total:.0%} of the parameters" in caplog.text
    assert f"2.weight ({75 / total:.0%}), 0.bias" in caplog.text
