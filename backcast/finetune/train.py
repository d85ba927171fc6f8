"""One fine-tune on one set of examples."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors.torch import save
from torch import nn

from backcast.attribution import Checkpoint
from backcast.data import Examples
from backcast.errors import InputError
from backcast.files import write_atomic
from backcast.progress import progress
from backcast.tasks import Task, on_device


class FinetuneConfig(BaseModel):
    """How a fine-tune runs; the same for every subset of a sweep, so that only the data differ.

    The number of steps is fixed, not the number of epochs: a small subset is seen more often.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(default=100, ge=1)
    batch_size: int = Field(default=64, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    warmup_steps: int = Field(default=10, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)

    def rate(self, step: int) -> float:
        """The learning rate of a step: a linear warm-up, then half a cosine down to zero."""
        rising = min(1.0, (step + 1) / max(1, self.warmup_steps))
        return self.learning_rate * rising * 0.5 * (1 + math.cos(math.pi * step / self.steps))


def finetune(
    model: nn.Module,
    task: Task,
    examples: Examples,
    config: FinetuneConfig,
    seed: int,
    save_at: Mapping[int, str | Path] | None = None,
) -> list[Checkpoint]:
    """Train ``model`` in place with AdamW on ``examples``; the seed decides the order of the batches and dropout.

    Args:
        save_at: steps after which the weights are written, and the ``.safetensors`` files to write.

    Returns:
        The written checkpoints, in order, each with the learning rate of its step.

    Raises:
        InputError: no examples, or a loss that stops being finite.
    """
    if len(examples) == 0:
        raise InputError("nothing to train on: there are no examples")
    torch.manual_seed(seed)
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad],
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
    )
    checkpoints: list[Checkpoint] = []
    model.train()
    with progress(f"fine-tune on {len(examples)}", config.steps) as done:
        for step, rows in zip(
            range(config.steps), _shuffled(len(examples), config.batch_size, seed), strict=False
        ):
            for group in optimizer.param_groups:
                group["lr"] = config.rate(step)
            objective = task.objective(model, on_device(task.collate(examples[rows]), model))
            if not torch.isfinite(objective):
                raise InputError(f"the loss is {objective.item()} at step {step}; lower the learning rate")
            optimizer.zero_grad()
            objective.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
            optimizer.step()
            done(1)
            if save_at and step + 1 in save_at:
                checkpoints.append(_save(model, save_at[step + 1], config.rate(step)))
    model.eval()
    return checkpoints


def _shuffled(n: int, size: int, seed: int) -> Iterator[list[int]]:
    """Batches of row numbers without end: a new permutation each epoch, batches full across their borders."""
    generator = torch.Generator().manual_seed(seed)
    waiting: list[int] = []
    while True:
        while len(waiting) < min(size, n):
            waiting += torch.randperm(n, generator=generator).tolist()
        yield waiting[:size]
        waiting = waiting[size:]


def _save(model: nn.Module, path: str | Path, rate: float) -> Checkpoint:
    state = model.state_dict()
    names = [name for name, _ in (*model.named_parameters(), *model.named_buffers())]  # a shared tensor once
    write_atomic(path, save({name: state[name].contiguous() for name in names if name in state}))
    return Checkpoint(str(path), rate)
