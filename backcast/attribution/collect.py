"""From a model and examples to a store of gradient sketches."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from backcast.attribution.checkpoints import Checkpoint, load_weights
from backcast.attribution.distributed import Ranks, gathered, ranks
from backcast.attribution.gradients.adam import (
    AdamCapture,
    Preconditioners,
    preconditioners,
    preconditioners_hash,
)
from backcast.attribution.gradients.capture import GradientCapture, tracked_parts
from backcast.attribution.gradients.opened import opened
from backcast.attribution.gradients.parts import Part
from backcast.attribution.index import FollowedIndex, GradientIndex
from backcast.attribution.quantise import DTYPES
from backcast.attribution.store import Header, SketchStore
from backcast.attribution.writer import ShardWriter
from backcast.data import Example, Examples
from backcast.errors import InputError
from backcast.files import whole_folder
from backcast.kernels import SketchSpec, default_kind
from backcast.progress import progress
from backcast.tasks import Task, on_device, packed
from backcast.tasks.hashes import weights_hash
from backcast.tasks.still import still

log = logging.getLogger("backcast")

#: Of a gradient's length: how far an example's gradient in a batch may be from what it is alone, before rounding no
#: longer explains it.
DEPENDENCE = 0.2
#: Positions of a batch on a CPU: what keeps a product busy. Examples do not depend on each other, so larger batches
#: would save nothing, and their activations would leave the caches. The same for any number of threads: other batches
#: would round otherwise, and a subset chosen by such scores not be the same byte for byte.
POSITIONS = 2048


def collect(
    model: nn.Module,
    task: Task,
    examples: Examples,
    out: str | Path,
    *,
    of: str = "loss",
    direction: str = "gradient",
    checkpoints: Sequence[Checkpoint] | None = None,
    spec: SketchSpec | None = None,
    like: SketchStore | None = None,
    batch_size: int = 32,
    shard_rows: int = 256,
    dtype: str = "float32",
    autocast: str | None = None,
    index: bool = False,
) -> SketchStore:
    """Sketch every example's gradient at every checkpoint; resumes where a killed run stopped.

    Every process of an initialised process group must call it with the same arguments: they share the shards out, and
    a model that `fully_shard` spread over them is gathered in each. A shard on the disk that is damaged is collected
    again.

    A pass costs a forward and the input half of a backward: weight gradients are never formed. The same model,
    examples and spec write the same bytes on the same machine, whether or not the run was interrupted.

    Args:
        model: as it stands; its weights are put back after checkpoints were visited.
        task: what an example's loss is.
        examples: n examples.
        out: the store's folder.
        of: "loss", or "output": the gradients of `Task.output`, with the loss's slope by it, −(1 − p) = −sigmoid(−f)
            where f = log p/(1 − p) is that output and the loss is −log p. (Park et al. 2023, TRAK, section 3.)
        direction: "gradient", or "adam": the step that Adam would make on the example alone, in the gradient's place
            (`preconditioners` has the formula); each checkpoint must name its optimizer's state. It forms the whole
            gradients.
        checkpoints: weights to visit; without any, the model's own with a learning rate of 1.
        spec: the sketch; by default 1,024 numbers of the kind that suits the model's device.
        like: a store whose spec to take over, so that the two can be compared: a target's training store.
        batch_size: examples in a forward, where they are as long as the longest of their shard; batches of shorter
            ones hold more. On a CPU a batch has at most 2,048 positions (`Task.length`), or one example.
        shard_rows: examples in a file, and so the most that an interruption loses.
        dtype: of the stored rows: float32, float16, int8 or sign (one bit a number); see `quantise.encode`.
        autocast: bfloat16 or float16, the precision of the model's matrix products; with float16 the losses are scaled
            for the backward. A model that is itself in half precision needs none.
        index: whether to build an index while the shards are written, and keep it with them; see `GradientIndex`.

    Returns:
        The finished store.

    Raises:
        InputError: no examples, a task without the output that is asked for, a checkpoint that is not this model's, a
            folder with something else in it, a loss that none of the tracked modules takes part in, or one that
            depends on the batch's other examples.
    """
    if len(examples) == 0:
        raise InputError("nothing to collect: there are no examples")
    if of not in ("loss", "output"):
        raise InputError(f"gradients of {of!r} do not exist; choose loss or output")
    _check_direction(direction, of, checkpoints, autocast)
    if dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r} cannot be stored; choose one of {', '.join(DTYPES)}")
    if autocast not in (None, "bfloat16", "float16"):
        raise InputError(f"autocast to {autocast!r} does not exist; choose bfloat16 or float16")
    with ranks() as team, gathered(model) as whole:
        with team.agreed():
            device = next(whole.parameters()).device
            spec = like.spec if like else spec or SketchSpec(kind=default_kind(device))
            with opened(whole):
                parts = tracked_parts(tracked(whole, task), task.biases)
                if like is None:
                    _report_coverage(whole, task, parts)
            header = Header(
                spec=spec,
                layers={part.name: part.shape for found in parts.values() for part in found},
                rows=examples.index,
                checkpoints=tuple(_describe(whole, task, checkpoints, direction)),
                dtype=dtype,
                shard_rows=shard_rows,
                origin={
                    "model": type(whole).__name__,
                    "task": type(task).__name__,
                    "of": of,
                    "direction": direction,
                    "settings": dict(task.settings()),
                    "autocast": autocast,
                },
            )
        with _written_by(team, out, header) as (store, todo):
            followed = FollowedIndex(store) if index and todo and team.rank == 0 else None
            after = followed.follow if followed else None
            _Collection(store, whole, task, examples, batch_size, autocast).run(checkpoints, todo, after)
        with team.agreed():
            if followed:
                followed.finish()
            elif index and team.rank == 0:
                GradientIndex(store, path=out)
    return SketchStore.open(out)


@contextmanager
def _written_by(
    team: Ranks, out: str | Path, header: Header
) -> Iterator[tuple[SketchStore, Sequence[tuple[int, int]]]]:
    """The store, and which of the missing and the damaged shards this process is to write in the block."""
    if len(set(team.gather(header.fingerprint))) > 1:
        raise InputError("the processes differ in model, examples or settings; give each the same ones")
    with whole_folder(out) if team.rank == 0 else nullcontext():
        with team.agreed():
            store = SketchStore.create(out, header) if team.rank == 0 else SketchStore(out, header)
        missing = store.missing()
        there = [place for place in store.places() if place not in set(missing)]
        damaged = team.gather(store.damaged(team.share(there)))
        with team.agreed():
            yield store, team.share(sorted(chain(missing, *damaged)))


class _Collection:
    """One run over what a store still lacks."""

    def __init__(
        self,
        store: SketchStore,
        model: nn.Module,
        task: Task,
        examples: Examples,
        batch_size: int,
        autocast: str | None,
    ) -> None:
        self.store, self.model, self.task, self.examples = store, model, task, examples
        self.batch_size = batch_size
        self.autocast = getattr(torch, autocast) if autocast else None
        self.checked = False

    def run(
        self,
        checkpoints: Sequence[Checkpoint] | None,
        todo: Sequence[tuple[int, int]],
        after: Callable[[int], None] | None = None,
    ) -> None:
        """Write these (checkpoint, shard); ``after`` hears of each shard's checkpoint."""
        slices = self.store.header.shards()
        rows = sum(slices[s].stop - slices[s].start for _, s in todo)
        model, task = self.model, self.task
        with (
            evaluation_mode(model),
            uncompiled(model),
            ShardWriter(self.store, after) as writer,
            progress(f"sketches → {self.store.path.name}", rows) as done,
        ):
            for c in sorted({c for c, _ in todo}):
                checkpoint = checkpoints[c] if checkpoints else None
                adam = _preconditioners(model, task, checkpoint, self.store.header.origin["direction"])
                with visiting(model, checkpoint), opened(model):
                    task.prepare(model)
                    with _capture(model, task, self.store.spec, adam) as capture:
                        for _, s in (place for place in todo if place[0] == c):
                            writer.put(c, s, *self._shard(capture, self.examples[slices[s]]))
                            done(slices[s].stop - slices[s].start)

    def _shard(self, capture: GradientCapture, examples: Examples) -> list[Tensor]:
        """What a shard holds: sketches, and of outputs the slopes."""
        of = self.store.header.origin["of"]
        sketches, values = sketch(capture, self.task, examples, self.batch_size, self.autocast, of)
        if not self.checked:
            largest = max(batches_of(self.model, self.task, examples, self.batch_size), key=len)
            if len(largest) > 1:
                self._check_independence(capture, examples[largest[-1:]], sketches[largest])
                self.checked = True
        return [sketches, -torch.sigmoid(-values)] if of == "output" else [sketches]

    def _check_independence(self, capture: GradientCapture, last: Examples, together: Tensor) -> None:
        """Of a batch's last example against all of the batch's sketches."""
        alone = sketch(capture, self.task, last, 1, self.autocast, self.store.header.origin["of"])[0][0]
        length = torch.maximum(alone.norm(), together.norm(dim=1).mean())
        if (alone - together[-1]).norm() > DEPENDENCE * length:
            raise InputError(
                f"row {last[0].row} of {last[0].source}: its gradient alone is another than in a batch; "
                "the task's loss, and every tracked layer's rows, must belong to one example each"
            )


