"""Recording inside a Hugging Face Trainer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.data import Dataset, IterableDataset
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from backcast.attribution.recording.recorder import Recorder
from backcast.data import Examples
from backcast.errors import InputError
from backcast.kernels import SketchSpec
from backcast.tasks import Task, on_device

#: The rows' name in a batch, until the model is called.
ROWS = "backcast_rows"
#: How far, of its value, the task's loss of the first batch may be from the Trainer's.
FAR = 0.01


class RecorderCallback(TrainerCallback):
    """A `Recorder` in a Trainer, on one process::

        trainer = Trainer(model, args, train_dataset=examples, data_collator=task.collate)
        trainer.add_callback(RecorderCallback(trainer, examples, "runs/a", task=task))
        trainer.train()

    The Trainer's data set and collator are wrapped, so that each batch carries its rows as far as the model. The scale
    of a micro-batch is that of the Trainer's loss: 1/(number of labels in all the step's micro-batches), for a task
    whose losses are sums over an example's labels, where the model takes that number, as transformers' language models
    do; else 1/(rows · micro-batches), for means. That the task's loss of the first batch, so scaled, is the Trainer's
    own is checked.

    On ``resume_from_checkpoint`` the recording goes on after the checkpoint's step.

    Args:
        trainer: before it trains. Its data set holds the examples in their order, as they are or prepared.
        examples: the n examples.
        out: the recording's folder.
        task: what an example's loss is.
        spec: see `Recorder`.
        target: see `Recorder`.
        groups: see `Recorder`.
        order: see `Recorder`.

    Raises:
        InputError: a Trainer whose steps cannot be recorded, or, once it trains, whose loss is not the task's.
    """

    def __init__(
        self,
        trainer: Trainer,
        examples: Examples,
        out: str | Path,
        *,
        task: Task,
        spec: SketchSpec | None = None,
        target: Examples | None = None,
        groups: Sequence[str] | None = None,
        order: Literal[1, 2] = 1,
    ) -> None:
        _check(trainer, examples)
        self.trainer, self.examples, self.task = trainer, examples, task
        self._options: dict[str, Any] = {"spec": spec, "target": target, "groups": groups, "order": order}
        self._out = out
        self._recorder: Recorder | None = None
        self._hooks: list[Any] = []
        numbered = _Numbered(trainer.train_dataset, trainer.data_collator)
        trainer.train_dataset, trainer.data_collator = numbered, numbered.collate

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **of: Any
    ) -> None:
        self._close(RuntimeError)  # a run that broke off
        model, optimizer = of["model"], of["optimizer"]
        self._recorder = Recorder(
            model,
            getattr(optimizer, "optimizer", optimizer),  # in accelerate's wrapper
            self.examples,
            self._out,
            task=self.task,
            max_grad_norm=args.max_grad_norm or None,
            step=state.global_step,
            **self._options,
        ).__enter__()
        self._hooks = [model.register_forward_pre_hook(self._before_forward, with_kwargs=True)]
        self._checked = False

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **of: Any
    ) -> None:
        # Samplers draw the epoch's order from torch's generator: it must be the same order when the run goes on.
        assert self._recorder is not None
        torch.manual_seed(self._recorder.seed - 1 - int(state.epoch or 0))

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **of: Any
    ) -> None:
        assert self._recorder is not None
        if control.should_save:  # before the checkpoint is there
            self._recorder.flush()

    on_epoch_end = on_step_end

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **of: Any
    ) -> None:
        if self._recorder is not None:
            self._recorder.flush()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **of: Any
    ) -> None:
        self._close(None)

    def _close(self, kind: type[BaseException] | None) -> None:
        for hook in self._hooks:
            hook.remove()
        if self._recorder is not None:
            self._recorder.__exit__(kind, None, None)
        self._recorder = None

    def _before_forward(
        self, model: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        rows = keywords.pop(ROWS, None)
        if rows is not None and torch.is_grad_enabled():
            assert self._recorder is not None
            labels = keywords.get("num_items_in_batch")
            parts = self.trainer.current_gradient_accumulation_steps
            scale = 1 / (len(rows) * parts) if labels is None else 1 / float(labels)
            own = None if self._checked else scale * self._losses(model, rows.tolist())
            self._recorder.batch(rows.tolist(), scale)
            if own is not None:
                self._check_loss(model, own, parts if labels is None else 1)
        return arguments, keywords

    def _losses(self, model: nn.Module, rows: list[int]) -> float:
        """The sum of the task's, in a forward as the one that comes next."""
        assert self._recorder is not None
        buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
        torch.manual_seed(self._recorder.seed + self._recorder.step)
        with torch.no_grad():
            batch = on_device(self.task.collate(self.examples[rows]), model)
            total = float(self.task.training_losses(model, batch).sum())
            for buffer, value in buffers:
                buffer.copy_(value)
        return total

    def _check_loss(self, model: nn.Module, own: float, parts: int) -> None:
        """Have the next forward's loss, divided by ``parts``, compared with the task's."""

        def compare(model: nn.Module, arguments: Any, output: Any) -> None:
            handle.remove()
            whole = output["loss"] if isinstance(output, dict) else output[0]
            loss = float(whole.detach()) / parts
            if abs(loss - own) > FAR * abs(loss):
                raise InputError(
                    f"the Trainer's first loss is {loss:.6g} where {type(self.task).__name__}'s is {own:.6g}: its data "
                    'set must hold the examples in order, padded as by the task, and the task sum (reduction="sum") '
                    "where the model divides by the number of labels"
                )
            self._checked = True

        handle = model.register_forward_hook(compare)
        self._hooks.append(handle)


class _Numbered(Dataset):
    """A data set, and its collator, whose batches hold the positions that they were made of.

    A loader asks for a batch's items with `__getitems__`, and then collates them, in the same process; whoever else
    reads items leaves no trace. The items stay as they are, so columns may be removed from them.
    """

    def __init__(self, dataset: Any, collator: Callable[[list[Any]], Any]) -> None:
        self.dataset, self.collator = dataset, collator
        self._rows: list[int] | None = None

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, row: int) -> Any:
        return self.dataset[row]

    def __getitems__(self, rows: list[int]) -> list[Any]:
        self._rows = rows
        return [self.dataset[row] for row in rows]

    def collate(self, items: list[Any]) -> Any:
        batch = self.collator(items)
        if self._rows is not None:
            batch[ROWS] = torch.tensor(self._rows)
            self._rows = None
        return batch


def _check(trainer: Trainer, examples: Examples) -> None:
    args, dataset = trainer.args, trainer.train_dataset
    if dataset is None or isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__"):
        raise InputError(
            "the Trainer's data set has no rows to count; give it one with a length, not a stream"
        )
    if len(dataset) != len(examples):  # type: ignore[arg-type]
        raise InputError(
            f"the Trainer's data set has {len(dataset)} rows, not the {len(examples)} examples; "  # type: ignore[arg-type]
            "give both in the same order"
        )
    unsupported = {
        "several processes or devices": args.world_size > 1 or args.n_gpu > 1,
        "fp16, whose steps may be skipped": args.fp16,
        "torch_compile": args.torch_compile,
        "label smoothing": trainer.label_smoother is not None,
        "a compute_loss_func": trainer.compute_loss_func is not None,
        "load_best_model_at_end, after which the model is not the run's end": args.load_best_model_at_end,
    }
    if present := [what for what, there in unsupported.items() if there]:
        raise InputError(f"a Trainer with {present[0]} cannot be recorded; train without")
