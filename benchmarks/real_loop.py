"""Is the target met at the n that the law names?

Two pools: the demo's digits with captions under a small CLIP, and docstrings under a small GPT. For each selector, runs
at a few small budgets are made, and a law is fitted to them alone. Then come the runs that tell whether it is right:
over a ladder of sizes up to the whole pool, from which the n that a target really takes is read, and at each predicted
n* and both ends of its interval. Targets are what the ladder shows at 1.6, 2.8 and 5 times the largest of the small
budgets, as in the benchmark on published curves; what the law expects there, as one asks who has run no more; and one
that should be out of reach. No law sees the ladder.

The checks' sizes lie on a grid, to which the predicted ones are rounded, so that answers that nearly agree share their
runs. All runs are kept under --work: with another law only those are made that no law before it asked for.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from common import HERE, Row, write
from real_loop_settings import Experiment, experiments
from scipy.stats import sem
from selection_settings import Draw
from sklearn.isotonic import IsotonicRegression

from backcast import Checkpoint, Scores, SketchStore, attribute, collect, fit_law, select
from backcast.errors import InputError
from backcast.files import read_json, write_json
from backcast.finetune import finetune
from backcast.progress import console, progress
from backcast.scaling import Inversion, Law

SELECTORS = ("random", "round_robin", "facility_location")
#: The seeds of the runs that the law sees, and of those that check it: none in common. A seed decides the order of the
#: batches, and of `random` the subset too.
SEEN, CHECKS = range(3), range(10, 15)
#: Targets are the values at these multiples of the largest budget.
REACHES = (1.6, 2.8, 5.0)
#: Sizes to a factor of ten on the grid.
GRID = 8
LEVEL, RESAMPLES = 0.9, 400

#: n → the metric of each run.
Runs = dict[int, list[float]]


def main() -> None:
    asked = _arguments()
    torch.set_num_threads(1)
    scale = Scale(SELECTORS[:2], SEEN[:2], CHECKS[:2], GRID // 2) if asked.quick else Scale()
    rows: list[Row] = []
    for experiment in experiments(HERE.parent / "runs" / "selection", asked.quick):
        name = experiment.setting.name
        if asked.setting in (None, name):
            rows += Loop(experiment, scale, asked.work / name).rows()
    write("real_loop-quick" if asked.quick or asked.setting else "real_loop", rows, asked.json)
    if not asked.json:
        for name in dict.fromkeys(row["setting"] for row in rows):
            told = verdict([row for row in rows if row["setting"] == name])
            console.print(f"{name}: {told}", highlight=False, soft_wrap=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="two selectors, three budgets, few seeds and sizes"
    )
    parser.add_argument("--json", action="store_true", help="print the results as one JSON object")
    parser.add_argument("--work", type=Path, metavar="DIR", default=HERE.parent / "runs" / "real_loop")
    parser.add_argument("--setting", choices=("digits", "docstrings"), help="this one alone")
    return parser.parse_args()


@dataclass(frozen=True)
class Scale:
    """How much is run: selectors, seeds of what the law sees, seeds of the checks, sizes to a factor of ten."""

    selectors: Sequence[str] = SELECTORS
    seen: Sequence[int] = SEEN
    checks: Sequence[int] = CHECKS
    grid: int = GRID

    def nearest(self, n: float) -> int:
        """The size on the grid."""
        return round(10 ** (round(self.grid * math.log10(n)) / self.grid))

    def ladder(self, first: int, last: int) -> list[int]:
        """The two, and the grid's sizes between them."""
        places = range(math.ceil(self.grid * math.log10(last)))
        sizes = (round(10 ** (place / self.grid)) for place in places)
        return [first, *(n for n in sizes if first < n < last), last]


# ------------------------------------------------------------------ one setting


