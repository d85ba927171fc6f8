"""Recording inside a Trainer: what was recorded, run again, ends where the Trainer ended."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from attribution_cases import Classify, contents, exact_gradients, examples, llama, mlp
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from backcast import RecorderCallback
from backcast.attribution import Recording, collect
from backcast.attribution.replay import Trajectory
from backcast.data import Example, Examples
from backcast.errors import InputError
from backcast.kernels import SketchSpec
from backcast.tasks import Batch, CausalLMTask, Task
from backcast.tasks.hashes import weights_hash

WORDS = 13


class Words(CausalLMTask):
    """A language model's loss on token ids that are given."""

    def __init__(self, reduction: Any = "sum") -> None:
        super().__init__(tokenizer=None, reduction=reduction)

    def length(self, example: Example) -> int:
        return len(example.fields["ids"])

    def collate(self, examples: Sequence[Example]) -> Batch:
        length = max(len(e.fields["ids"]) for e in examples)
        rows = [e.fields["ids"] + [0] * (length - len(e.fields["ids"])) for e in examples]
        ids = torch.tensor(rows)
        mask = (ids != 0).long()
        return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(ids == 0, -100)}


def words(n: int) -> Examples:
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(1, WORDS, (4 + i % 5,), generator=generator).tolist() for i in range(n)]
    return Examples.from_fields([{"text": f"{i}", "ids": ids[i]} for i in range(n)])


class Vectors(nn.Module):
    """A classifier as a Trainer wants it, which does not ask for the number of labels."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp()

    def forward(self, x: Tensor, y: Tensor | None = None) -> Any:
        logits = self.body(x)
        return logits if y is None else {"loss": F.cross_entropy(logits, y), "logits": logits}


def arguments(path: Path, **more: Any) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(path / "trainer"),
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        **{
            "per_device_train_batch_size": 2,
            "num_train_epochs": 2,
            "learning_rate": 0.01,
            "weight_decay": 0.1,
            "max_grad_norm": 0.5,
            "warmup_steps": 2,
            "lr_scheduler_type": "cosine",
            "save_strategy": "no",
            **more,
        },
    )


def replayed(make: Any, task: Task, train: Examples, path: Path) -> Tensor:
    """Where the recorded run ends when it is run again, from its own start."""
    trajectory = Trajectory(make(), task, train, Recording.open(path))
    with trajectory.borrowed():
        return trajectory.run().theta.detach()


def reached(model: nn.Module, path: Path) -> Tensor:
    parameters = dict(model.named_parameters())
    groups = Recording.open(path).optimizer.groups
    return torch.cat([parameters[name].detach().flatten() for group in groups for name in group["names"]])


def dropping_llama() -> nn.Module:
    model = llama(WORDS)
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.3
    return model


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"gradient_accumulation_steps": 3},
        {"train_sampling_strategy": "group_by_length", "gradient_accumulation_steps": 2},
        {"dataloader_num_workers": 2, "gradient_accumulation_steps": 2},
    ],
    ids=lambda more: ",".join(more) or "plain",
)
def test_a_language_models_run_ends_where_the_trainer_did(more: dict[str, Any], tmp_path: Path) -> None:
    """With dropout, and eleven rows in batches of two, so that neither an epoch nor its last accumulation is full.

    The rows are given as examples and, otherwise, as a prepared data set with a column that the model does not take.
    """
    task, train, out = Words(), words(11), tmp_path / "run"
    model = dropping_llama()
    prepared = datasets.Dataset.from_list([{"input_ids": e.fields["ids"], "name": e.id} for e in train])
    trainer = Trainer(
        model,
        arguments(tmp_path, **more),
        train_dataset=prepared if more else train,
        data_collator=padded if more else task.collate,
    )
    trainer.add_callback(RecorderCallback(trainer, train, out, task=task))
    trainer.train()
    recording = Recording.open(out)
    rows = [row for step in recording.steps for batch in step.batches for row in batch]
    assert sorted(rows[:11]) == sorted(rows[11:]) == list(range(11))
    assert len({step.rates for step in recording.steps}) > 2
    assert recording.optimizer.max_grad_norm == 0.5
    assert {group["weight_decay"] for group in recording.optimizer.groups} == {0.0, 0.1}
    assert recording.end == weights_hash(model)
    torch.testing.assert_close(
        replayed(dropping_llama, task, train, out), reached(model, out), rtol=0, atol=1e-6
    )


def padded(items: list[dict[str, Any]]) -> dict[str, Tensor]:
    assert set(items[0]) == {"input_ids"}  # what the model does not take is gone
    return dict(
        Words().collate(Examples.from_fields([{"text": "", "ids": item["input_ids"]} for item in items]))
    )


def test_a_run_of_means_ends_where_the_trainer_did(tmp_path: Path) -> None:
    task, train, out = Classify(), examples(11), tmp_path / "run"
    model = Vectors()
    trainer = Trainer(
        model,
        arguments(tmp_path, gradient_accumulation_steps=2, label_names=["y"]),
        train_dataset=train,
        data_collator=task.collate,
        eval_dataset=examples(4, seed=1),
    )
    trainer.add_callback(RecorderCallback(trainer, train, out, task=task))
    trainer.train()
    torch.testing.assert_close(replayed(Vectors, task, train, out), reached(model, out), rtol=0, atol=1e-6)
    assert trainer.evaluate()["eval_loss"] > 0  # its batches are as they were


class Stop(TrainerCallback):
    """Breaks the run off after some steps."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **of: Any) -> None:
        if state.global_step == self.step:
            raise ConnectionError


