"""What a run would take, found out before it is made."""

from __future__ import annotations

import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from backcast.attribution import Scores, SketchStore, attribute, collect
from backcast.attribution.collect import evaluation_mode, sketch, tracked
from backcast.attribution.gradients.capture import GradientCapture
from backcast.attribution.gradients.opened import opened
from backcast.attribution.scores import write_scores
from backcast.attribution.store import Header
from backcast.data import Examples, Rows
from backcast.kernels import SketchSpec, default_kind
from backcast.multimodal import check_same_kind, load_task
from backcast.recipes.selection.choose import check_method
from backcast.recipes.selection.glimpse import Glimpse, glimpse
from backcast.recipes.selection.one_shot import check_asked, targets_of
from backcast.recipes.selection.run_config import RunConfig
from backcast.selectors import Method
from backcast.selectors.evidence import take_rows
from backcast.tasks import Task
from backcast.vectors.features import BLOCK

Clock = Callable[[], float]

#: Rows of a data set that are looked at: as many as a shard holds, so that batches are made as in the run.
SAMPLE = 256
#: Seconds of sketching after which no more rows are timed.
ENOUGH = 3.0
#: Bytes that a row's id, place and source take, with their copies while the header of a store is written.
ROW = 1500

#: Stage → (seconds, bytes) a row of the pool, of the stages whose cost is proportional to it; of ten targets, by one
#: thread of a server of 2024.
LINEAR: dict[str, tuple[float, int]] = {
    "random": (1e-6, 110),
    "top_k": (1e-6, 120),
    "less": (1e-6, 140),
    "vote": (1e-6, 140),
    "round_robin": (2e-6, 220),
    "importance": (1.5e-6, 220),
    "quota": (1.5e-6, 140),
    "middle": (1e-6, 130),
}


@dataclass(frozen=True)
class Step:
    """A part of a run, and what it takes; None where that is not known, or nothing.

    Attributes:
        step: its name.
        rows: the examples that go through it.
        seconds: on the machine that the estimate was made on.
        memory, disk: bytes.
    """

    step: str
    rows: int | None = None
    seconds: float | None = None
    memory: int | None = None
    disk: int | None = None


@dataclass(frozen=True)
class Estimate:
    """What a run would take from the start, nothing of it being there yet.

    Attributes:
        steps: its parts, in order.
        free: bytes of ``memory`` and ``disk`` that are available.
        unknown: the stages of the method whose seconds and memory are not known.
    """

    steps: tuple[Step, ...]
    free: Mapping[str, int]
    unknown: tuple[str, ...] = ()

    def total(self, what: str) -> Any:
        """The sum over the steps of ``seconds``, ``memory`` (as if none of it was given back) or ``disk``."""
        return sum(getattr(step, what) or 0 for step in self.steps)

    def to_json(self) -> dict[str, Any]:
        totals = {what: self.total(what) for what in ("seconds", "memory", "disk")}
        return {
            "steps": [asdict(step) for step in self.steps],
            "total": totals,
            "free": dict(self.free),
            "unknown": list(self.unknown),
        }


def estimate(config: RunConfig, clock: Clock = time.perf_counter) -> Estimate:
    """Look at some rows, load the model, time a few batches, and say what the run of ``config`` would take.

    Rows are spread evenly over a data set, which is counted, not read. A folder for temporary files holds what is
    written meanwhile.

    Args:
        config: the run.
        clock: what times are taken by: the clock's seconds, or `time.process_time`.

    Raises:
        InputError: what the run would raise, as far as the rows that were looked at show it.
    """
    (check_method if config.scores else check_asked)(config)
    steps = _from_scores(config) if config.scores else _one_shot(config, clock)
    unknown = tuple(
        stage for stage in Method.parse(config.method, config.params).params if stage not in LINEAR
    )
    return Estimate(tuple(steps), {"memory": _free_memory(), "disk": _free_disk(Path(config.out))}, unknown)


def _from_scores(config: RunConfig) -> list[Step]:
    scores = Scores.load(str(config.scores))
    d = SketchStore.open(config.store).shape[1] if config.store else 0
    return [_scores_held(*scores.values.shape), _choice(config, len(scores), d)]


def _one_shot(config: RunConfig, clock: Clock) -> list[Step]:
    def look(data: str) -> Glimpse:
        return glimpse(data, config.columns, config.skip_broken, SAMPLE, clock)

    pool, targets = look(str(config.pool)), [look(data) for data in targets_of(config).values()]
    for target in targets:
        check_same_kind(pool.examples, target.examples)
    n, m = pool.rows, sum(target.rows for target in targets)
    reading = pool.seconds + sum(target.seconds for target in targets)

    began = clock()
    network, task = load_task(str(config.model), pool.examples)
    loading = clock() - began
    spec = SketchSpec(
        config.sketch.kind or default_kind(next(network.parameters()).device), config.sketch.dim
    )
    rates = [_rate(network, task, side.examples, spec, config.batch_size, clock) for side in (pool, *targets)]
    sketching = n * rates[0], sum(target.rows * rate for target, rate in zip(targets, rates[1:], strict=True))

    with tempfile.TemporaryDirectory() as folder:
        few, began = pool.examples[:2], clock()
        store = collect(network, task, few, f"{folder}/few", spec=spec, dtype=config.sketch.dtype)
        # hashing the weights, and what else is done once for a store
        once = max(0.0, clock() - began - len(few) * rates[0])
        held = _peak()
        some = [example for target in targets for example in target.examples]
        files = _Files(store.header, Path(folder), pool.examples.index, Examples(some).index)
        return [
            Step("data", n + m, reading, ROW * (n + m)),
            Step("model", None, loading, held),
            Step("sketches of the target", m, once + sketching[1], disk=files.store(m)),
            Step("sketches of the pool", n, once + sketching[0], disk=files.store(n)),
            replace(_scores_held(n, m), **files.scores(config, n, m, clock)),
            _choice(config, n, spec.dim),
        ]