@dataclass(frozen=True)
class Loop:
    """A setting, and the folder that keeps what was made of it."""

    experiment: Experiment
    scale: Scale
    path: Path

    def rows(self) -> list[Row]:
        """A row for each selector and target."""
        self._claim()
        names, budgets = self.scale.selectors, self.experiment.budgets
        seen = self._runs(dict.fromkeys(names, budgets), self.scale.seen)
        laws = self._laws(seen)
        ladder = self.scale.ladder(budgets[-1], len(self.draw.pool))
        real = self._runs(dict.fromkeys(names, ladder), self.scale.checks)
        answers = {
            name: [
                (kind, reach, laws[name].invert(target, LEVEL))
                for kind, reach, target in self._targets(laws[name], {**seen[name], **real[name]})
            ]
            for name in names
        }
        ends = {
            name: {n for *_, found in asked for n in self._ends(found) if n}
            for name, asked in answers.items()
        }
        real = self._runs({name: sorted({*ladder, *ends[name]}) for name in names}, self.scale.checks)
        return [
            self._row(name, kind, reach, found, real[name], {**seen[name], **real[name]})
            for name, asked in answers.items()
            for kind, reach, found in asked
        ]

    def _laws(self, seen: Mapping[str, Runs]) -> dict[str, Law]:
        """By selector."""
        this = self.experiment
        table = [
            {"selector": name, "n": n, "value": value}
            for name, runs in seen.items()
            for n, values in runs.items()
            for value in values
        ]
        return fit_law(
            table, group="selector", higher_is_better=this.setting.higher_is_better, bounds=this.bounds
        )

    def _targets(self, law: Law, curve: Runs) -> list[tuple[str, float | None, float]]:
        """(who names it, reach, target); the one out of reach has no reach."""
        this = self.experiment
        asked = [reach * this.budgets[-1] for reach in REACHES]
        sizes, values = monotone(curve, this.setting.higher_is_better)
        shown = np.interp(np.log(asked), np.log(sizes), values)
        (expected,) = law.predict(asked, (0.5,)).quantiles
        return [
            *(("ladder", reach, self._rounded(value)) for reach, value in zip(REACHES, shown, strict=True)),
            *(("law", reach, self._rounded(value)) for reach, value in zip(REACHES, expected, strict=True)),
            ("beyond", None, this.beyond),
        ]

    def _rounded(self, value: float) -> float:
        """To the worse side: a value that the ladder just reaches stays within reach."""
        unit = 10**self.experiment.decimals
        worse = math.floor if self.experiment.setting.higher_is_better else math.ceil
        return worse(value * unit) / unit

    def _ends(self, found: Inversion) -> tuple[int | None, ...]:
        """n*, the interval's low end and its high end, on the grid; None for what is not within the pool."""
        pool, least = len(self.draw.pool), self.experiment.budgets[0]
        return tuple(
            min(pool, self.scale.nearest(n)) if least <= n <= pool else None
            for n in (found.n, found.low, found.high)
        )

    def _row(
        self, name: str, kind: str, reach: float | None, found: Inversion, real: Runs, curve: Runs
    ) -> Row:
        """``real`` has the runs that check the answer, ``curve`` those at the smaller budgets too."""
        at = [real[n] if n else [] for n in self._ends(found)]
        met, met_low, met_high = (self._met(values, found.target) for values in at)
        higher = self.experiment.setting.higher_is_better
        n_real = first_met(curve, found.target, higher)
        real_low, real_high = first_met_range(curve, found.target, higher)
        return {
            "setting": self.experiment.setting.name,
            "selector": name,
            "named_by": kind,
            "reach": reach,
            "target": found.target,
            "n": _finite(found.n),
            "low": _finite(found.low),
            "high": _finite(found.high),
            "status": found.status,
            "p_unreachable": found.p_unreachable,
            "n_run": self._ends(found)[0],
            "metric": float(np.mean(at[0])) if at[0] else None,
            "se": float(sem(at[0])) if at[0] else None,
            "met": met,
            "low_met": met_low,
            "high_met": met_high,
            "real_n": _finite(n_real),
            "real_n_low": _finite(real_low),
            "real_n_high": _finite(real_high),
            # Of a target that the pool never meets, only this is known: its n* is larger.
            "held": found.low <= n_real <= found.high
            if n_real < math.inf
            else found.high > len(self.draw.pool),
            "factor": math.exp(abs(math.log(found.n / n_real))) if max(found.n, n_real) < math.inf else None,
        }

    def _met(self, values: Sequence[float], target: float) -> bool | None:
        if not values:
            return None
        short = target - np.mean(values)
        return bool(short <= 0 if self.experiment.setting.higher_is_better else short >= 0)

    # -------------------------------------------------------------- the runs

    def _runs(self, sizes: Mapping[str, Sequence[int]], seeds: Sequence[int]) -> dict[str, Runs]:
        """By selector and n; made where they are not kept yet."""
        found: dict[str, Runs] = {name: {} for name in sizes}
        total = len(seeds) * sum(map(len, sizes.values()))
        with progress(f"{self.experiment.setting.name}: fine-tunes", total) as done:
            for name, own in sizes.items():
                for n in own:
                    found[name][n] = []
                    for seed in seeds:
                        found[name][n].append(self._run(name, n, seed))
                        done(1)
        return found

    def _run(self, name: str, n: int, seed: int) -> float:
        """The metric after a fine-tune on the n examples that the selector chooses."""
        whole = n == len(self.draw.pool)
        file = self.path / "runs" / f"{'all' if whole else name}-{n}-{seed}.json"
        if not file.is_file():
            draw = self.draw
            draw.model.load_state_dict(self.start)
            rows = select(self.scores, n, name, seed if name == "random" else 0, features=self.store).indices
            finetune(draw.model, draw.task, draw.pool[np.sort(rows)], self.experiment.setting.runs, seed)
            write_json(file, draw.task.evaluate(draw.model, draw.test))
        return float(read_json(file))

    @cached_property
    def draw(self) -> Draw:
        return self.experiment.setting.draw(0)

    @cached_property
    def start(self) -> dict[str, torch.Tensor]:
        """The weights that every run starts from, copied; the model then has them too."""
        model, task = self.draw.model, self.draw.task
        file, config = self.path / "start.safetensors", self.experiment.setting.warmup
        if not file.is_file():
            finetune(model, task, self.draw.warmup, config, 0, {config.steps: file})
        model.load_state_dict(Checkpoint(str(file)).weights(), strict=False)
        return {name: value.clone() for name, value in model.state_dict().items()}

    @cached_property
    def points(self) -> list[Checkpoint]:
        """Half-way through a fine-tune on the pool, and its end."""
        config, draw = self.experiment.setting.scoring, self.draw
        steps = (config.steps // 2, config.steps)
        files = {step: self.path / f"scoring-{step}.safetensors" for step in steps}
        if not files[steps[-1]].is_file():
            draw.model.load_state_dict(self.start)
            finetune(draw.model, draw.task, draw.pool, config, 0, files)
        return [Checkpoint(str(file)) for file in files.values()]

    @cached_property
    def store(self) -> SketchStore:
        """The pool's gradients."""
        draw, place = self.draw, self.path / "sketches" / "pool"
        return collect(draw.model, draw.task, draw.pool, place, checkpoints=self.points)

    @cached_property
    def scores(self) -> Scores:
        """The pool's, for each group of targets, or for each target where there are no groups."""
        draw, place = self.draw, self.path / "sketches" / "target"
        target = collect(draw.model, draw.task, draw.target, place, checkpoints=self.points, like=self.store)
        return attribute(self.store, target, "tracin", cosine=True, groups=draw.groups)

    def _claim(self) -> None:
        """Raise `InputError` where the folder holds runs of other data or other training."""
        draw, setting, mark = self.draw, self.experiment.setting, self.path / "about.json"
        mine = {
            "examples": [part.index.fingerprint for part in (draw.warmup, draw.pool, draw.target, draw.test)],
            "training": [config.model_dump() for config in (setting.warmup, setting.scoring, setting.runs)],
        }
        if mark.is_file() and read_json(mark) != mine:
            raise InputError(f"{self.path}: holds runs of other data or settings; delete this folder")
        write_json(mark, mine)


# ------------------------------------------------------------------ what the runs say


def monotone(curve: Runs, higher_is_better: bool) -> tuple[np.ndarray, np.ndarray]:
    """(K,) sizes, ascending, and their mean metrics, made monotone by isotonic regression.

    The first of several noisy means to meet a target tends to be a lucky one.
    """
    sizes = np.array(sorted(curve))
    means, counts = zip(*((np.mean(curve[n]), len(curve[n])) for n in sizes), strict=True)
    fit = IsotonicRegression(increasing=higher_is_better)
    return sizes, fit.fit_transform(np.log(sizes), means, sample_weight=counts)


def first_met(curve: Runs, target: float, higher_is_better: bool) -> float:
    """The least n at which the monotone curve meets the target, linear in log n between sizes; inf if none does."""
    sizes, values = monotone(curve, higher_is_better)
    met = np.flatnonzero(values >= target if higher_is_better else values <= target)
    if not len(met):
        return math.inf
    if (j := met[0]) == 0:
        return float(sizes[0])
    share = (target - values[j - 1]) / (values[j] - values[j - 1])
    return float(sizes[j - 1] * (sizes[j] / sizes[j - 1]) ** share)


def first_met_range(curve: Runs, target: float, higher_is_better: bool) -> tuple[float, float]:
    """The 5 % and 95 % quantiles of `first_met` over curves whose runs are drawn again, within each size."""
    rng = np.random.default_rng(0)
    again = [
        first_met(
            {n: rng.choice(values, len(values)).tolist() for n, values in curve.items()},
            target,
            higher_is_better,
        )
        for _ in range(RESAMPLES)
    ]
    low, high = np.quantile(again, (0.05, 0.95), method="inverted_cdf").tolist()
    return low, high


def verdict(rows: Sequence[Row]) -> str:
    """How often the answers of a setting were right, in a sentence."""
    known = [row for row in rows if row["real_n"] is not None]
    told = [row["factor"] for row in known if row["factor"] is not None]
    tried, wide = ([row[key] for row in rows if row[key] is not None] for key in ("met", "high_met"))
    held, finite = sum(row["held"] for row in known), sum(row["high"] is not None for row in known)
    return (
        f"of {len(rows)} targets {len(known)} are met within the pool; of these the {LEVEL:.0%} interval holds the "
        f"real n* in {held} and has an upper end in {finite}, and n* is a factor {np.median(told):.2f} off in the "
        f"median, {max(told):.2f} at most ({sum(f <= 2 for f in told)} of {len(told)} within 2). The target is met at "
        f"n* in {sum(tried)} of {len(tried)}, at the interval's high end in {sum(wide)} of {len(wide)}."
    )


def _finite(n: float) -> float | None:
    return n if math.isfinite(n) else None


if __name__ == "__main__":
    main()