def sketch(
    capture: GradientCapture,
    task: Task,
    examples: Examples,
    batch_size: int,
    autocast: torch.dtype | None = None,
    of: str = "loss",
) -> tuple[Tensor, Tensor]:
    """(n, k) sketches and the (n,) values whose gradients they are, of n examples in batches of like length.

    The arguments are those of `collect`.
    """
    packs = batches_of(capture.model, task, examples, batch_size)
    parts = [_sketch_batch(capture, task, examples[pack], autocast, of) for pack in packs]
    sketches, values = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    order = torch.tensor([row for pack in packs for row in pack], device=sketches.device).argsort()
    return sketches[order], values[order]


def batches_of(model: nn.Module, task: Task, examples: Sequence[Example], batch_size: int) -> list[list[int]]:
    """The places of each batch's examples, in batches of like length; the arguments are those of `collect`."""
    on_cpu = next(model.parameters()).device.type == "cpu"
    return packed([task.length(example) for example in examples], batch_size, POSITIONS if on_cpu else None)


def _sketch_batch(
    capture: GradientCapture, task: Task, examples: Examples, autocast: torch.dtype | None, of: str
) -> tuple[Tensor, Tensor]:
    batch = on_device(task.collate(examples), capture.model)
    function = {"loss": task.loss, "output": task.output}[of]
    device = next(capture.model.parameters()).device.type
    scale = 2.0**16 if autocast == torch.float16 else 1.0
    while True:
        with torch.autocast(device, autocast, enabled=autocast is not None):
            values = function(capture.model, batch)
        sketches = capture.sketches(values, scale)
        if scale == 1 or bool(sketches.isfinite().all()):
            return sketches, values.detach().float()
        scale /= 2**4