def _rate(
    network: nn.Module, task: Task, examples: Examples, spec: SketchSpec, batch_size: int, clock: Clock
) -> float:
    """Seconds of sketching one example, in batches as `collect` makes them."""
    with evaluation_mode(network), opened(network):
        task.prepare(network)
        with GradientCapture(network, tracked(network, task), spec, task.biases) as capture:
            sketch(capture, task, examples[:1], batch_size)  # what only the first one waits for
            size = 1
            while True:
                size = min(2 * size, len(examples))
                some = examples[np.linspace(0, len(examples) - 1, size).round().astype(int)]
                began = clock()
                sketch(capture, task, some, batch_size)[0].cpu()
                seconds = clock() - began
                if seconds > ENOUGH or size == len(examples):
                    return seconds / size


class _Files:
    """What a run would write, tried with sketches of noise.

    Args:
        header: of a store like the run's.
        folder: for temporary files.
        pool, target: some of the rows of each.
    """

    def __init__(self, header: Header, folder: Path, pool: Rows, target: Rows) -> None:
        self.header, self.folder, self.pool, self.target = header, folder, pool, target

    def store(self, n: int) -> int:
        """Bytes of the store of n examples."""
        return round(_grown(n, len(self.pool), lambda size: _bytes(self._noise(self.pool, size).path)))

    def scores(self, config: RunConfig, n: int, m: int, clock: Clock) -> dict[str, Any]:
        """Seconds that n × m scores take, and bytes of their file."""
        wants, file = self._noise(self.target, len(self.target)), self.folder / "scores"
        method, params = config.score.method, config.score.params

        def seconds(size: int) -> float:
            train = self._noise(self.pool, size)
            began = clock()
            attribute(train, wants, method, out=file, **params)
            return clock() - began

        taken = _grown(n, len(self.pool), seconds) * max(1.0, m / len(self.target))
        origin = Scores.load(file).origin

        def head(size: int) -> int:
            rows = take_rows(self.pool, np.arange(size))
            write_scores(file, [], rows, ["0" * 64] * m, method, params, origin)
            return file.stat().st_size

        return {"seconds": taken, "disk": round(_grown(n, len(self.pool), head)) + 4 * n * m}

    def _noise(self, rows: Rows, size: int) -> SketchStore:
        """A store of the first ``size`` of the rows, each time another."""
        header = replace(self.header, rows=take_rows(rows, np.arange(size)), shard_rows=SAMPLE)
        store = SketchStore.create(tempfile.mkdtemp(dir=self.folder), header)
        noise = np.random.default_rng(0).normal(size=(size, header.spec.dim)).astype(np.float32)
        for shard, part in enumerate(header.shards()):
            store.write(0, shard, noise[part])
        return store


def _grown(n: int, known: int, measure: Callable[[int], float]) -> float:
    """What would be measured of n rows: as if it grew by the row, as it does from half of the known ones to all."""
    if n <= known:
        return measure(n)
    half, all_of_them = measure(max(1, known // 2)), measure(known)
    return all_of_them + (n - known) * max(0.0, all_of_them - half) / max(1, known - known // 2)


def _scores_held(n: int, m: int) -> Step:
    """Scores mapped into memory, which may give them back."""
    return Step("scores", n * m, memory=4 * n * m)


def _choice(config: RunConfig, n: int, d: int) -> Step:
    """The method's stages, where they are known; beside them a block of features of d numbers."""
    stages = Method.parse(config.method, config.params).params
    block = 12 * min(n, BLOCK) * d
    if not stages.keys() <= LINEAR.keys():
        return Step("choice", n, memory=block)
    seconds, size = np.sum([LINEAR[stage] for stage in stages], axis=0).tolist()
    return Step("choice", n, n * seconds, block + int(n * size))


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _peak() -> int:
    """The most bytes of memory that this process has held so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _free_memory() -> int:
    available = Path("/proc/meminfo")
    if available.is_file():  # which counts what caches would give back
        fields = dict(line.split(":") for line in available.read_text().splitlines())
        return 1024 * int(fields["MemAvailable"].split()[0])
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _free_disk(out: Path) -> int:
    there = next(folder for folder in out.resolve().parents if folder.is_dir())
    return shutil.disk_usage(there).free
