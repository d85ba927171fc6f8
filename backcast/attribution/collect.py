"""From a model and examples to a store of gradient sketches."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from backcast.attribution.attention import opened_attention
from backcast.attribution.capture import GradientCapture, trackable
from backcast.attribution.checkpoints import Checkpoint, load_weights, weights_hash
from backcast.attribution.store import Header, SketchStore
from backcast.data import Examples
from backcast.errors import InputError
from backcast.files import whole_folder
from backcast.kernels import SketchSpec, default_kind
from backcast.progress import progress
from backcast.tasks import Task, batches, on_device

log = logging.getLogger("backcast")


def collect(
    model: nn.Module,
    task: Task,
    examples: Examples,
    out: str | Path,
    *,
    checkpoints: Sequence[Checkpoint] | None = None,
    spec: SketchSpec | None = None,
    like: SketchStore | None = None,
    batch_size: int = 32,
    shard_rows: int = 256,
    dtype: str = "float32",
) -> SketchStore:
    """Sketch every example's loss gradient at every checkpoint; resumes where a killed run stopped.

    A pass costs a forward and the input half of a backward: weight gradients are never formed. The same model,
    examples and spec write the same bytes on the same machine, whether or not the run was interrupted.

    Args:
        model: as it stands; its weights are put back after checkpoints were visited.
        task: what an example's loss is.
        examples: n examples.
        out: the store's folder.
        checkpoints: weights to visit; without any, the model's own with a learning rate of 1.
        spec: the sketch; by default 1,024 numbers of the kind that suits the model's device.
        like: a store whose spec to take over, so that the two can be compared: a target's training store.
        batch_size: examples in a forward.
        shard_rows: examples in a file, and so the most that an interruption loses.
        dtype: of the stored rows, float32 or float16.

    Returns:
        The finished store.

    Raises:
        InputError: no examples, a checkpoint that is not this model's, a folder with something else in it, or a loss
            that none of the tracked modules takes part in.
    """
    if len(examples) == 0:
        raise InputError("nothing to collect: there are no examples")
    if dtype not in ("float32", "float16"):
        raise InputError(f"dtype {dtype!r} cannot be stored; choose float32 or float16")
    device = next(model.parameters()).device
    spec = like.spec if like else spec or SketchSpec(kind=default_kind(device))
    with opened_attention(model):
        modules = tracked(model, task)
        _log_coverage(model, tracked_weights(model, task))
    header = Header(
        spec=spec,
        layers={name: list(module.weight.shape) for name, module in modules.items()},  # type: ignore[arg-type, operator, union-attr]
        rows=examples.index,
        checkpoints=tuple(_describe(model, checkpoints)),
        dtype=dtype,
        shard_rows=shard_rows,
        origin={
            "model": type(model).__name__,
            "task": type(task).__name__,
            "settings": dict(task.settings()),
        },
    )
    with whole_folder(out):
        _fill(SketchStore.create(out, header), model, task, examples, checkpoints, batch_size)
    return SketchStore.open(out)


def _fill(
    store: SketchStore,
    model: nn.Module,
    task: Task,
    examples: Examples,
    checkpoints: Sequence[Checkpoint] | None,
    batch_size: int,
) -> None:
    missing = store.missing()
    slices = store.header.shards()
    todo = sum(slices[s].stop - slices[s].start for _, s in missing)
    with evaluation_mode(model), progress(f"sketches → {store.path.name}", todo) as done:
        for c in sorted({c for c, _ in missing}):
            with visiting(model, checkpoints[c] if checkpoints else None), opened_attention(model):
                task.prepare(model)
                with GradientCapture(model, tracked(model, task), store.spec) as capture:
                    for _, s in (m for m in missing if m[0] == c):
                        rows = _sketch(capture, model, task, examples[slices[s]], batch_size)
                        store.write(c, s, rows)
                        done(len(rows))


def _sketch(
    capture: GradientCapture, model: nn.Module, task: Task, examples: Examples, batch_size: int
) -> np.ndarray:
    parts: list[Tensor] = []
    for batch in batches(examples, batch_size):
        losses = task.loss(model, on_device(task.collate(batch), model))
        parts.append(capture.sketches(losses).cpu())
    return torch.cat(parts).numpy()


def tracked(model: nn.Module, task: Task) -> dict[str, nn.Module]:
    """The task's modules whose per-example gradients can be formed; raises `InputError` when there is none."""
    modules = {name: module for name, module in task.modules(model).items() if trackable(module)}
    if not modules:
        raise InputError(
            f"{type(model).__name__} has no module that can be tracked; Task.modules must name Linear or Conv2d layers"
        )
    return modules


def tracked_weights(model: nn.Module, task: Task) -> list[Tensor]:
    """The weights of the `tracked` modules, each once."""
    weights: dict[int, Tensor] = {}
    for module in tracked(model, task).values():
        assert isinstance(module.weight, Tensor)
        weights[id(module.weight)] = module.weight
    return list(weights.values())


def _log_coverage(model: nn.Module, tracked: Sequence[Tensor]) -> None:
    total = sum(p.numel() for p in model.parameters())
    weights = {id(weight): weight.numel() for weight in tracked}
    others = {n: p.numel() for n, p in model.named_parameters() if id(p) not in weights}
    largest = sorted(others, key=others.__getitem__, reverse=True)[:3]
    named = ", ".join(f"{n} ({others[n] / total:.0%})" for n in largest)
    log.info(f"tracking {sum(weights.values()) / total:.0%} of the parameters; the largest left out: {named}")


def _describe(model: nn.Module, checkpoints: Sequence[Checkpoint] | None) -> Iterator[dict[str, Any]]:
    if checkpoints is None:
        yield {"name": "model", "learning_rate": 1.0, "sha256": weights_hash(model)}
        return
    for checkpoint in checkpoints:
        with visiting(model, checkpoint):
            yield {
                "name": Path(checkpoint.path).name,
                "learning_rate": checkpoint.learning_rate,
                "sha256": weights_hash(model),
            }


@contextmanager
def visiting(model: nn.Module, checkpoint: Checkpoint | None) -> Iterator[None]:
    """The model with a checkpoint's weights, and with its own again on leaving."""
    if checkpoint is None:
        yield
        return
    own = {name: value.detach().clone() for name, value in model.state_dict().items()}
    try:
        load_weights(model, checkpoint.weights(), checkpoint.path)
        yield
    finally:
        model.load_state_dict(own)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """The model without dropout and with frozen batch statistics, and as it was on leaving."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in training.items():
            module.training = mode