def tracked(model: nn.Module, task: Task) -> dict[str, nn.Module]:
    """The task's modules that are trained and can be tracked.

    Where any parameter is trainable, modules whose weights are frozen are left out: of a model with LoRA adapters, all
    but the adapters. A module that shares a weight with one of these comes with it, as the weight's gradient is the
    sum over its uses.

    Raises:
        InputError: there is none.
    """
    chosen = _chosen(model, task)
    modules = {name: chosen[name] for name in tracked_parts(chosen)}
    if not modules:
        raise InputError(
            f"{type(model).__name__} has no module that can be tracked; Task.modules must name Linear or Conv2d layers"
        )
    return modules


def _chosen(model: nn.Module, task: Task) -> dict[str, nn.Module]:
    chosen = task.modules(model)
    if any(p.requires_grad for p in model.parameters()):
        chosen = {n: m for n, m in chosen.items() if any(p.requires_grad for p in m.parameters())}
    weights = {id(p) for m in chosen.values() for p in m.parameters(recurse=False)}
    sharing = {n: m for n, m in model.named_modules() if id(getattr(m, "weight", None)) in weights}
    return chosen | {n: m for n, m in sharing.items() if m not in chosen.values()}


def tracked_weights(model: nn.Module, task: Task) -> list[Tensor]:
    """The parameters whose gradients are sketched, each once."""
    parts = tracked_parts(tracked(model, task), task.biases)
    weights = {id(p): p for found in parts.values() for part in found for p in part.parameters}
    return list(weights.values())


