"""How runs are dealt out: how many at once, what memory allows, and what happens when a worker dies."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.thread import BrokenThreadPool
from dataclasses import dataclass, field
from typing import Any

import pytest

from backcast.finetune import Run
from backcast.finetune.places import outcomes
from backcast.finetune.runs import Outcome
from backcast.finetune.worker import side_by_side


def run(n: int, seed: int = 0) -> Run:
    return Run("random", str(n), tuple(range(n)), seed)


@dataclass
class Threads:
    """A place of threads, which notes what it was asked for."""

    cores: int = 8
    gpus: int = 0
    asked: list[tuple[int, int]] = field(default_factory=list)

    def executor(self, at_once: int, share: int) -> Executor:
        self.asked.append((at_once, share))
        return ThreadPoolExecutor(at_once)


@dataclass
class Gauge:
    """Work that takes a moment and counts itself; beyond ``room`` at once there is no memory."""

    room: int = 100
    fits: int | None = None
    now: int = 0
    most: int = 0
    order: list[int] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, made: Run) -> Outcome:
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
            self.order.append(len(made.rows))
        time.sleep(0.02)
        with self.lock:
            full = self.now > self.room
            self.now -= 1
        if full:
            raise MemoryError("no room")
        return Outcome(metric=float(len(made.rows)), side_by_side=self.fits)


@pytest.mark.parametrize(("workers", "cores", "most"), [(None, 3, 3), (2, 8, 2), (5, 2, 5), (None, 99, 7)])
def test_as_many_at_once_as_there_are_workers(workers, cores, most):
    runs, work, place = [run(n) for n in range(1, 8)], Gauge(), Threads(cores)
    found = dict(outcomes(runs, place, work, workers))
    assert {made: found[made].metric for made in runs} == {made: len(made.rows) for made in runs}
    assert work.most == most
    assert place.asked == [(most, 1)]


@pytest.mark.parametrize(
    ("fits", "gpus", "workers", "most"),
    [(3, 1, None, 3), (1, 1, 4, 1), (2, 2, None, 4), (50, 1, None, 6), (3, 1, 2, 2)],
)
def test_on_a_gpu_the_largest_run_says_how_many_fit(fits, gpus, workers, most):
    runs, work, place = [run(n) for n in (2, 5, 9, 1, 3, 4, 6)], Gauge(fits=fits), Threads(gpus=gpus)
    found = list(outcomes(runs, place, work, workers))
    assert work.order[0] == 9
    assert found[0][0] == run(9)
    assert sorted(work.order) == [1, 2, 3, 4, 5, 6, 9]
    assert work.most == most
    assert place.asked == [(1, 1), (most, fits)]


def test_runs_without_memory_are_made_again_alone():
    runs, work, place = [run(n) for n in range(1, 7)], Gauge(room=1), Threads(cores=3)
    found = list(outcomes(runs, place, work))
    assert {made for made, _ in found} == set(runs)
    assert all(outcome.metric == len(made.rows) for made, outcome in found)
    assert place.asked == [(3, 1), (1, 1)]
    assert len(work.order) > 6

    found = list(outcomes(runs, Threads(cores=3, gpus=1), Gauge(room=0, fits=2)))
    assert [outcome.error for _, outcome in found] == 6 * [
        "out of memory even alone (no room); lower the batch size"
    ]


def test_one_run_on_a_gpu_needs_no_measure():
    place = Threads(gpus=1)
    assert len(list(outcomes([run(4)], place, Gauge(fits=3)))) == 1
    assert place.asked == [(1, 1)]
    assert list(outcomes([], place, Gauge())) == []


# ------------------------------------------------------------------ workers that die


class Forks(Threads):
    def executor(self, at_once: int, share: int) -> Executor:
        self.asked.append((at_once, share))
        return ProcessPoolExecutor(at_once, multiprocessing.get_context("fork"))


def deadly(made: Run) -> Outcome:
    """Two of the runs end the process that makes them."""
    if len(made.rows) in (2, 5):
        os._exit(1)
    time.sleep(0.01)
    return Outcome(metric=float(len(made.rows)))


def test_a_run_that_kills_its_worker_fails_and_no_other_does():
    runs = [run(n) for n in range(1, 9)]
    found = dict(outcomes(runs, Forks(), deadly, workers=2))
    assert len(found) == 8
    for made, outcome in found.items():
        if len(made.rows) in (2, 5):
            assert outcome.error is not None
            assert outcome.error.startswith("its process died, most often for want of memory (")
        else:
            assert outcome == Outcome(metric=float(len(made.rows)))


class BreaksWhenIdle(ThreadPoolExecutor):
    """An executor that is found broken at its second call."""

    calls = 0

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.calls += 1
        if self.calls > 1:
            raise BrokenThreadPool("a worker went while it had nothing to do")
        return super().submit(fn, *args, **kwargs)


class Idle(Threads):
    def executor(self, at_once: int, share: int) -> Executor:
        return BreaksWhenIdle(at_once)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_that_dies_between_two_runs_costs_none(workers):
    runs, work = [run(n) for n in range(1, 5)], Gauge()
    found = dict(outcomes(runs, Idle(), work, workers=workers))
    assert {made: found[made].metric for made in runs} == {made: len(made.rows) for made in runs}
    assert sorted(work.order) == [1, 2, 3, 4]


def test_an_error_of_whoever_reads_stops_the_rest():
    place, work = Threads(cores=1), Gauge()
    made = outcomes([run(n) for n in range(1, 9)], place, work)
    next(made)
    made.close()
    assert len(work.order) <= 2


def test_how_many_fit_into_a_gpus_memory():
    assert [side_by_side(80, peak) for peak in (80, 41, 40, 11, 1)] == [1, 1, 2, 7, 80]
    assert side_by_side(30, 80) == 1
