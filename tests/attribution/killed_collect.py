"""A program that collects, kills itself at random moments, resumes, and compares; prints what it saw as JSON.

A process of its own, because it forks: the children start in milliseconds, and no thread is copied half way.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from random import Random

import torch
from attribution_cases import Classify, contents, examples
from safetensors.torch import save_file
from torch import nn

from backcast.attribution import Checkpoint, collect
from backcast.kernels import SketchSpec, sketcher

ROWS, SHARD_ROWS, KILLS = 160, 8, 10
SPEC = SketchSpec("kron", 256)
SHARDS = 2 * ROWS // SHARD_ROWS  # two checkpoints


def model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.Flatten(), nn.Linear(2304, 5)
    )


def start(folder: Path, out: Path) -> int:
    """Begin a collection in a child; its process id."""
    child = os.fork()
    if child == 0:
        checkpoints = [Checkpoint(str(folder / f"{seed}.safetensors"), 0.1) for seed in (1, 2)]
        collect(
            model(),
            Classify(),
            examples(ROWS, (3, 16, 16)),
            out,
            checkpoints=checkpoints,
            spec=SPEC,
            batch_size=8,
            shard_rows=SHARD_ROWS,
        )
        os._exit(0)
    return child


def shards(out: Path) -> int:
    return len(list(out.rglob("shard-*.safetensors")))


def main(folder: Path, seed: int) -> None:
    layer = sketcher(
        SPEC, "warm", 1, 1
    )  # the first call of a torch operator imports much: once, not in each child
    layer.sketch(layer.keep(torch.ones(1, 1, 1)), torch.ones(1, 1, 1))
    for weights in (1, 2):
        save_file(model(weights).state_dict(), folder / f"{weights}.safetensors")
    began = time.perf_counter()
    whole = os.waitstatus_to_exitcode(os.waitpid(start(folder, folder / "whole"), 0)[1])
    seconds = time.perf_counter() - began
    random, reference = Random(seed), contents(folder / "whole")
    kills: list[dict[str, object]] = []
    for kill in range(KILLS):
        out = folder / f"killed-{kill}"
        child, after = start(folder, out), random.randrange(SHARDS - 8)
        while shards(out) < after:
            time.sleep(0.0005)
        time.sleep(random.uniform(0, seconds / SHARDS))
        os.kill(child, signal.SIGKILL)
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        left, partial = shards(out), len(list(out.rglob(".*.partial")))
        resumed = os.waitstatus_to_exitcode(os.waitpid(start(folder, out), 0)[1])
        kills.append(
            {"ended": ended, "shards": left, "partial": partial, "resumed": resumed, "same": contents(out) == reference}
        )  # fmt: skip
    print(json.dumps({"whole": whole, "files": len(reference), "seconds": seconds, "kills": kills}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
