"""The whole loop, from raw examples to how much data is needed, and which."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from threadpoolctl import threadpool_limits
from torch import nn

from backcast.attribution import (
    Checkpoint,
    GradientIndex,
    Scores,
    SketchStore,
    attribute,
    collect,
    near_duplicates,
)
from backcast.data import Example, Examples, read_examples
from backcast.errors import InputError
from backcast.files import read_json, write_json
from backcast.finetune import Run, finetune, sweep
from backcast.manifests import Manifest
from backcast.multimodal import MultimodalTask, Parts, load_task, split
from backcast.progress import console, progress
from backcast.recipes.demo.setting import SELECTORS, Plan, Setting, Summary, Truth
from backcast.scaling import Inversion, Law, fit_law, next_run
from backcast.selectors import select
from backcast.tasks import Task

#: Rows of the pool that the split and the report's gallery show, from each end.
SHOWN = 6
#: Targets whose nearest training examples the report shows, and how many of them.
QUERIES, NEAREST = 4, 6


@dataclass
class Loop:
    """One run of the loop in one folder; every step resumes from what it finds there.

    Args:
        setting: the data, the model, the metric.
        folder: of the run.
        seed: of the data, the model, the sketch and every random choice.
        quick: fewer budgets and seeds.
    """

    setting: Setting
    folder: Path
    seed: int = 0
    quick: bool = False
    seconds: dict[str, float] = field(default_factory=dict, init=False)

    def run(self) -> Summary:
        """Do every step that is not done yet; returns what ``summary.json`` holds, and writes it.

        Raises `InputError` for a folder that holds another run.
        """
        # The work is small matrices: a second thread costs more than it brings, and would fight the sweep's workers.
        torch.set_num_threads(1)
        threadpool_limits(1)
        self._claim()
        if (self.folder / "seconds.json").is_file():
            self.seconds = read_json(self.folder / "seconds.json")
        with self._step("data and model"):
            self._write_data()
        with self._step("warm-up and checkpoints"):
            self._train_checkpoints()
        with self._step("sketches"):
            self.pool_store, self.target_store = self._collect()
        with self._step("scores"):
            self.scores = self._attribute()
        with self._step("index"):
            self.duplicates, self.duplicate_cosines = near_duplicates(self.pool_store)
            self.near_cosines, self.near_rows = self._nearest()
        with self._step("split by modality"):
            self.split = self._split()
        with self._step("selection"):
            self.manifests = self._select()
        with self._step("fine-tunes"):
            self.results = self._sweep()
        with self._step("law and inversion"):
            self.laws, self.inversions, self.advice = self._invert()
        self.summary = self._summary()
        write_json(self.folder / "summary.json", self.summary)
        return self.summary

    @cached_property
    def plan(self) -> Plan:
        return self.setting.plan(self.quick)

    @cached_property
    def pool(self) -> Examples:
        return self._read("pool")

    @cached_property
    def target(self) -> Examples:
        return self._read("target")

    @cached_property
    def test(self) -> Examples:
        return self._read("test")

    @cached_property
    def truth(self) -> Truth | None:
        return self.setting.truth(self.folder / "data")

    @cached_property
    def groups(self) -> list[str]:
        return self.setting.groups(self.target)

    @cached_property
    def _loaded(self) -> tuple[nn.Module, Task]:
        return load_task(str(self.folder / "data" / "model"), self.pool)

    def best_scores(self) -> np.ndarray:
        """(n,) each pool row's score for the target group that it serves best (Xia et al. 2024, LESS, section 4.2)."""
        return self.scores.values.max(axis=1)

    def shown(self) -> np.ndarray:
        """The rows of the gallery: the best, best first, then the worst, worst first; each text once in either."""
        order = np.argsort(-self.best_scores(), kind="stable")
        return np.concatenate([self._distinct(order), self._distinct(order[::-1])])

    def _distinct(self, order: np.ndarray) -> np.ndarray:
        first: dict[str, int] = {}
        for row in order.tolist():
            first.setdefault(self.setting.text(self.pool[row]), row)
        return np.array(list(first.values())[:SHOWN])

    def mean(self, selector: str, budget: str) -> float:
        """The metric's mean over the seeds."""
        method = SELECTORS.get(selector, selector)
        return float(
            np.mean([r["metric"] for r in self.results if (r["selector"], r["budget"]) == (method, budget)])
        )

    def words(self, example: Example) -> list[str]:
        """The words of an example's text, for the split's map of it."""
        task = self._loaded[1]
        assert isinstance(task, MultimodalTask)
        return task.words(example)

    @contextmanager
    def _step(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        console.print(f"[bold]{name}[/bold]")
        yield
        # An interrupted run's time counts; reading a finished one again does not.
        finished = (self.folder / "summary.json").is_file()
        spent = 0.0 if finished else time.perf_counter() - began
        self.seconds[name] = round(self.seconds.get(name, 0.0) + spent, 2)
        write_json(self.folder / "seconds.json", self.seconds)

    def _claim(self) -> None:
        mark = self.folder / "run.json"
        mine = {"data": self.setting.name, "seed": self.seed, "quick": self.quick, "plan": _plain(self.plan)}
        if mark.is_file() and read_json(mark) != mine:
            raise InputError(f"{self.folder}: holds another run; choose another --out or delete this folder")
        if not mark.is_file() and self.folder.exists() and any(self.folder.iterdir()):
            raise InputError(f"{self.folder}: not empty, and no run of this demo; choose another --out")
        write_json(mark, mine)

    def _write_data(self) -> None:
        done = self.folder / "data" / "done.json"
        if not done.is_file():
            self.setting.write(self.folder / "data", self.seed, self.quick)
            write_json(done, True)

    def _read(self, name: str) -> Examples:
        return read_examples(str(self.folder / "data" / f"{name}.jsonl"))

    def _train_checkpoints(self) -> None:
        """The warm-up's weights, from which every run starts, and the scoring run's two checkpoints."""
        done = self.folder / "checkpoints.json"
        if not done.is_file():
            model, task = self._loaded
            warm, scoring = self.plan.warmup, self.plan.scoring
            places = self.folder / "checkpoints"
            start = {warm.steps: places / "start.safetensors"}
            kept = finetune(model, task, self._read("warmup"), warm, self.seed, start)
            halfway = {s: places / f"scoring-{s}.safetensors" for s in (scoring.steps // 2, scoring.steps)}
            kept += finetune(model, task, self.pool, scoring, self.seed, halfway)
            write_json(done, [str(Path(c.path).relative_to(self.folder)) for c in kept])
        self.start, *self.checkpoints = (Checkpoint(str(self.folder / path)) for path in read_json(done))

    def _collect(self) -> tuple[SketchStore, SketchStore]:
        model, task = self._loaded
        pool = collect(
            model,
            task,
            self.pool,
            self.folder / "sketches" / "pool",
            checkpoints=self.checkpoints,
            spec=self.plan.spec,
        )
        target = collect(
            model,
            task,
            self.target,
            self.folder / "sketches" / "target",
            checkpoints=self.checkpoints,
            like=pool,
        )
        return pool, target

    def _attribute(self) -> Scores:
        scores = attribute(self.pool_store, self.target_store, "tracin", cosine=True, groups=self.groups)
        scores.save(self.folder / "scores.safetensors")
        return scores

    def _nearest(self) -> tuple[np.ndarray, np.ndarray]:
        """(QUERIES, NEAREST) cosines and pool rows for the first target of each of the first groups."""
        return GradientIndex(self.pool_store).search(self.target_store.features()[self.queries()], NEAREST)

    def queries(self) -> np.ndarray:
        """The targets whose neighbours are shown: one of each group first, then the next rows."""
        first = [self.groups.index(name) for name in dict.fromkeys(self.groups)]
        others = [row for row in range(len(self.target)) if row not in set(first)]
        return np.array([*first, *others][:QUERIES])

    def _split(self) -> Parts | None:
        model, task = self._loaded
        if not isinstance(task, MultimodalTask):
            return None
        rows = self.shown()
        return split(
            model,
            task,
            self.pool,
            self.target,
            train=self.pool_store,
            target=self.target_store,
            cosine=True,
            rows=rows,
            checkpoints=self.checkpoints,
            groups=self.groups,
            towards=[self.scores.targets[i] for i in self.scores.values[rows].argmax(axis=1)],
        )

    def _select(self) -> list[tuple[Manifest, Sequence[int]]]:
        """Manifests, each with the seeds of its runs; a random subset is drawn anew for every run."""
        made: list[tuple[Manifest, Sequence[int]]] = []
        seeds, features = range(self.plan.seeds), self.pool_store.features()
        with progress("subsets", len(SELECTORS) * len(self.plan.budgets)) as done:
            for name, method in SELECTORS.items():
                for budget in self.plan.budgets:
                    draws = [(s, [s]) for s in seeds] if name == "random" else [(self.seed, list(seeds))]
                    for draw, runs in draws:
                        suffix = f"-{draw}" if name == "random" else ""
                        path = self.folder / "subsets" / f"{name}-{budget.rstrip('%')}{suffix}.jsonl"
                        if not path.is_file():
                            select(self.scores, budget, method, draw, features=features).save(path)
                        made.append((Manifest.load(path), runs))
                    done(1)
        return made

    def _sweep(self) -> list[dict[str, Any]]:
        runs = [
            Run.on_subset(manifest, self.pool, seed) for manifest, seeds in self.manifests for seed in seeds
        ]
        runs += [Run.on_all(self.pool, seed) for seed in range(self.plan.seeds)]
        return sweep(
            str(self.folder / "data" / "model"),
            self.pool,
            self.test,
            runs,
            self.folder / "sweep",
            config=self.plan.runs,
            start=self.start,
        )

    def _invert(self) -> tuple[dict[str, Law], list[tuple[str, Inversion, float | None]], str]:
        """The laws of all budgets; the predictions from the fitted ones, with what was observed; the next run."""
        full = self.mean("full", "100%")
        laws, predictions = {}, []
        with progress("laws", 2 * len(SELECTORS)) as done:
            for name in SELECTORS:
                laws[name] = self._fit(name, self.plan.budgets)
                early = self._fit(name, self.plan.fitted)
                for target in (full, self.mean(name, "40%")):
                    predictions.append((name, early.invert(target), self._observed(name, target)))
                done(2)
        best = self.best_selector()
        return laws, predictions, self._advise(laws[best], full)

    def best_selector(self) -> str:
        """The selector with the best mean at 40 % of the pool."""
        sign = 1 if self.setting.higher_is_better else -1
        return max(SELECTORS, key=lambda name: sign * self.mean(name, "40%"))

    def _fit(self, name: str, budgets: Sequence[str]) -> Law:
        rows = [
            {"n": r["n"], "value": r["metric"], "seed": r["seed"]}
            for r in self.results
            if r["selector"] == SELECTORS[name] and r["budget"] in budgets
        ]
        return fit_law(rows, higher_is_better=self.setting.higher_is_better, bounds=self.setting.bounds)

    def _observed(self, name: str, target: float) -> float | None:
        """The n at which the selector's mean first meets ``target``, interpolated in log n; None if it never does."""
        sign = 1 if self.setting.higher_is_better else -1
        sizes = {r["budget"]: r["n"] for r in self.results if r["selector"] == SELECTORS[name]}
        before: tuple[float, float] | None = None
        for budget in self.plan.budgets:
            n, value = float(sizes[budget]), sign * self.mean(name, budget)
            if value >= sign * target:
                if before is None or value == before[1]:
                    return n
                share = (sign * target - before[1]) / (value - before[1])
                return float(before[0] * (n / before[0]) ** share)
            before = (n, value)
        return None

    def _advise(self, law: Law, target: float) -> str:
        sizes = [round(len(self.pool) * share) for share in (0.05, 0.1, 0.2, 0.4, 0.8)]
        candidates = [(n, seeds) for n in sizes for seeds in (1, 2, 3)]
        return next_run(law, target, candidates).sentence()

    def _summary(self) -> Summary:
        return {
            "data": self.setting.name,
            "seed": self.seed,
            "quick": self.quick,
            "measure": self.setting.metric,
            "spoilt_auroc": self._spoilt_auroc(),
            "full_metric": self.mean("full", "100%"),
            "results": [
                {key: row[key] for key in ("selector", "budget", "n", "seed", "metric")}
                for row in self.results
            ],
            "duplicates": self._duplicate_quality(),
            "inversions": [
                {
                    "selector": name,
                    "observed_n": observed,
                    "smallest_n": found.n_min,
                    **{
                        k: found.to_json()[k]
                        for k in ("target", "n", "low", "high", "p_unreachable", "status")
                    },
                }
                for name, found, observed in self.inversions
            ],
            "split_max_relative_gap": None if self.split is None else float(self.split.first.gap.max()),
            "next_run": self.advice,
            "seconds": {**self.seconds, "total": round(sum(self.seconds.values()), 2)},
        }

    def _spoilt_auroc(self) -> float | None:
        return None if self.truth is None else float(roc_auc_score(~self.truth.spoilt, self.best_scores()))

    def _duplicate_quality(self) -> dict[str, float] | None:
        if self.truth is None:
            return None
        found = {(int(i), int(j)) for i, j in self.duplicates}
        hits = len(found & self.truth.pairs)
        return {"recall": hits / len(self.truth.pairs), "precision": hits / max(1, len(found))}


def _plain(plan: Plan) -> dict[str, Any]:
    """The plan as JSON would read it back."""
    values = {k: v.model_dump() if hasattr(v, "model_dump") else v for k, v in vars(plan).items()}
    return json.loads(json.dumps({**values, "spec": asdict(plan.spec)}))
