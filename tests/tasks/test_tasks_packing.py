"""Packed rows: several examples in one, and every number the same as in rows of their own."""

from __future__ import annotations

import copy
import pickle
import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tasks_cases import WORDS, gpt2, llama, word_tokenizer
from torch import Tensor, nn

from backcast.attribution import collect
from backcast.data import Examples
from backcast.errors import InputError
from backcast.finetune.train import FinetuneConfig, finetune
from backcast.tasks import CausalLMTask
from backcast.tasks.causal_lm import packed_rows
from backcast.tasks.head import IGNORE

draw = random.Random(0)


def words(count: int) -> str:
    return " ".join(draw.choice(WORDS) for _ in range(count))


ROWS = Examples.from_fields(
    [{"prompt": words(draw.randint(1, 9)), "response": words(draw.randint(1, 5))} for _ in range(9)]
    + [{"text": words(draw.randint(2, 20))} for _ in range(4)]
)


def tasks(**options: Any) -> tuple[CausalLMTask, CausalLMTask]:
    """Padded and packed."""
    padded, packed = (CausalLMTask(word_tokenizer(), packed=p, **options) for p in (False, True))
    return padded, packed


@pytest.mark.parametrize(
    "lengths", [[5], [3, 3, 3], [9, 1, 8, 2, 4, 4, 1], [1] * 7 + [7], list(range(1, 30))]
)
def test_every_example_is_in_one_row_and_fits(lengths):
    rows = packed_rows(lengths)
    assert sorted(b for row in rows for b in row) == list(range(len(lengths)))
    assert all(sum(lengths[b] for b in row) <= max(lengths) for row in rows)
    assert [row[0] for row in rows] == sorted(row[0] for row in rows)
    # No two rows of first-fit would fit into one.
    sums = sorted(sum(lengths[b] for b in row) for row in rows)
    assert len(sums) == 1 or sums[0] + sums[1] > max(lengths)


def test_a_packed_batch_is_smaller_and_holds_the_same_tokens():
    padded, packed = (task.collate(ROWS) for task in tasks())
    assert packed["input_ids"].numel() < 0.75 * padded["input_ids"].numel()
    for b in range(len(ROWS)):
        own = padded["attention_mask"][b].bool()
        mine = packed["owner"] == b
        assert torch.equal(packed["input_ids"][mine], padded["input_ids"][b][own])
        assert torch.equal(packed["position_ids"][mine], torch.arange(int(own.sum())))
        assert torch.equal(packed["labels"][mine][1:], padded["labels"][b][own][1:])
        assert packed["labels"][mine][0] == IGNORE


@pytest.mark.parametrize("make", [llama, gpt2])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("frozen", [False, True])
def test_packed_and_padded_batches_give_equal_results(make, reduction, frozen):
    model, (padded, packed) = make(), tasks(reduction=reduction)
    model.requires_grad_(not frozen)  # a frozen head's loss is fused
    for method in ("loss", "training_losses", "output", "errors", "perplexity", "features"):
        expected, got = (getattr(task, method)(model, task.collate(ROWS)) for task in (padded, packed))
        assert expected.shape[0] == len(ROWS)
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    assert packed.evaluate(model, ROWS) == pytest.approx(padded.evaluate(model, ROWS), rel=1e-6)


@pytest.mark.parametrize("make", [llama, gpt2])
def test_gradients_of_one_examples_loss_are_equal(make):
    model = make()
    weights = list(model.parameters())
    expected, got = (
        torch.stack(
            [
                torch.cat([g.flatten() for g in torch.autograd.grad(losses[b], weights, retain_graph=True)])
                for b in range(len(ROWS))
            ]
        )
        for task in tasks()
        for losses in [task.loss(model, task.collate(ROWS))]
    )
    assert (got - expected).norm(dim=1).max() <= 1e-5 * expected.norm(dim=1).min()


def test_a_packed_fine_tune_goes_where_a_padded_one_goes():
    start = llama()
    ends = []
    for task in tasks():
        model = copy.deepcopy(start)
        finetune(model, task, ROWS, FinetuneConfig(steps=5, batch_size=6), seed=0)
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    moved = ends[0] - torch.cat([p.detach().flatten() for p in start.parameters()])
    assert (ends[1] - ends[0]).norm() <= 1e-3 * moved.norm()


def test_a_task_travels_to_another_process_once_it_has_run():
    model, (_, packed) = llama(), tasks()
    batch = packed.collate(ROWS)
    losses = packed.loss(model, batch)
    copied = pickle.loads(pickle.dumps(packed))
    assert torch.equal(copied.collate(ROWS)["input_ids"], batch["input_ids"])
    assert torch.equal(copied.loss(model, batch), losses)


