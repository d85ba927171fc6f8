"""One fine-tune: its batches, its learning rates, its weights."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor, nn

from backcast.attribution.checkpoints import load_weights
from backcast.data import Example, Examples
from backcast.errors import InputError
from backcast.finetune import FinetuneConfig, finetune
from backcast.tasks import Batch, Task

INPUTS, CLASSES = 6, 3


class Classify(Task):
    """Cross-entropy on vectors; remembers the rows of every batch that it made."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def collate(self, examples: Sequence[Example]) -> Batch:
        self.batches.append([e.row for e in examples])
        return {
            "x": torch.tensor([e.fields["x"] for e in examples]),
            "y": torch.tensor([e.fields["label"] for e in examples]),
        }

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return F.cross_entropy(model(batch["x"]), batch["y"], reduction="none")


def examples(n: int) -> Examples:
    x = torch.randn(n, INPUTS, generator=torch.Generator().manual_seed(0))
    rows = [{"text": f"{i}", "label": i % CLASSES, "x": x[i].tolist()} for i in range(n)]
    return Examples.from_fields(rows)


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(INPUTS, 8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, CLASSES))


def trained(seed: int, n: int = 10, **config: float) -> dict[str, Tensor]:
    model = mlp()
    finetune(model, Classify(), examples(n), FinetuneConfig(**{"steps": 7, "batch_size": 4, **config}), seed)
    return model.state_dict()


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_a_seed_decides_every_bit():
    first = trained(3)
    torch.rand(17)  # whatever was drawn before
    assert same(trained(3), first)
    assert not same(trained(4), first)


@pytest.mark.parametrize("n", [10, 8, 3, 1])
def test_the_seed_decides_dropout_where_batches_cannot_differ(n):
    """All rows in each batch: what is left of the seed is their order and dropout."""
    first = trained(0, n, batch_size=n)
    assert same(trained(0, n, batch_size=n), first)
    assert not same(trained(1, n, batch_size=n), first)


def test_the_seed_decides_the_order_of_the_batches():
    def order(seed: int) -> list[list[int]]:
        task = Classify()
        finetune(mlp(), task, examples(10), FinetuneConfig(steps=7, batch_size=4), seed)
        return task.batches

    assert order(3) == order(3)
    assert order(3) != order(4)


@pytest.mark.parametrize(("n", "size"), [(10, 4), (7, 7), (3, 8), (9, 2), (1, 1)])
def test_an_epoch_sees_every_row_once(n, size):
    task = Classify()
    finetune(mlp(), task, examples(n), FinetuneConfig(steps=5 * n, batch_size=size), seed=0)
    seen = [row for batch in task.batches for row in batch]
    epochs = [seen[start : start + n] for start in range(0, len(seen) - n + 1, n)]
    assert len(task.batches) == 5 * n
    assert all(len(batch) == size for batch in task.batches) or n < size
    assert all(sorted(epoch) == list(range(n)) for epoch in epochs)
    assert n == 1 or len({tuple(epoch) for epoch in epochs}) > 1


def test_a_batch_larger_than_the_data_holds_each_row_once():
    task = Classify()
    finetune(mlp(), task, examples(3), FinetuneConfig(steps=4, batch_size=8), seed=0)
    assert [sorted(batch) for batch in task.batches] == [[0, 1, 2]] * 4


# ------------------------------------------------------------------ learning rates


def test_the_rate_rises_then_falls():
    config = FinetuneConfig(steps=100, learning_rate=0.4, warmup_steps=10)
    rates = [config.rate(step) for step in range(100)]
    assert rates[:10] == sorted(rates[:10])
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert max(rates) <= 0.4
    assert 0 < rates[-1] < 1e-3 * 0.4
    assert config.rate(50) == pytest.approx(0.2)  # half-way down the cosine
    # A tenth of the steps into a cosine is nearly its top, so the first step has a tenth of the peak.
    assert rates[0] == pytest.approx(0.04)


def test_without_a_warm_up_the_first_rate_is_the_peak():
    config = FinetuneConfig(steps=8, learning_rate=0.4, warmup_steps=0)
    assert config.rate(0) == 0.4
    assert config.rate(4) == pytest.approx(0.2)