@pytest.mark.parametrize(
    "more", [{}, {"train_sampling_strategy": "group_by_length"}], ids=["shuffled", "by length"]
)
def test_a_run_that_goes_on_from_a_checkpoint_neither_loses_nor_repeats_a_row(
    more: dict[str, Any], tmp_path: Path
) -> None:
    """Broken off at step 7, two steps after the checkpoint; the whole folder is that of an unbroken run."""
    task, train = Words(), words(11)
    prepared = [{"input_ids": e.fields["ids"]} for e in train]

    def trained(name: str, stop: int | None, resume: bool) -> nn.Module:
        args = arguments(tmp_path / name, save_strategy="steps", save_steps=5, save_total_limit=3, **more)
        model = dropping_llama()
        trainer = Trainer(model, args, train_dataset=prepared, data_collator=padded)
        trainer.add_callback(
            RecorderCallback(trainer, train, tmp_path / name / "run", task=task, spec=SketchSpec("sjlt", 16))
        )
        if stop:
            trainer.add_callback(Stop(stop))
        trainer.train(
            resume_from_checkpoint=str(tmp_path / name / "trainer/checkpoint-5") if resume else None
        )
        return model

    whole = trained("whole", None, False)
    with pytest.raises(ConnectionError):
        trained("broken", 7, False)
    assert len(Recording.open(tmp_path / "broken/run").steps) == 7
    assert Recording.open(tmp_path / "broken/run").end is None
    assert weights_hash(trained("broken", None, True)) == weights_hash(whole)
    a, b = (contents(tmp_path / name / "run") for name in ("whole", "broken"))
    assert a == b
    steps = Recording.open(tmp_path / "broken/run").sketches()
    assert [step for step, *_ in steps] == list(range(12))


def test_a_checkpoint_holds_the_sketches_up_to_it(tmp_path: Path) -> None:
    """They are on disk before it, though no shard is full; killed outright there, nothing would be missing."""
    task, train, out = Words(), words(8), tmp_path / "run"
    seen = []

    class Look(TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **of: Any) -> None:
            seen.append([step for step, *_ in Recording.open(out).sketches()])

    trainer = Trainer(
        llama(WORDS),
        arguments(tmp_path, save_strategy="steps", save_steps=3, max_steps=6),
        train_dataset=train,
        data_collator=task.collate,
        callbacks=[Look()],
    )
    trainer.add_callback(RecorderCallback(trainer, train, out, task=task, spec=SketchSpec("sjlt", 16)))
    trainer.train()
    assert seen == [[0, 1, 2], [0, 1, 2, 3, 4, 5]]


