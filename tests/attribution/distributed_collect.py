"""A program in which two processes collect together; prints what it saw as JSON.

A process of its own, because it forks: the children start in milliseconds. ``distributed_collect.py rank OUT`` is what
torchrun starts.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from attribution_cases import Classify, contents, examples, llama, mlp
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from backcast.attribution import Checkpoint, collect
from backcast.data import Example
from backcast.errors import InputError
from backcast.kernels import SketchSpec, sketcher
from backcast.tasks import Batch

ROWS, SHARD_ROWS, VOCABULARY = 22, 4, 17
SPEC = SketchSpec("kron", 64)


class Slow(Classify):
    """A shard a tenth of a second."""

    def collate(self, examples: list[Example]) -> Batch:
        time.sleep(0.1)
        return super().collate(examples)


Slow.__name__ = "Classify"


class Infinite(Classify):
    """A gradient of the last example that is not finite."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        last = examples(ROWS)[ROWS - 1].fields["x"]
        return super().loss(model, batch) / (batch["x"] != last).any(1)


class Tokens(Classify):
    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        logits = model(input_ids=batch["x"]).logits[:, :-1]
        return nn.functional.cross_entropy(logits.mT, batch["x"][:, 1:], reduction="none").mean(1)


def plain(out: Path, model: nn.Module | None = None, task: Classify | None = None) -> None:
    collect(model or mlp(), task or Classify(), examples(ROWS), out, spec=SPEC, shard_rows=SHARD_ROWS)


def language_model(out: Path, model: nn.Module) -> None:
    """At the model's own weights and at those of two checkpoints."""
    rows = examples(ROWS)
    for row in rows:
        row.fields["x"] = (row.fields["x"].abs() * 5).long() % VOCABULARY
    points = [Checkpoint(str(out.parent / f"{scale}.safetensors"), scale) for scale in (0.5, 2.0)]
    collect(model, Tokens(), rows, out / "own", spec=SPEC, shard_rows=SHARD_ROWS)
    collect(model, Tokens(), rows, out / "points", spec=SPEC, shard_rows=SHARD_ROWS, checkpoints=points)


def sharded(out: Path) -> dict[str, Any]:
    """A model spread over the processes: what became of it."""
    model = llama(VOCABULARY)
    for layer in model.model.layers:
        fully_shard(layer)
    fully_shard(model)
    ids = torch.arange(12).view(2, 6)
    before = model(input_ids=ids).logits  # leaves the root's weights gathered
    language_model(out, model)
    after = model(input_ids=ids).logits
    after.square().mean().backward()
    return {
        "same": torch.equal(before, after),
        "type": type(model).__name__,
        "sharded": {type(p).__name__ for p in model.state_dict().values()} == {"DTensor"},
        "gradients": all(p.grad is not None for p in model.parameters()),
    }


def start(work: Callable[[], Any], answer: Path, rank: int, world: int = 2) -> int:
    """Begin the work in a child; its process id. What it returns, or refuses, is written to ``answer``."""
    child = os.fork()
    if child == 0:
        if world > 1:
            dist.init_process_group("gloo", init_method=f"file://{answer}.group", rank=rank, world_size=world)
        code = 1
        try:
            said = work()
            code = 0
        except InputError as error:
            said, code = f"{error}", 2
        finally:
            if code != 1:
                Path(f"{answer}.{rank}").write_text(json.dumps(said))
            os._exit(code)
    return child


def end(children: list[int]) -> list[int]:
    """Their exit codes; one that does not end within a minute is killed, -9."""
    codes, deadline = [], time.monotonic() + 60
    for child in children:
        while True:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                break
            if time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
            time.sleep(0.002)
        codes.append(os.waitstatus_to_exitcode(status))
    return codes


def both(folder: Path, name: str, work: Callable[[int], Callable[[], Any]]) -> dict[str, Any]:
    """The work of two processes: their exit codes, and what they said."""
    codes = end([start(work(rank), folder / f".{name}", rank) for rank in (0, 1)])
    said = [folder / f".{name}.{rank}" for rank in (0, 1)]
    return {
        "codes": codes,
        "said": [json.loads(each.read_text()) if each.exists() else None for each in said],
    }


def shards(out: Path) -> int:
    return len(list(out.rglob("shard-*.safetensors")))


def killed(folder: Path) -> dict[str, Any]:
    """The second process dies half-way; then both run again."""
    out = folder / "killed"
    children = [start(lambda: plain(out, task=Slow()), folder / ".killed", rank) for rank in (0, 1)]
    while shards(out) < 2:
        time.sleep(0.001)
    os.kill(children[1], signal.SIGKILL)
    codes = end(children)
    left = shards(out)
    return {"ended": codes, "left": left, **both(folder, "resumed", lambda rank: lambda: plain(out))}


def damaged(folder: Path) -> dict[str, Any]:
    """Two shards of a finished store rot; then both run again."""
    out = folder / "damaged"
    end([start(lambda: plain(out), folder / ".whole", 0, world=1)])
    for number in (1, 4):
        path = out / "checkpoint-00" / f"shard-{number:05d}.safetensors"
        rotten = bytearray(path.read_bytes())
        rotten[-1] ^= 1
        path.write_bytes(rotten)
    return both(folder, "mended", lambda rank: lambda: plain(out))


def main(folder: Path) -> None:
    layer = sketcher(SPEC, "warm", 1, 1)  # the first call of a torch operator imports much
    layer.sketch(layer.keep(torch.ones(1, 1, 1)), torch.ones(1, 1, 1))
    for scale in (0.5, 2.0):
        weights = {name: scale * value for name, value in llama(VOCABULARY).state_dict().items()}
        save_file(weights, folder / f"{scale}.safetensors")

    def parallel(out: Path) -> None:
        plain(out, DistributedDataParallel(mlp()))

    seen = {
        "alone": end([start(lambda: plain(folder / "one"), folder / ".one", 0, world=1)]),
        "two": both(folder, "two", lambda rank: lambda: plain(folder / "two")),
        "parallel": both(folder, "parallel", lambda rank: lambda: parallel(folder / "parallel")),
        "unlike": both(folder, "unlike", lambda rank: lambda: plain(folder / "unlike", mlp(seed=rank))),
        "bad": both(folder, "bad", lambda rank: lambda: plain(folder / "bad", task=Infinite())),
        "killed": killed(folder),
        "damaged": damaged(folder),
        "lm": end(
            [start(lambda: language_model(folder / "lm", llama(VOCABULARY)), folder / ".lm", 0, world=1)]
        ),
        "sharded": both(folder, "sharded", lambda rank: lambda: sharded(folder / "sharded")),
    }
    whole = contents(folder / "one")
    seen["same"] = [
        name for name in ("two", "parallel", "killed", "damaged") if contents(folder / name) == whole
    ]
    seen["there"] = [name for name in ("unlike", "bad") if (folder / name).exists()]
    print(json.dumps(seen))


if __name__ == "__main__":
    if sys.argv[1] == "rank":
        dist.init_process_group("gloo")
        plain(Path(sys.argv[2]))
        dist.destroy_process_group()
    else:
        main(Path(sys.argv[1]))