@pytest.mark.parametrize("warmup", [0, 1, 5, 10])
def test_the_first_step_moves_every_weight_by_the_first_rate(warmup):
    """Adam's first step is the rate times the gradient's sign."""
    config = FinetuneConfig(steps=20, learning_rate=0.02, warmup_steps=warmup, max_grad_norm=1e9)
    model = nn.Linear(INPUTS, CLASSES)
    before = model.weight.detach().clone()
    task = Classify()
    once = config.model_copy(update={"steps": 1})
    finetune(model, task, examples(9), once, seed=0)
    moved = (model.weight.detach() - before).abs()
    torch.testing.assert_close(moved, torch.full_like(moved, once.rate(0)), rtol=1e-3, atol=0)
    assert once.rate(0) == pytest.approx(config.rate(0))


@pytest.mark.parametrize(
    "wrong",
    [{"steps": 0}, {"batch_size": 0}, {"learning_rate": 0}, {"learning_rate": -1}, {"stepps": 3}],
)
def test_a_config_that_cannot_run_is_refused(wrong):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        FinetuneConfig(**wrong)


# ------------------------------------------------------------------ what is left behind


def test_a_checkpoint_is_the_models_weights(tmp_path):
    model, config = mlp(), FinetuneConfig(steps=6, batch_size=4)
    places = {3: tmp_path / "half" / "way.safetensors", 6: tmp_path / "end.safetensors"}
    kept = finetune(model, Classify(), examples(10), config, seed=0, save_at=places)
    assert [c.path for c in kept] == [str(path) for path in places.values()]
    assert [c.learning_rate for c in kept] == [config.rate(2), config.rate(5)]
    assert same(load_file(places[6]), model.state_dict())
    assert not same(load_file(places[3]), model.state_dict())
    assert load_file(places[6]).keys() == model.state_dict().keys()

    again = mlp()
    load_weights(again, kept[1].weights(), kept[1].path)
    assert same(again.state_dict(), model.state_dict())
    assert not any(module.training for module in model.modules())


def test_saving_does_not_change_the_run(tmp_path):
    config = FinetuneConfig(steps=7, batch_size=4)
    model = mlp()
    finetune(model, Classify(), examples(10), config, 3, save_at={2: tmp_path / "2.safetensors"})
    assert same(model.state_dict(), trained(3))


class Tied(nn.Module):
    """An embedding that is its own output head, as in most language models."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(INPUTS, INPUTS, bias=False)
        self.head = nn.Linear(INPUTS, INPUTS, bias=False)
        self.head.weight = self.inner.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.inner(x)))


def test_a_shared_weight_is_saved_once_and_loads_again(tmp_path):
    model, config = Tied(), FinetuneConfig(steps=2, batch_size=4)
    (kept,) = finetune(model, Classify(), examples(10), config, 0, save_at={2: tmp_path / "end.safetensors"})
    assert list(kept.weights()) == ["inner.weight"]
    again = Tied()
    load_weights(again, kept.weights(), kept.path)
    assert torch.equal(again.head.weight, model.head.weight)


def test_frozen_weights_stay():
    model = mlp()
    model[0].requires_grad_(False)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    finetune(model, Classify(), examples(10), FinetuneConfig(steps=3), seed=0)
    after = model.state_dict()
    assert torch.equal(after["0.weight"], before["0.weight"])
    assert not torch.equal(after["3.weight"], before["3.weight"])


# ------------------------------------------------------------------ errors


def test_a_loss_that_explodes_is_named():
    config = FinetuneConfig(steps=20, learning_rate=1e30, warmup_steps=0)
    steep = nn.Sequential(nn.Linear(INPUTS, 8), nn.Linear(8, CLASSES))
    with pytest.raises(InputError, match=r"the loss is (nan|inf) at step [1-9]\d*; lower the learning rate"):
        finetune(steep, Classify(), examples(10), config, seed=0)


def test_no_examples_are_refused():
    with pytest.raises(InputError, match="nothing to train on"):
        finetune(mlp(), Classify(), examples(3)[:0], FinetuneConfig(), seed=0)
