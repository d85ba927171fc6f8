"""What every task has without saying so."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from backcast.data import Example, Examples
from backcast.tasks import Batch, Task, batches, on_device


class Squares(Task):
    """An example's loss is the square of what the model makes of its number."""

    def collate(self, examples: Sequence[Example]) -> Batch:
        return {
            "x": torch.tensor([[float(e.fields["text"])] for e in examples]),
            "names": [e.id for e in examples],
        }

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return model(batch["x"])[:, 0].square()


ROWS = Examples.from_fields([{"text": str(i)} for i in range(150)])


def identity() -> nn.Module:
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    return model


def test_evaluation_is_the_mean_loss_over_uneven_batches():
    assert Squares().evaluate(identity(), ROWS) == pytest.approx(
        sum(i * i for i in range(150)) / 150, rel=1e-6
    )


def test_evaluation_prepares_the_loss_and_computes_no_gradient():
    class Prepared(Squares):
        def prepare(self, model: nn.Module) -> None:
            self.factor = 3

        def loss(self, model: nn.Module, batch: Batch) -> Tensor:
            loss = self.factor * super().loss(model, batch)
            assert not loss.requires_grad
            return loss

    assert Prepared().evaluate(identity(), ROWS[1:3]) == pytest.approx(3 * (1 + 4) / 2)


def test_the_objective_is_the_mean_loss():
    task, model = Squares(), identity()
    objective = task.objective(model, task.collate(ROWS[1:4]))
    assert objective.item() == pytest.approx((1 + 4 + 9) / 3)
    assert objective.requires_grad


def test_linear_and_conv_layers_are_tracked_by_name():
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.LayerNorm(4), nn.Sequential(nn.Linear(4, 4), nn.Embedding(3, 4))
    )
    assert Squares().modules(model) == {"0": model[0], "2.0": model[2][0]}


def test_batches_cover_the_rows_in_order():
    parts = batches(ROWS, 64)
    assert [len(part) for part in parts] == [64, 64, 22]
    assert [e.id for part in parts for e in part] == list(ROWS.index.ids)
    assert batches(ROWS[:0], 64) == []


def test_only_tensors_are_moved():
    batch = on_device({"x": torch.ones(2), "names": ["a", "b"]}, identity().to("meta"))
    assert batch["x"].device.type == "meta"
    assert batch["names"] == ["a", "b"]


def test_collate_and_loss_are_obligatory():
    with pytest.raises(TypeError, match=r"collate.*loss"):
        Task()