def test_sketches_are_of_the_examples_own_gradients(tmp_path: Path) -> None:
    """The first step's, whose weights are the start's: those that a collection makes of it."""
    task, train, out = Words(), words(8), tmp_path / "run"
    model, spec = llama(WORDS), SketchSpec("kron", 64)
    store = collect(model, task, train, tmp_path / "store", spec=spec)
    trainer = Trainer(
        model,
        arguments(tmp_path, gradient_accumulation_steps=2, max_steps=2),
        train_dataset=train,
        data_collator=task.collate,
    )
    trainer.add_callback(RecorderCallback(trainer, train, out, task=task, spec=spec))
    trainer.train()
    step, rows, sketches, rates = next(Recording.open(out).sketches())
    assert (step, len(rows), len(rates)) == (0, 4, 2)
    np.testing.assert_allclose(sketches, store.sketches()[rows], atol=1e-5 * np.abs(sketches).max())


def test_values_are_of_the_trainers_own_step(tmp_path: Path) -> None:
    """η/(number of labels) ⟨∇ℓ(x), ∇ℓ(z)⟩ of the sums over labels, by a loop over single examples."""
    task, train, out = Words(), words(8), tmp_path / "run"
    model = llama(WORDS)
    gradients = exact_gradients(model, task, train, dict(model.named_parameters()))
    flat = torch.cat([g.flatten(1) for g in gradients.values()], 1)
    plain = {"optim": "sgd", "lr_scheduler_type": "constant", "warmup_steps": 0, "max_grad_norm": 0.0}
    trainer = Trainer(
        model,
        arguments(tmp_path, gradient_accumulation_steps=2, max_steps=1, **plain),
        train_dataset=train,
        data_collator=task.collate,
    )
    trainer.add_callback(RecorderCallback(trainer, train, out, task=task, target=train[:2]))
    trainer.train()
    ((_, rows, values),) = Recording.open(out).contributions()
    labels = sum(task.length(train[int(row)]) - 1 for row in rows)
    wanted = 0.01 / labels * flat[rows] @ flat[:2].T
    np.testing.assert_allclose(values[:, 0], wanted, rtol=1e-4, atol=1e-5 * wanted.abs().max().item())


def test_what_is_not_the_trainers_loss_is_refused(tmp_path: Path) -> None:
    train = words(8)

    def run(task: Task, given: Examples) -> None:
        trainer = Trainer(
            llama(WORDS), arguments(tmp_path, max_steps=1), train_dataset=train, data_collator=Words().collate
        )
        trainer.add_callback(RecorderCallback(trainer, given, tmp_path / "run", task=task))
        trainer.train()

    with pytest.raises(InputError, match=r'reduction="sum"'):
        run(Words("mean"), train)
    with pytest.raises(InputError, match="8 rows, not the 7 examples"):
        run(Words(), train[:7])
    run(Words(), train)


@pytest.mark.parametrize(
    ("option", "what"),
    [
        (
            {"load_best_model_at_end": True, "save_strategy": "epoch", "eval_strategy": "epoch"},
            "load_best_model_at_end",
        ),
        ({"label_smoothing_factor": 0.1}, "label smoothing"),
    ],
)
def test_a_trainer_whose_steps_cannot_be_recorded_is_refused(
    option: dict[str, Any], what: str, tmp_path: Path
) -> None:
    train = words(4)
    args = arguments(tmp_path, **option)
    trainer = Trainer(
        llama(WORDS), args, train_dataset=train, data_collator=Words().collate, eval_dataset=train
    )
    with pytest.raises(InputError, match=what):
        RecorderCallback(trainer, train, tmp_path / "run", task=Words())
