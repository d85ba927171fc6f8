"""A recorded run as a function of its examples' weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from backcast.attribution.recording import Recording
from backcast.attribution.replay.optimizers import Rule, clip, rule
from backcast.data import Examples
from backcast.errors import InputError
from backcast.tasks import Task, on_device


@dataclass(frozen=True)
class State:
    """A point between two steps.

    Attributes:
        theta: (N,) the trained parameters, flat, in the order of the optimizer's groups.
        slots: (N,) each, the optimizer's.
        buffers: the model's, such as running statistics.
    """

    theta: Tensor
    slots: tuple[Tensor, ...]
    buffers: tuple[Tensor, ...]

    def nbytes(self) -> int:
        return sum(x.nbytes for x in (self.theta, *self.slots, *self.buffers))


class Trajectory:
    """Runs a recording's steps again, from the same start and on the same batches, with weights of the examples.

    Args:
        model: of the recorded architecture; its parameters are put aside within `borrowed`.
        task: the recorded one; its `training_losses` are what is minimised.
        examples: what was trained on.
        recording: the run.

    Raises:
        InputError: examples or a model that are not the recorded ones.
    """

    def __init__(self, model: nn.Module, task: Task, examples: Examples, recording: Recording) -> None:
        if examples.index.ids != recording.rows.ids:
            raise InputError(
                f"{recording.path}: recorded on {len(recording.rows)} other examples than the {len(examples)} given; "
                "give those it was trained on, in their order"
            )
        said = {"task": type(task).__name__, "settings": json.loads(json.dumps(dict(task.settings())))}
        ran = {key: recording.origin.get(key, said[key]) for key in said}
        if said != ran:
            raise InputError(
                f"{recording.path}: trained by {ran['task']} {ran['settings']}, not by {said['task']} "
                f"{said['settings']}; give the task of the run"
            )
        self.model, self.task, self.examples, self.recording = model, task, examples, recording
        self.steps = recording.steps
        own = dict(model.named_parameters())
        names = [name for group in recording.optimizer.groups for name in group["names"]]
        if missing := [name for name in names if name not in own]:
            raise InputError(
                f"{recording.path}: trains {missing[0]}, which this {type(model).__name__} has not"
            )
        self.names, self.parameters = names, [own[name] for name in names]
        self.rules = [rule(recording.optimizer.kind, group) for group in recording.optimizer.groups]
        self._start = recording.start()
        for name, p in own.items():
            value = self._start.get(f"weights/{name}")
            if value is None or value.shape != p.shape:
                raise InputError(
                    f"{recording.path}: ran with another {name} than this {type(model).__name__}'s"
                )

    @contextmanager
    def borrowed(self) -> Iterator[None]:
        """The model in training mode and at the run's disposal; as it was on leaving."""
        own = [(p, p.data, p.requires_grad) for p in self.model.parameters()]
        buffers = [(b, b.clone()) for b in self.model.buffers()]
        modes = {module: module.training for module in self.model.modules()}
        names = {p: name for name, p in self.model.named_parameters()}
        random = torch.get_rng_state()
        try:
            self.model.train()
            trained = set(self.parameters)
            for p, value, _ in own:
                p.requires_grad_(p in trained)
                p.data = self._start[f"weights/{names[p]}"].to(value.device, value.dtype)
            yield
        finally:
            for p, value, trainable in own:
                p.data = value
                p.requires_grad_(trainable)
            with torch.no_grad():
                for b, value in buffers:
                    b.copy_(value)
            for module, mode in modes.items():
                module.training = mode
            torch.set_rng_state(random)

    def start(self) -> State:
        """The state before the first step."""
        device = self.parameters[0].device
        own = dict(self.model.named_buffers())
        buffers = (
            self._start.get(f"weights/{name}", value).to(device, copy=True) for name, value in own.items()
        )
        return State(
            theta=self._flat("weights"),
            slots=tuple(self._flat(f"optimizer/{slot}") for slot in self.rules[0].slots),
            buffers=tuple(buffers),
        )

    def load(self, state: State) -> None:
        """Put the state's parameters and buffers into the model."""
        sizes = [p.numel() for p in self.parameters]
        for p, value in zip(self.parameters, state.theta.split(sizes), strict=True):
            p.data = value.view(p.shape)
        with torch.no_grad():
            for b, value in zip(self.model.buffers(), state.buffers, strict=True):
                b.copy_(value)

    def run(self, weights: Tensor | None = None) -> State:
        """The final state of the run with weights (n,); without them of the recorded one."""
        state = self.start()
        for t in range(len(self.steps)):
            state = self.advance(state, t, weights)
        return state

    def advance(self, state: State, t: int, weights: Tensor | None = None) -> State:
        """The state after step t. Examples of weight zero are left out of their batches."""
        self.load(state)
        total = torch.zeros_like(state.theta)
        for objective, _ in self.objectives(t, weights):
            total += flat(torch.autograd.grad(objective, self.parameters, materialize_grads=True))
        return self.updated(state, t, total)

    def objectives(self, t: int, weights: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """For each micro-batch of step t its share of the objective, and the weights (B,) that it is a function of."""
        step = self.steps[t]
        torch.manual_seed(step.seed)
        for rows, scale in zip(step.batches, step.scales, strict=True):
            kept = list(rows) if weights is None else [row for row in rows if weights[row] != 0]
            if not kept:
                continue
            device = self.parameters[0].device
            w = torch.ones(len(kept)) if weights is None else weights[kept]
            w = w.to(device, self.parameters[0].dtype).requires_grad_()
            batch = on_device(self.task.collate(self.examples[kept]), self.model)
            yield scale * (w * self.task.training_losses(self.model, batch)).sum(), w

    def updated(self, state: State, t: int, g: Tensor) -> State:
        """The state after a step of the gradient g (N,), with the model's present buffers."""
        most = self.recording.optimizer.max_grad_norm
        g = g if most is None else clip(g, most)
        parts = []
        for part, each, rate in self.by_group(t):
            slots = tuple(slot[part] for slot in state.slots)
            parts.append(each.step(state.theta[part], slots, g[part], rate, self.number(t)))
        return State(
            theta=torch.cat([theta for theta, _ in parts]),
            slots=tuple(torch.cat(slot) for slot in zip(*(slots for _, slots in parts), strict=True)),
            buffers=tuple(b.clone() for b in self.model.buffers()),
        )

    def by_group(self, t: int) -> Iterator[tuple[slice, Rule, float]]:
        """For each parameter group where it lies in the flat vectors, its rule, and its learning rate in step t."""
        first = 0
        own = dict(zip(self.names, self.parameters, strict=True))
        groups = self.recording.optimizer.groups
        for group, each, rate in zip(groups, self.rules, self.steps[t].rates, strict=True):
            size = sum(own[name].numel() for name in group["names"])
            yield slice(first, first + size), each, rate
            first += size

    def number(self, t: int) -> int:
        """The optimizer's own number of step t, from 1; it may have run before the recording began."""
        before = self._start.get(f"optimizer/step/{self.names[0]}")
        if before is None:  # SGD counts none; that it has run shows in its buffers
            return t + (2 if f"optimizer/momentum_buffer/{self.names[0]}" in self._start else 1)
        return t + 1 + int(before)

    def _flat(self, kind: str) -> Tensor:
        parts = (
            self._start.get(f"{kind}/{name}", torch.zeros_like(p)).to(p.device, p.dtype).flatten()
            for name, p in zip(self.names, self.parameters, strict=True)
        )
        return torch.cat([part.detach() for part in parts])


def flat(tensors: tuple[Tensor, ...]) -> Tensor:
    """One vector of them all."""
    return torch.cat([x.reshape(-1) for x in tensors])
