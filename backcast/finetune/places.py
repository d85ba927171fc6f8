"""Where the runs of a sweep are made, and how many at once."""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from backcast.errors import InputError
from backcast.finetune.runs import Outcome, Run
from backcast.finetune.worker import Setup, prepare, start_process


class Place(Protocol):
    """Something to make runs on.

    Attributes:
        cores, gpus: how many there are.
    """

    @property
    def cores(self) -> int: ...

    @property
    def gpus(self) -> int: ...

    def executor(self, at_once: int, share: int) -> Executor:
        """What makes ``at_once`` runs at a time, ``share`` of them on each GPU."""
        ...


def outcomes(
    runs: Sequence[Run], place: Place, work: Callable[[Run], Outcome], workers: int | None = None
) -> Iterator[tuple[Run, Outcome]]:
    """Each run with its outcome, as they finish.

    On GPUs the largest run is made first and alone; its peak says how many fit side by side. A run whose process ran
    out of memory or died is made once more when all others are done, alone, before it counts as failed.

    Args:
        runs: what to make.
        place: where.
        work: makes one, in a worker of ``place``; what it raises counts as the worker's end.
        workers: runs at once, at most; by default one a core.
    """
    again: list[Run] = []
    rest, share = list(runs), 1
    if place.gpus and len(rest) > 1:
        largest = max(rest, key=lambda run: len(run.rows))
        rest.remove(largest)
        for run, made in _attempt([largest], place, work, 1, 1):
            if isinstance(made, Outcome):
                share = made.side_by_side or 1
                yield run, made
            else:
                again.append(run)
    most = min(workers or place.cores, share * place.gpus or len(rest), len(rest))
    for run, made in _attempt(rest, place, work, most, share):
        if isinstance(made, Outcome):
            yield run, made
        else:
            again.append(run)
    for run, made in _attempt(again, place, work, 1, 1):
        yield run, made if isinstance(made, Outcome) else Outcome(error=_why(made))


def _attempt(
    runs: Sequence[Run], place: Place, work: Callable[[Run], Outcome], at_once: int, share: int
) -> Iterator[tuple[Run, Outcome | BaseException]]:
    """Each run with its outcome, or with the exception that its worker ended with."""
    if not runs:
        return
    waiting = deque(runs)
    running: dict[Future[Outcome], Run] = {}
    executor = place.executor(at_once, share)
    try:
        while waiting or running:
            try:
                while waiting and len(running) < at_once:
                    submitted = executor.submit(work, waiting[0])
                    running[submitted] = waiting.popleft()
                ended = wait(running, return_when=FIRST_COMPLETED).done
            except BrokenExecutor:  # a worker died between two runs, and no run is lost
                ended = set()
            broken = not ended or any(isinstance(future.exception(), BrokenExecutor) for future in ended)
            if broken:  # which ends all that were running
                ended = wait(running).done
            for future in ended:
                error = future.exception()
                yield running.pop(future), future.result() if error is None else error
            if broken:
                executor.shutdown()
                executor = place.executor(at_once, share)
    finally:
        executor.shutdown(cancel_futures=True)


def _why(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        return f"out of memory even alone ({error}); lower the batch size"
    reason = " ".join(str(error).split())
    return f"its process died, most often for want of memory ({reason}); lower the batch size"


@dataclass(frozen=True)
class Processes:
    """Processes on this machine, one a run, with the machine's threads split between them."""

    setup: Setup

    @property
    def cores(self) -> int:
        return len(os.sched_getaffinity(0))

    @property
    def gpus(self) -> int:
        return torch.cuda.device_count()

    def executor(self, at_once: int, share: int) -> Executor:
        context = multiprocessing.get_context("spawn")
        threads = max(1, torch.get_num_threads() // at_once)
        return ProcessPoolExecutor(
            at_once, context, initializer=start_process, initargs=(self.setup, threads, context.Value("i", 0))
        )


class Ray:
    """Tasks on a Ray cluster: the one that ``RAY_ADDRESS`` names, or this machine as one.

    The paths of the model, of the data and of images must lead to the same files on every node.

    Raises:
        InputError: Ray is not installed.
    """

    def __init__(self, setup: Setup) -> None:
        try:
            import ray
        except ImportError:
            raise InputError("Ray is not installed; install it with: pip install 'backcast[ray]'") from None
        if not ray.is_initialized():
            ray.init(log_to_driver=False)
        self.setup = ray.put(setup)
        resources = ray.cluster_resources()
        self.cores, self.gpus = (int(resources.get(name, 0)) for name in ("CPU", "GPU"))

    def executor(self, at_once: int, share: int) -> Executor:
        return RayExecutor(self.setup, 1 / share if self.gpus else 0)


class RayExecutor(Executor):
    """Calls as tasks of Ray, each in a process that `prepare` has made a worker, with one core and a share of a GPU."""

    def __init__(self, setup: Any, gpus: float) -> None:
        import ray

        self._setup = setup
        self._task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=0)(_prepared)
        self._cancel = ray.cancel
        self._made: list[Any] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        made = self._task.remote(self._setup, fn, *args, **kwargs)
        self._made.append(made)
        return made.future()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        if cancel_futures:
            for made in self._made:
                self._cancel(made)


def _prepared(setup: Setup, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    prepare(setup, threads=1)
    return fn(*args, **kwargs)
