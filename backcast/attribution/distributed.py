"""Several processes at one collection, and models whose weights are spread over them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from backcast.errors import InputError

T = TypeVar("T")

#: How long a process waits for the slowest one; that one has died is noticed at once.
PATIENCE = timedelta(days=30)


@dataclass(frozen=True)
class Ranks:
    """This process among the ``world`` that work together; the only one where there is no process group."""

    rank: int = 0
    world: int = 1
    group: Any = None

    def share(self, work: Sequence[T]) -> Sequence[T]:
        """This process's part of the work, dealt out in turn."""
        return work[self.rank :: self.world]

    def gather(self, value: T) -> list[T]:
        """Every process's value, in each of them, once all are here."""
        values = [value] * self.world
        if self.world > 1:
            dist.all_gather_object(values, value, group=self.group)
        return values

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """A block that all leave together: an `InputError` in one process is raised in all, so that nobody waits."""
        error = None
        try:
            yield
        except InputError as mine:
            error = mine
        for each in self.gather(error):
            if each is not None:
                raise each


@contextmanager
def ranks() -> Iterator[Ranks]:
    """The processes of the default group, whatever it runs on; they talk on the CPU.

    Raises `InputError` in processes that torchrun started and that do not know of each other.
    """
    if not dist.is_available() or not dist.is_initialized():
        if os.environ.get("TORCHELASTIC_RUN_ID") and os.environ.get("WORLD_SIZE", "1") != "1":
            raise InputError(
                "torchrun started several processes, and each would do all of the work; "
                "call torch.distributed.init_process_group() first"
            )
        yield Ranks()
        return
    group = dist.new_group(backend="gloo", timeout=PATIENCE)
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size(), group)
    finally:
        dist.destroy_process_group(group)


@contextmanager
def gathered(model: nn.Module) -> Iterator[nn.Module]:
    """The model as it was written, with whole weights, whatever `fully_shard`, DistributedDataParallel or torch.compile
    made of it.

    Every process gets all of the weights, and can then run what it likes. On leaving, the model is wrapped as before,
    its weights the shards that they were. Every process must enter.
    """
    while isinstance(model, DistributedDataParallel) or hasattr(model, "_orig_mod"):
        inner: Any = model.module if isinstance(model, DistributedDataParallel) else model._orig_mod
        model = inner
    if "torch.distributed.fsdp" not in sys.modules:  # nothing is sharded, and the import takes a second
        yield model
        return
    from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
    from torch.distributed.tensor import DTensor

    if any(isinstance(module, FullyShardedDataParallel) for module in model.modules()):
        raise InputError(
            "the model is wrapped in FullyShardedDataParallel, whose weights have no names of their own; "
            "use torch's fully_shard instead"
        )
    wrapped: dict[Any, Any] = {m: type(m) for m in model.modules() if isinstance(m, FSDPModule)}
    if not wrapped:
        yield model
        return
    for module in wrapped:
        module.reshard()
    attributes = [each for module in model.modules() for each in vars(module).items()]
    hooks = [each for name, each in attributes if name.endswith("_hooks") and isinstance(each, dict)]
    before = [dict(each) for each in hooks]
    sharded: list[tuple[nn.Module, str, Any]] = [
        (module, name, parameter)
        for module in model.modules()
        for name, parameter in module._parameters.items()
        if isinstance(parameter, DTensor)
    ]
    distinct = {id(parameter): parameter for _, _, parameter in sharded}  # a shared one once
    whole = {key: nn.Parameter(p.detach().full_tensor(), p.requires_grad) for key, p in distinct.items()}
    try:
        for module, kind in wrapped.items():
            # fully_shard derives it from FSDPModule and the module's own class.
            module.__class__ = kind.__bases__[1]
        for each, entries in zip(hooks, before, strict=True):
            each.clear()
            each.update({key: hook for key, hook in entries.items() if not _is_fsdp(hook)})
        for module, name, parameter in sharded:
            module._parameters[name] = whole[id(parameter)]
        yield model
    finally:
        for module, name, parameter in sharded:
            module._parameters[name] = parameter
        for each, entries in zip(hooks, before, strict=True):
            each.clear()
            each.update(entries)
        for module, kind in wrapped.items():
            module.__class__ = kind


def _is_fsdp(hook: Any) -> bool:
    return getattr(hook, "__module__", "").startswith("torch.distributed.fsdp")