def _report_coverage(model: nn.Module, task: Task, parts: Mapping[str, Sequence[Part]]) -> None:
    """Log which share of the parameters is tracked and what else is large; warn of what the task named in vain."""
    total = sum(p.numel() for p in model.parameters())
    weights = {id(p): p.numel() for found in parts.values() for part in found for p in part.parameters}
    others = {n: p.numel() for n, p in model.named_parameters() if id(p) not in weights}
    largest = sorted(others, key=others.__getitem__, reverse=True)[:3]
    named = ", ".join(f"{n} ({others[n] / total:.0%})" for n in largest)
    log.info(f"tracking {sum(weights.values()) / total:.0%} of the parameters; the largest left out: {named}")
    for name, module in _chosen(model, task).items():
        if name not in parts:
            share = sum(p.numel() for p in module.parameters()) / total
            log.warning(f"{name} ({type(module).__name__}, {share:.1%} of the parameters) cannot be tracked")


def _check_direction(
    direction: str, of: str, checkpoints: Sequence[Checkpoint] | None, autocast: str | None
) -> None:
    if direction not in ("gradient", "adam"):
        raise InputError(f"direction {direction!r} does not exist; choose gradient or adam")
    if direction == "gradient":
        return
    if not checkpoints or any(checkpoint.optimizer is None for checkpoint in checkpoints):
        raise InputError(
            "direction 'adam' needs the optimizer's state: give checkpoints, each with optimizer="
        )
    if of != "loss":
        raise InputError(f"direction 'adam' is a training step's, so of the loss; not of {of!r}")
    if autocast == "float16":
        raise InputError(
            "direction 'adam' cannot be taken of scaled gradients; choose bfloat16, or no autocast"
        )


def _preconditioners(
    model: nn.Module, task: Task, checkpoint: Checkpoint | None, direction: str
) -> Preconditioners | None:
    """Of the tracked parts, for directions of Adam."""
    if direction == "gradient" or checkpoint is None or checkpoint.optimizer is None:
        return None
    with opened(model):
        parts = [p for found in tracked_parts(tracked(model, task), task.biases).values() for p in found]
    return preconditioners(checkpoint.optimizer, model, parts)


def _capture(model: nn.Module, task: Task, spec: SketchSpec, adam: Preconditioners | None) -> GradientCapture:
    modules = tracked(model, task)
    if adam is None:
        return GradientCapture(model, modules, spec, task.biases)
    return AdamCapture(model, modules, spec, adam, task.biases)


def _describe(
    model: nn.Module, task: Task, checkpoints: Sequence[Checkpoint] | None, direction: str
) -> Iterator[dict[str, Any]]:
    if checkpoints is None:
        yield {"name": "model", "learning_rate": 1.0, "sha256": weights_hash(model)}
        return
    for checkpoint in checkpoints:
        adam = _preconditioners(model, task, checkpoint, direction)
        with visiting(model, checkpoint):
            yield {
                "name": Path(checkpoint.path).name,
                "learning_rate": checkpoint.learning_rate,
                "sha256": weights_hash(model),
                **({"optimizer": preconditioners_hash(adam)} if adam else {}),
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
    """The model without dropout and with frozen batch statistics, and as it was on leaving.

    Blocks of transformers whose gradient checkpointing is on keep it: they ask for their own training mode.
    """
    with still(model):
        for module in model.modules():
            if getattr(module, "gradient_checkpointing", False) and not _drops(module):
                module.training = True  # not its children's
        yield


def _drops(module: nn.Module) -> bool:
    """Whether the module, apart from its children, has a rate of dropout."""
    return any(
        "drop" in name and isinstance(value, float) and value > 0 for name, value in vars(module).items()
    )


@contextmanager
def uncompiled(model: nn.Module) -> Iterator[None]:
    """Run what torch.compile has compiled as it was written: a compiled forward calls no hooks."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and the import takes seconds
        yield
        return
    compiled = {module: module._compiled_call_impl for module in model.modules()}
    for module in compiled:
        module._compiled_call_impl = None
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for module, call in compiled.items():
            module._compiled_call_impl = call
