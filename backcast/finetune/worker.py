"""A process that fine-tunes one run after the other from the same weights."""

from __future__ import annotations

import math
import os
import signal
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.sharedctypes import Synchronized
from platform import python_version

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from backcast.attribution import Checkpoint
from backcast.attribution.collect import visiting
from backcast.data import Examples
from backcast.errors import InputError
from backcast.finetune.runs import Outcome, Run
from backcast.finetune.train import FinetuneConfig, finetune
from backcast.multimodal import load_task
from backcast.progress import silence

#: Bytes of a GPU that a process takes beside what PyTorch allocates: its context, the kernels' code and their scratch.
CONTEXT = 1 << 30

#: Characters of another package's error that a run's row keeps.
LONGEST = 300


@dataclass(frozen=True, eq=False)
class Setup:
    """What all runs of a sweep have in common.

    Attributes:
        key: tells two of them apart.
        model, start, pool, test, config: as `sweep` takes them.
    """

    key: str
    model: str
    start: Checkpoint | None
    pool: Examples
    test: Examples
    config: FinetuneConfig


class Worker:
    """What a process keeps between runs: the model and the weights that every run starts from."""

    here: Worker | None = None

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.model, self.task = load_task(setup.model, setup.pool)
        with visiting(self.model, setup.start):
            self.weights = {name: value.detach().clone() for name, value in self.model.state_dict().items()}

    def make(self, run: Run) -> Outcome:
        """Fine-tune on the run's rows and measure."""
        began = time.perf_counter()
        self.model.load_state_dict(self.weights)
        setup, measure = self.setup, self.task.metric
        finetune(self.model, self.task, setup.pool[np.array(run.rows)], setup.config, run.seed)
        value = self.task.evaluate(self.model, setup.test)
        if not math.isfinite(value):
            raise InputError(f"the model's {measure} is {value} in the end; lower the learning rate")
        return Outcome(
            metric=value,
            measure=measure,
            seconds=round(time.perf_counter() - began, 3),
            device=torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
            threads=torch.get_num_threads(),
            versions=versions(),
            side_by_side=_room(),
        )


def prepare(setup: Setup, threads: int) -> None:
    """Make this process a worker of the sweep, if it is none yet."""
    if Worker.here is not None and Worker.here.setup.key == setup.key:
        return
    torch.set_num_threads(threads)
    threadpool_limits(threads)
    silence()
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    Worker.here = Worker(setup)


def start_process(setup: Setup, threads: int, turn: Synchronized[int]) -> None:
    """`prepare` a process of this machine; each takes the next GPU in turn."""
    # An interrupted sweep's workers end at once, without a word.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if torch.cuda.is_available():
        with turn.get_lock():
            torch.cuda.set_device(turn.value % torch.cuda.device_count())
            turn.value += 1
    prepare(setup, threads)


def make(run: Run) -> Outcome:
    """The run, made by this process.

    Whatever goes wrong in it is its outcome, so that others can go on.

    Raises:
        MemoryError: the GPU or the machine is full, perhaps with other runs.
    """
    worker = Worker.here
    assert worker is not None
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        return worker.make(run)
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise MemoryError(_line(error)) from None
    except InputError as error:
        return Outcome(error=str(error))
    except Exception as error:
        return Outcome(error=f"{type(error).__name__}: {_line(error)}")


def versions() -> dict[str, str]:
    """What a run depends on beside its data."""
    packages = ("backcast", "torch", "transformers", "numpy")
    return {"python": python_version(), **{name: _version(name) for name in packages}}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _room() -> int | None:
    if not torch.cuda.is_available():
        return None
    own = torch.cuda.memory_reserved() + CONTEXT
    return side_by_side(torch.cuda.mem_get_info()[0] + own, torch.cuda.max_memory_reserved() + CONTEXT)


def side_by_side(available: int, peak: int) -> int:
    """How many runs of ``peak`` bytes fit into ``available`` bytes; at least one."""
    return max(1, available // peak)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:LONGEST]
