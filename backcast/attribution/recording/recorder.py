"""Recording a training run while it runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TextIO

import torch
from safetensors.torch import save
from torch import nn

from backcast.attribution.recording.optimizers import optimizer_slots, optimizer_spec
from backcast.attribution.recording.recording import Recording, Step
from backcast.attribution.recording.shapley import InRunShapley
from backcast.attribution.recording.watch import Sketching, Watch
from backcast.data import Examples
from backcast.errors import InputError
from backcast.files import sha256, write_atomic, write_json
from backcast.kernels import SketchSpec
from backcast.tasks import Task
from backcast.tasks.hashes import weights_hash


class Recorder:
    """Writes what a training run does, step by step; a context manager around the loop.

    ::

        with Recorder(model, optimizer, examples, "runs/a", task=task) as recorder:
            for rows in batches:
                recorder.batch(rows)
                task.objective(model, task.collate(examples[rows])).backward()
                optimizer.step()
                optimizer.zero_grad()

    It seeds torch before each step's first forward, so that the step's dropout can be drawn again.

    Args:
        model: as it is before the first step.
        optimizer: torch.optim's SGD, Adam or AdamW, over parameters of ``model``.
        examples: the n examples that rows are positions in.
        out: the recording's folder: a new one, or that of an unfinished run, which starts again.
        task: what an example's loss is.
        max_grad_norm: what the loop gives to ``torch.nn.utils.clip_grad_norm_``, if it does.
        spec: sketch every example's own gradient in the very backward that trains: of the modules that `collect` would
            sketch, at the weights and with the dropout of the time.
        target: m target examples: take every example's in-run Shapley values for them, see `InRunShapley`.
        groups: a name for each target; a group counts as the mean of its rows.
        order: of the in-run Shapley values; the second costs a double backward of the targets in every step, and memory
            for what all of a step's backwards meet.
        step: steps that the run has done already, where it goes on from a checkpoint; what ``out`` holds beyond them is
            dropped.

    Raises:
        InputError: an optimizer that cannot be recorded, a model that cannot be watched, a folder with something else
            in it or without the steps that were done.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        examples: Examples,
        out: str | Path,
        *,
        task: Task,
        max_grad_norm: float | None = None,
        spec: SketchSpec | None = None,
        target: Examples | None = None,
        groups: Sequence[str] | None = None,
        order: Literal[1, 2] = 1,
        step: int = 0,
    ) -> None:
        # What torch.compile wraps: names must not depend on that.
        self.model: nn.Module = getattr(model, "_orig_mod", model)
        self.optimizer, self.step = optimizer, step
        self.recording = Recording(
            path=Path(out),
            rows=examples.index,
            optimizer=optimizer_spec(self.model, optimizer, max_grad_norm),
            origin={
                "model": type(self.model).__name__,
                "task": type(task).__name__,
                "settings": dict(task.settings()),
            },
        )
        self._watches: list[Watch] = []
        if spec is not None:
            self._watch_sketches(model, task, spec)
        if target is not None:
            self._watch_shapley(model, task, target, groups, order)
        self._batches: list[tuple[int, ...]] = []
        self._scales: list[float] = []
        self._awaited = False  # whether a backward is to come
        self._lines: TextIO
        self._handles: list[Any] = []

    def __enter__(self) -> Recorder:
        path = self.recording.path
        if self.step:
            self._resume()
        else:
            self._begin()
        write_json(path / "recording.json", self.recording.to_json())
        self._lines = open(path / "steps.jsonl", "a")
        self._handles = [
            self.optimizer.register_step_pre_hook(self._before_step),
            self.optimizer.register_step_post_hook(self._after_step),
        ]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._lines.close()
        for watch in self._watches:
            watch.close()
        if kind is None:
            self.recording = replace(self.recording, end=weights_hash(self.model))
            write_json(self.recording.path / "recording.json", self.recording.to_json())

    def batch(self, rows: Iterable[int], scale: float | None = None) -> None:
        """Say which examples the forward that comes next is of; before that of each micro-batch.

        Args:
            rows: positions in the examples, in the batch's order.
            scale: what the sum of the examples' losses is multiplied by; 1/(number of rows), a mean, unless given.
        """
        rows = tuple(int(row) for row in rows)
        n = len(self.recording.rows)
        odd = [f"row {row} of {n} examples" for row in rows if not 0 <= row < n]
        if odd or not rows:
            raise InputError(
                f"step {self.step}: a batch of {odd[0] if odd else 'no rows'}; give positions in the examples"
            )
        self._take()
        if not self._batches:
            for watch in self._watches:
                watch.begin_step()
            torch.manual_seed(self.seed + self.step)
        for watch in self._watches:
            watch.expect(len(rows))
        self._batches.append(rows)
        self._scales.append(1 / len(rows) if scale is None else float(scale))
        self._awaited = True

    def flush(self) -> None:
        """Have everything on disk; call it where the run saves a checkpoint that it may go on from."""
        for watch in self._watches:
            watch.series.flush()

    def _take(self) -> None:
        if self._awaited:
            for watch in self._watches:
                watch.take(self._scales[-1])
            self._awaited = False

    def _before_step(self, *_: Any) -> None:
        if not self._batches:
            raise InputError(
                f"step {self.step}: the optimizer steps on no batch; call Recorder.batch(rows) before each forward"
            )
        self._take()
        for watch in self._watches:
            watch.end_step(self.step, [row for rows in self._batches for row in rows])

    def _after_step(self, *_: Any) -> None:
        step = Step(
            batches=tuple(self._batches),
            scales=tuple(self._scales),
            rates=tuple(float(group["lr"]) for group in self.optimizer.param_groups),
            seed=self.seed + self.step,
        )
        self._lines.write(json.dumps(asdict(step)) + "\n")
        self._lines.flush()
        self._batches, self._scales = [], []
        self.step += 1

    def _watch_sketches(self, model: nn.Module, task: Task, spec: SketchSpec) -> None:
        watch = Sketching(model, task, spec, self.recording.path / "sketches")
        self._watches.append(watch)
        self.recording = replace(self.recording, spec=spec, layers=watch.layers)

    def _watch_shapley(
        self,
        model: nn.Module,
        task: Task,
        target: Examples,
        groups: Sequence[str] | None,
        order: Literal[1, 2],
    ) -> None:
        if order not in (1, 2):
            raise InputError(f"in-run Shapley values of order {order} do not exist; choose 1 or 2")
        if groups is not None and len(groups) != len(target):
            raise InputError(f"{len(groups)} group names for {len(target)} targets; give one for each")
        names = target.index.ids if groups is None else tuple(dict.fromkeys(groups))
        members = [[i] for i in range(len(target))]
        if groups is not None:
            members = [[i for i, group in enumerate(groups) if group == name] for name in names]
        watch = InRunShapley(
            model,
            self.optimizer,
            task,
            [target[member] for member in members],
            order,
            clipped=self.recording.optimizer.max_grad_norm is not None,
            series=self.recording.path / "shapley",
        )
        self._watches.append(watch)
        header: dict[str, Any] = {"targets": names, "fingerprint": target.index.fingerprint, "order": order}
        if groups is not None:
            header["groups"] = list(groups)
        self.recording = replace(self.recording, shapley=header)

    def _begin(self) -> None:
        """A folder that holds the start and no steps."""
        path = self.recording.path
        if (path / "recording.json").is_file():
            if Recording.open(path).end is not None:
                raise InputError(f"{path}: a finished run; choose another folder or delete this one")
            shutil.rmtree(path)
        elif path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise InputError(f"{path}: not a recorded run, and not empty; choose another place")
        self.seed = int(sha256(str(torch.initial_seed()))[:15], 16)
        named = (*self.model.named_parameters(), *self.model.named_buffers())
        start = {f"weights/{name}": value for name, value in named}
        slots = optimizer_slots(self.model, self.optimizer)
        start |= {f"optimizer/{name}": value for name, value in slots.items()}
        # Clones: safetensors refuses tensors that share memory.
        whole = {name: value.detach().cpu().clone().contiguous() for name, value in start.items()}
        write_atomic(path / "start.safetensors", save(whole))
        write_atomic(path / "steps.jsonl", "")

    def _resume(self) -> None:
        """The folder of the run that goes on, without the steps that will be done again."""
        path = self.recording.path
        if _header(Recording.open(path)) != _header(self.recording):
            raise InputError(
                f"{path}: a run on other examples, or with another model, task, optimizer or recorder; "
                "go on as it began, or choose another folder"
            )
        lines = (path / "steps.jsonl").read_text().splitlines(keepends=True)
        if len(lines) < self.step:
            raise InputError(
                f"{path}: holds {len(lines)} steps, and the run goes on after {self.step}; "
                "go on from an earlier checkpoint, or record from the start"
            )
        for watch in self._watches:
            watch.series.cut(self.step)
        self.seed = json.loads(lines[0])["seed"]
        write_atomic(path / "steps.jsonl", "".join(lines[: self.step]))


def _header(recording: Recording) -> str:
    """What a run that goes on must share with the recorded one."""
    return json.dumps(replace(recording, end=None).to_json(), sort_keys=True)
