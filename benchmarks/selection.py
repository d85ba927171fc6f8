"""Which selectors choose data that a model learns more from than from a random draw, and by how much?

Four pools: digits with captions, 30 % of them spoilt; docstrings, towards those of a package that is not among them;
docstrings with grade-school problems among them, towards problems; CIFAR-10 with 30 % wrong labels. A small model is
fine-tuned on what each selector chooses, for the same number of steps whatever the budget. Beside the selectors stand
random draws, uniform and balanced by source, LESS as its authors published it, the whole pool, and random draws of the
rows that are known to be good. A seed is a pool, a model and an order of batches of its own; intervals are Student's,
of the differences within a seed.

What has been made is kept under --work: an interrupted run goes on from there.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import HERE, Row, write
from safetensors.torch import save_file
from scipy.stats import t as student
from selection_settings import Draw, Setting, settings

from backcast.attribution import Checkpoint, Scores, SketchStore, attribute, collect
from backcast.errors import InputError
from backcast.files import read_json, sha256, write_json
from backcast.finetune import finetune
from backcast.kernels import SketchSpec
from backcast.progress import console, progress
from backcast.selectors import select
from backcast.tasks import on_device

SEEDS, BUDGETS, COMPARED = 5, ("10%", "20%", "40%"), "20%"
RANDOM, BALANCED, LESS, FULL = "random", "random, by source", "LESS", "full"
#: The share of the pool in LESS's warm-up (Xia et al. 2024, section 5.1), and the numbers of a sketch.
SHARE, DIM = 0.05, 2048


@dataclass(frozen=True)
class Way:
    """How a subset is chosen: a method of `select`, its parameters, and the scores that it is given."""

    method: str
    params: Mapping[str, Any] = field(default_factory=dict)
    scores: str = "tracin"


#: By the name in the table; what `select` refuses is passed over, and the reason told.
WAYS = {
    RANDOM: Way("random"),
    BALANCED: Way("random", {"balance": "source"}),
    LESS: Way("less", scores="less"),
    "top_k": Way("top_k"),
    "less": Way("less"),
    "round_robin": Way("round_robin"),
    "vote": Way("vote"),
    "quota": Way("quota"),
    "importance": Way("importance"),
    "middle": Way("middle", scores="perplexity"),
    "k_center": Way("k_center"),
    "herding": Way("herding"),
    "cluster": Way("cluster"),
    "graph_cut": Way("graph_cut"),
    "log_det": Way("log_det"),
    "facility_location": Way("facility_location"),
    "dedup | round_robin": Way("dedup | round_robin"),
    "trim | random": Way("trim | random"),
    "trim | k_center": Way("trim | k_center"),
    "trim | herding": Way("trim | herding"),
    "dedup | quota(source) | facility_location": Way("dedup | quota(source) | facility_location"),
}
ALWAYS = (RANDOM, BALANCED, LESS)

#: A fine-tune: selector, budget, seed, n, metric, wanted (the share of known good rows), seconds (of the processor).
Run = dict[str, Any]


def main() -> None:
    asked = _arguments()
    torch.set_num_threads(1)
    known = settings(asked.data, asked.work, asked.quick)
    if absent := [name for name in asked.setting if name not in known]:
        print(f"{absent[0]}: choose from {', '.join(known)}; some need --data", file=sys.stderr)
        sys.exit(2)
    chosen = [setting for name, setting in known.items() if not asked.setting or name in asked.setting]
    rows: list[Row] = []
    told: list[str] = []
    with progress("selection", len(chosen) * asked.seeds) as done:
        for setting in chosen:
            runs: list[Run] = []
            for seed in range(asked.seeds):
                place = Place(
                    setting, seed, asked.work / f"{setting.name}{'-quick' * asked.quick}" / str(seed)
                )
                runs += place.runs(asked.selectors, asked.budgets)
                done(1)
            rows += summary(setting, runs)
            told += verdict(setting, rows)
    complete = not (asked.quick or asked.setting or asked.selectors or asked.data is None)
    complete = complete and asked.seeds >= SEEDS
    write("selection" if complete else "selection-quick", rows, asked.json)
    if not asked.json:
        for sentence in told:
            console.print(sentence, highlight=False)
    if complete:
        plot(rows, HERE.parent / "docs" / "selection.png")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small pools, short runs, one seed, one budget")
    parser.add_argument("--json", action="store_true", help="print the results as one JSON object")
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="gsm8k_train.jsonl.gz and CIFAR-10's parquet files"
    )
    parser.add_argument("--work", type=Path, metavar="DIR", default=HERE.parent / "runs" / "selection")
    parser.add_argument(
        "--setting", action="append", default=[], metavar="NAME", help="this one; repeat it for more"
    )
    parser.add_argument(
        "--selectors", default="", metavar="A,B", help="these, and what they are compared with"
    )
    parser.add_argument("--seeds", type=int, metavar="N", help=f"{SEEDS}, or 1 with --quick")
    asked = parser.parse_args()
    asked.seeds = asked.seeds or (1 if asked.quick else SEEDS)
    asked.budgets = (COMPARED,) if asked.quick else BUDGETS
    asked.selectors = [name for name in asked.selectors.split(",") if name]
    if odd := [name for name in asked.selectors if name not in WAYS]:
        parser.error(f"no selector {odd[0]!r}; choose from {', '.join(WAYS)}")
    return asked


# ------------------------------------------------------------------ one seed of one setting


@dataclass(frozen=True)
class Place:
    """A seed of a setting, and the folder that keeps its evidence and its runs."""

    setting: Setting
    seed: int
    path: Path

    def runs(self, selectors: Sequence[str], budgets: Sequence[str]) -> list[Run]:
        """Of these selectors, or of all where there are none, and of what they are compared with."""
        self._claim()
        subsets = [*self._chosen(selectors, budgets), *self._known(budgets)]
        found: list[Run] = []
        with progress(f"{self.setting.name}, seed {self.seed}", len(subsets)) as done:
            for name, budget, positions in subsets:
                found.append({"selector": name, "budget": budget, "seed": self.seed, **self._run(positions)})
                done(1)
        return found

    @cached_property
    def draw(self) -> Draw:
        return self.setting.draw(self.seed)

    @cached_property
    def start(self) -> dict[str, torch.Tensor]:
        """The weights that every run starts from; the model then has them too."""
        point = self.path / "start.safetensors"
        if not point.is_file():
            config = self.setting.warmup
            finetune(
                self.draw.model, self.draw.task, self.draw.warmup, config, self.seed, {config.steps: point}
            )
        self.draw.model.load_state_dict(Checkpoint(str(point)).weights(), strict=False)
        return {name: value.clone() for name, value in self.draw.model.state_dict().items()}

    @cached_property
    def store(self) -> SketchStore:
        """Gradients of the pool half-way through a fine-tune on it, and at its end."""
        return self._collected("pool", self._scoring(), SketchSpec("tile", DIM))

    @cached_property
    def scores(self) -> dict[str, Scores]:
        """Of the pool's rows: for each target group, or for each target where there are none; LESS's, for each group or
        the only one; and perplexities at the start."""
        makers = {"tracin": self._tracin, "less": self._less, "perplexity": self._perplexity}
        return {name: self._kept(name, make) for name, make in makers.items()}

    def _kept(self, name: str, make: Callable[[], Scores]) -> Scores:
        file = self.path / f"{name}.safetensors"
        if not file.is_file():
            began = time.process_time()
            scores = make()
            write_json(self.path / f"{name}-seconds.json", time.process_time() - began)
            scores.save(file)
        return Scores.load(file)

    def _tracin(self) -> Scores:
        target = self._collected("target", self._scoring(), like=self.store)
        groups = self.draw.groups
        return attribute(self.store, target, "tracin", cosine=True, groups=groups)

    def _less(self) -> Scores:
        points = self._published()
        pool = self._collected("less-pool", points, SketchSpec("tile", DIM), direction="adam")
        target = self._collected("less-target", points, like=pool)
        groups = self.draw.groups or ("target",) * len(target)
        return attribute(pool, target, "less", groups=groups)

    def _perplexity(self) -> Scores:
        draw = self.draw
        draw.model.load_state_dict(self.start)
        return attribute(draw.pool, draw.target[:1], "perplexity", model=draw.model, task=draw.task)

    def _collected(
        self, name: str, points: Sequence[Checkpoint], spec: SketchSpec | None = None, **how: Any
    ) -> SketchStore:
        examples = self.draw.target if name.endswith("target") else self.draw.pool
        place = self.path / "sketches" / name
        return collect(
            self.draw.model,
            self.draw.task,
            examples,
            place,
            checkpoints=points,
            spec=spec,
            dtype="float16",
            **how,
        )

    def _scoring(self) -> list[Checkpoint]:
        """Half-way and at the end, each with its half's mean learning rate; the last step's is next to none."""
        config, draw = self.setting.scoring, self.draw
        steps = (config.steps // 2, config.steps)
        files = [self.path / f"scoring-{step}.safetensors" for step in steps]
        if not files[-1].is_file():
            draw.model.load_state_dict(self.start)
            finetune(
                draw.model, draw.task, draw.pool, config, self.seed, dict(zip(steps, files, strict=True))
            )
        rates = np.split([config.rate(step) for step in range(config.steps)], [steps[0]])
        return [Checkpoint(str(file), float(half.mean())) for file, half in zip(files, rates, strict=True)]

    def _published(self) -> list[Checkpoint]:
        """The end of each epoch of LESS's warm-up, with Adam's state and the epoch's mean learning rate."""
        draw, how = self.draw, self.setting.less
        n = round(SHARE * len(draw.pool))
        examples = draw.pool[np.random.default_rng(self.seed).permutation(len(draw.pool))[:n]]
        rates, batches = how.rates(n), how.batches(n, self.seed)
        ends = [len(batches) * epoch // how.epochs for epoch in range(how.epochs + 1)]
        points = [
            Checkpoint(
                str(self.path / f"less-{end}.safetensors"),
                float(np.mean(rates[before:end])),
                str(self.path / f"less-{end}.pt"),
            )
            for before, end in pairwise(ends)
        ]
        if Path(points[-1].path).is_file():
            return points
        draw.model.load_state_dict(self.start)
        draw.model.train()
        optimizer = how.start(draw.model)
        at = dict(zip(ends[1:], points, strict=True))
        for step, (rows, rate) in enumerate(zip(batches, rates, strict=True), 1):
            optimizer.param_groups[0]["lr"] = rate
            optimizer.zero_grad()
            draw.task.objective(
                draw.model, on_device(draw.task.collate(examples[rows]), draw.model)
            ).backward()
            optimizer.step()
            if step in at:
                torch.save(optimizer.state_dict(), str(at[step].optimizer))
                save_file({name: p.detach() for name, p in draw.model.named_parameters()}, at[step].path)
        return points

    def _chosen(
        self, selectors: Sequence[str], budgets: Sequence[str]
    ) -> Iterator[tuple[str, str, np.ndarray]]:
        """(selector, budget, positions)"""
        for name, way in WAYS.items():
            if selectors and name not in (*selectors, *ALWAYS):
                continue
            for budget in budgets:
                try:
                    found = select(
                        self.scores[way.scores],
                        budget,
                        way.method,
                        self.seed,
                        features=self.store,
                        **way.params,
                    )
                except InputError as error:
                    if self.seed == 0:
                        console.print(
                            f"{self.setting.name}: passed over: {error}".split(";")[0], highlight=False
                        )
                    break
                yield name, budget, found.indices

    def _known(self, budgets: Sequence[str]) -> Iterator[tuple[str, str, np.ndarray]]:
        """The whole pool; and of the rows that are wanted random draws and all of them."""
        n = len(self.draw.pool)
        yield FULL, "100%", np.arange(n)
        if self.draw.wanted is None:
            return
        wanted = np.random.default_rng(self.seed).permutation(np.flatnonzero(self.draw.wanted))
        for budget in (*budgets, f"{100 * len(wanted) / n:.0f}%"):
            size = round(n * float(budget.rstrip("%")) / 100)
            if size <= len(wanted):
                yield self.setting.oracle, budget, wanted[:size]

    def _run(self, positions: np.ndarray) -> Run:
        """Kept under its rows: selectors that agree share it."""
        rows, draw = np.sort(positions), self.draw
        file = self.path / "runs" / f"{sha256(json.dumps(rows.tolist()))[:16]}.json"
        if not file.is_file():
            draw.model.load_state_dict(self.start)
            began = time.process_time()
            finetune(draw.model, draw.task, draw.pool[rows], self.setting.runs, self.seed)
            metric = draw.task.evaluate(draw.model, draw.test)
            write_json(file, {"metric": metric, "seconds": time.process_time() - began})
        wanted = None if draw.wanted is None else float(draw.wanted[rows].mean())
        return {"n": len(rows), "wanted": wanted, **read_json(file)}

    def _claim(self) -> None:
        """Raise `InputError` where the folder holds a run of other data or other training."""
        draw, setting, mark = self.draw, self.setting, self.path / "about.json"
        mine = {
            "examples": [part.index.fingerprint for part in (draw.warmup, draw.pool, draw.target, draw.test)],
            "training": [c.model_dump() for c in (setting.warmup, setting.scoring, setting.runs)],
            "less": json.loads(json.dumps(asdict(setting.less))),
        }
        if mark.is_file() and read_json(mark) != mine:
            raise InputError(f"{self.path}: holds runs of other data or settings; delete this folder")
        write_json(mark, mine)


# ------------------------------------------------------------------ all seeds of a setting


def summary(setting: Setting, runs: Sequence[Run]) -> list[Row]:
    """A row for each selector and budget: the seeds' metrics, and by how much they are better than random and than LESS
    at the same budget, and than the whole pool; in the metric's unit, with 95 % intervals."""
    places: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        places.setdefault((run["selector"], run["budget"]), []).append(run)
    sign = 1 if setting.higher_is_better else -1
    rows: list[Row] = []
    for (name, budget), own in places.items():
        metrics = np.array([run["metric"] for run in own])
        row: Row = {"data": setting.name, "measure": setting.metric, "selector": name, "budget": budget}
        row |= {"n": own[0]["n"], "seed": [run["seed"] for run in own], "metric": metrics.tolist()}
        row |= {"mean": float(metrics.mean())}
        for other, place in (
            ("random", (RANDOM, budget)),
            ("LESS", (LESS, budget)),
            ("full", (FULL, "100%")),
        ):
            theirs = [run["metric"] for run in places.get(place, ())] if place != (name, budget) else []
            lead = sign * (metrics - theirs) if theirs else np.array([])
            row |= interval(f"over_{other}", lead)
        known = [run["wanted"] for run in own if run["wanted"] is not None]
        row["wanted"] = float(np.mean(known)) if known else None
        row["seconds"] = float(np.median([run["seconds"] for run in own]))
        rows.append(row)
    return rows


def interval(name: str, values: np.ndarray) -> Row:
    """The mean, and the ends of its 95 % interval by Student's t, which take two values."""
    found: Row = dict.fromkeys((name, f"{name}_low", f"{name}_high"))
    if len(values):
        found[name] = float(values.mean())
    if len(values) > 1:
        half = student.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
        found |= {f"{name}_low": float(values.mean() - half), f"{name}_high": float(values.mean() + half)}
    return found


def verdict(setting: Setting, rows: Sequence[Row]) -> Iterator[str]:
    """In words: which selectors beat random at each budget, and the best one beside LESS and the whole pool."""
    tried = [row for row in rows if row["data"] == setting.name and row["selector"] in WAYS]
    for budget in dict.fromkeys(row["budget"] for row in tried):
        here = [row for row in tried if row["budget"] == budget and row["over_random"] is not None]
        here.sort(key=lambda row: -row["over_random"])
        surely = [row for row in here if (row["over_random_low"] or 0) > 0]
        told = ", ".join(f"{row['selector']} {_told('random', row)}" for row in surely)
        yield f"{setting.name}, {budget}: {told or 'none'} better than random for sure"
        best = next((row for row in here if row["selector"] not in ALWAYS), None)
        if best and budget == COMPARED:
            yield (
                f"{setting.name}, {budget}: the best, {best['selector']}, is {_told('LESS', best)} over LESS and "
                f"{_told('full', best)} over the whole pool"
            )


def _told(other: str, row: Row) -> str:
    low, high = row[f"over_{other}_low"], row[f"over_{other}_high"]
    return f"{row[f'over_{other}']:+.3g}" + ("" if low is None else f" ({low:+.3g} to {high:+.3g})")


def plot(rows: Sequence[Row], file: Path) -> None:
    """The metric against the budget, setting by setting: random's interval, the three best selectors, and the others
    in grey."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    names = list(dict.fromkeys(row["data"] for row in rows))
    figure, axes = plt.subplots(1, len(names), figsize=(4.2 * len(names), 4.6), squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        own = [row for row in rows if row["data"] == name]
        leads = {
            way: np.mean([row["over_random"] for row in own if row["selector"] == way])
            for way in dict.fromkeys(row["selector"] for row in own)
            if way in WAYS and way not in ALWAYS
        }
        best = sorted(leads, key=lambda way: -leads[way])[:3]
        colours = {
            RANDOM: "#7f8c8d",
            LESS: "black",
            **dict(zip(best, ("#c0392b", "#2471a3", "#1e8449"), strict=False)),
        }
        for way in [*leads, RANDOM, LESS]:
            line = [row for row in own if row["selector"] == way]
            budgets = [float(row["budget"].rstrip("%")) for row in line]
            look: Row = {"color": "#d5d8dc", "lw": 0.8, "zorder": 1}
            if way in colours:
                look = {"color": colours[way], "lw": 1.8, "marker": "o", "ms": 4, "label": way, "zorder": 3}
            axis.plot(budgets, [row["mean"] for row in line], **look)
            if way == RANDOM:
                ends = [interval("x", np.array(row["metric"])) for row in line]
                low, high = ([end[f"x_{side}"] for end in ends] for side in ("low", "high"))
                axis.fill_between(budgets, low, high, color="#7f8c8d", alpha=0.2, lw=0)
        full = next(row for row in own if row["selector"] == FULL)
        axis.axhline(full["mean"], color="#b7950b", ls="--", lw=1.2, label="the whole pool")
        axis.set(xscale="log", xlabel="% of the pool", title=f"{name}\n{full['measure']}")
        axis.title.set_size(8)
        axis.set_xticks(budgets, [f"{budget:g}" for budget in budgets])
        axis.minorticks_off()
        axis.legend(fontsize=7, frameon=False)
    figure.tight_layout()
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    main()