class Running(nn.Module):
    """A model whose every token sees all before it in the row, whatever the positions say."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        size = len(word_tokenizer())
        self.embedding, self.cell = nn.Embedding(size, 8), nn.GRU(8, size, batch_first=True)

    def forward(self, input_ids: Tensor, **others: Any) -> Any:
        return SimpleNamespace(logits=self.cell(self.embedding(input_ids))[0])


def test_a_model_that_mixes_packed_examples_is_refused():
    padded, packed = tasks()
    model = Running()
    assert padded.loss(model, padded.collate(ROWS)).isfinite().all()
    with pytest.raises(InputError, match="Running lets an example see those before it in a packed row"):
        packed.loss(model, packed.collate(ROWS))
    alone = packed.collate(ROWS[:1])  # nothing to mix
    torch.testing.assert_close(packed.loss(model, alone), padded.loss(model, padded.collate(ROWS[:1])))


def test_the_check_leaves_the_mode_and_the_random_numbers_of_training_alone():
    model, (_, packed) = gpt2(), tasks()
    model.train()
    torch.manual_seed(3)
    first = packed.loss(model, packed.collate(ROWS))
    torch.manual_seed(3)
    again = packed.loss(model, packed.collate(ROWS))
    assert all(module.training for module in model.modules())
    assert torch.equal(first, again)


def test_sketches_of_packed_rows_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"packed rows hold several examples.*packed=False"):
        collect(llama(), tasks()[1], ROWS, tmp_path / "s")


def test_packing_changes_nothing_that_a_store_depends_on():
    padded, packed = tasks()
    assert padded.settings() == packed.settings()
    assert [padded.length(e) for e in ROWS] == [packed.length(e) for e in ROWS]


def log_odds(p: Tensor) -> Tensor:
    return (p / (1 - p)).log()


@pytest.mark.parametrize("frozen", [False, True])
def test_output_errors_and_perplexity_are_their_formulas(frozen):
    model = llama().double().requires_grad_(not frozen)
    for reduction in ("mean", "sum"):
        task = CausalLMTask(word_tokenizer(), reduction)
        batch = task.collate(ROWS)
        outputs, errors, perplexities = (f(model, batch) for f in (task.output, task.errors, task.perplexity))
        for b in range(len(ROWS)):
            one = task.collate(ROWS[b : b + 1])
            p = model(input_ids=one["input_ids"]).logits[0, :-1].softmax(1)
            labels = one["labels"][0, 1:]
            learnt = labels != IGNORE
            onehot = torch.eye(p.shape[1], dtype=p.dtype)[labels[learnt]]
            own = (p[learnt] * onehot).sum(1)
            odds = log_odds(own)
            expected = odds.sum() if reduction == "sum" else odds.mean()
            assert outputs[b].item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-5)
            assert errors[b].item() == pytest.approx((p[learnt] - onehot).norm(dim=1).mean().item(), rel=1e-5)
            assert perplexities[b].item() == pytest.approx((-own.log().mean()).exp().item(), rel=1e-5)


def test_the_outputs_gradient_is_autograds_where_the_head_is_frozen(monkeypatch):
    """Its logits are taken a block of tokens at a time, and again in the backward."""
    monkeypatch.setattr("backcast.tasks.head.LEAST", 1)
    monkeypatch.setattr("backcast.tasks.head.BLOCK", 7 * len(word_tokenizer()))
    task, model = CausalLMTask(word_tokenizer()), llama()
    batch = task.collate(ROWS)
    weight = model.model.layers[0].mlp.up_proj.weight
    (whole,) = torch.autograd.grad(task.output(model, batch).sum(), weight)
    model.lm_head.requires_grad_(False)
    (blocked,) = torch.autograd.grad(task.output(model, batch).sum(), weight)
    assert (blocked - whole).norm() <= 1e-5 * whole.norm()


def test_features_are_the_mean_of_the_last_hidden_states():
    model, task = llama(), CausalLMTask(word_tokenizer())
    got = task.features(model, task.collate(ROWS))
    for b in range(len(ROWS)):
        ids = task.collate(ROWS[b : b + 1])["input_ids"]
        hidden = model(input_ids=ids, output_hidden_states=True).hidden_states[-1][0]
        torch.testing.assert_close(got[b], hidden.mean(0), rtol=1e-5, atol=1e-5)


def test_a_model_without_a_linear_head_has_no_features():
    task = CausalLMTask(word_tokenizer())
    with pytest.raises(InputError, match=r"CausalLMTask defines no representation.*override features\(\)"):
        task.features(Running(), task.collate(ROWS))
