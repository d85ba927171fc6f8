"""Do the joint laws foresee what was not run, and is their cheapest combination the cheapest for real?

`size`: language models of five sizes (learning curves under ``--data``): fitted to the early part of the smaller sizes'
curves; predicted are their later part and all of the larger sizes' curves. Beside it the two published laws by least
squares, and one-dimensional laws of each size, which say nothing of other sizes.

`epochs`, `epochs, linear`, `noisy`, `turned`: scikit-learn's digits, trained here (about three minutes on one core) at
several n × epochs, or n × shares of one source: clean labels beside labels half of which are random; upright digits
beside digits turned by 90°, where 30 % of the test's are upright. The law is fitted to the small n (and few epochs),
predicts the rest, and is inverted; the combination that it says to buy is then trained for real, with seeds of its own.

    python benchmarks/scaling_joint.py --data DIR [--quick] [--json]
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from common import HERE, Row, arguments, write
from scipy.optimize import least_squares
from sklearn.datasets import load_digits

from backcast.progress import progress
from backcast.scaling import fit_law
from backcast.scaling.joint import JointInversion, JointLaw, fit_joint_law

RUNS = HERE.parent / "runs" / "scaling_joint"
LOSS = (0.0, math.inf)
LEVEL, SURE = 0.9, (0.5, 0.9)
#: Rows of the digits that are trained on at most; the rest are the test.
POOL = 1200
SEEDS, CHECKS = 3, 5


@dataclass(frozen=True)
class Setting:
    """A real experiment.

    Attributes:
        name, by: its own, and the other input's.
        others: the values of that which are run; the law sees those up to ``most``.
        offered: those to choose from.
        goal: the one of them whose measured loss at twice the largest n of the law is the target.
        run: (n, others, seed) → the test loss at each of these values.
        cost: of a combination.
    """

    name: str
    by: str
    others: Sequence[float]
    most: float
    offered: Sequence[float]
    goal: float
    run: Callable[[int, Sequence[float], int], list[float]]
    cost: Callable[[float, float], float]


@cache
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """The digits in a fixed random order: (1797, 64) in [0, 1], and labels."""
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    return torch.tensor(x[order] / 16, dtype=torch.float32), torch.tensor(y[order])


def turned(x: torch.Tensor) -> torch.Tensor:
    """Images turned by 90°."""
    return x.reshape(-1, 8, 8).rot90(1, (1, 2)).reshape(-1, 64)


def network() -> torch.nn.Module:
    """64 hidden units."""
    return torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))


def losses_after(
    epochs: Sequence[int],
    x: torch.Tensor,
    y: torch.Tensor,
    seed: int,
    test_x: torch.Tensor,
    make: Callable[[], torch.nn.Module] = network,
) -> list[float]:
    """The test loss after each of these numbers of epochs, in rising order."""
    torch.manual_seed(seed)
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    order = torch.Generator().manual_seed(seed)
    test_y, losses = digits()[1][POOL:], []
    for epoch in range(1, epochs[-1] + 1):
        for batch in torch.randperm(len(x), generator=order).split(16):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
        if epoch in epochs:
            with torch.no_grad():
                losses.append(float(torch.nn.functional.cross_entropy(model(test_x), test_y)))
    return losses


def drawn(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, np.random.Generator]:
    """n training rows, and the generator that drew them."""
    rng = np.random.default_rng([seed, n])
    x, y = digits()
    rows = torch.tensor(rng.permutation(POOL)[:n])
    return x[rows], y[rows], rng


def run_epochs(n: int, epochs: Sequence[float], seed: int) -> list[float]:
    """One run, looked at after each number of epochs."""
    x, y, _ = drawn(n, seed)
    return losses_after([round(e) for e in epochs], x, y, seed, digits()[0][POOL:])


def run_linear(n: int, epochs: Sequence[float], seed: int) -> list[float]:
    """The same with a softmax regression."""
    x, y, _ = drawn(n, seed)
    return losses_after(
        [round(e) for e in epochs], x, y, seed, digits()[0][POOL:], lambda: torch.nn.Linear(64, 10)
    )


def run_noisy(n: int, shares: Sequence[float], seed: int) -> list[float]:
    """A run for each share of clean rows; of the rest, half of the labels are random."""
    losses = []
    for share in shares:
        x, y, rng = drawn(n, seed)
        noisy = (np.arange(n) >= round(share * n)) & (rng.random(n) < 0.5)
        y = torch.where(torch.tensor(noisy), torch.tensor(rng.integers(10, size=n)), y)
        losses += losses_after([20], x, y, seed, digits()[0][POOL:])
    return losses


def run_turned(n: int, shares: Sequence[float], seed: int) -> list[float]:
    """A run for each share of upright rows, the rest turned; 30 % of the test's are upright."""
    test_x = digits()[0][POOL:]
    upright = torch.arange(len(test_x))[:, None] < 0.3 * len(test_x)
    test_x = torch.where(upright, test_x, turned(test_x))
    losses = []
    for share in shares:
        x, y, _ = drawn(n, seed)
        x = torch.where(torch.arange(n)[:, None] < round(share * n), x, turned(x))
        losses += losses_after([20], x, y, seed, test_x)
    return losses


SIZES = (50, 100, 200, 400, 800, 1200)
#: The largest n that the law sees.
LIMITS = (200, 400)
EPOCHS, OFFERED_EPOCHS = (1, 2, 4, 8, 16, 32), (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
SETTINGS = (
    Setting("epochs", "epochs", EPOCHS, 16, OFFERED_EPOCHS, 8, run_epochs, lambda n, e: n * (e + 20)),
    Setting("epochs, linear", "epochs", EPOCHS, 16, OFFERED_EPOCHS, 8, run_linear, lambda n, e: n * (e + 20)),
    Setting(
        "noisy",
        "share",
        (0.0, 0.25, 0.5, 0.75, 1.0),
        1.0,
        np.linspace(0, 1, 11).tolist(),
        0.75,
        run_noisy,
        lambda n, q: n * (1 + 3 * q),
    ),
    Setting(
        "turned",
        "share",
        (0.05, 0.2, 0.4, 0.6, 0.8, 0.95),
        1.0,
        np.linspace(0.05, 0.95, 19).tolist(),
        0.6,
        run_turned,
        lambda n, q: n,
    ),
)


def table(setting: Setting) -> pd.DataFrame:
    """Every run of a setting; kept under runs/, so that it is made once."""
    path = RUNS / f"{setting.name}.json"
    if not path.exists():
        rows = []
        with progress(f"{setting.name}: training", len(SIZES) * SEEDS) as done:
            for n in SIZES:
                for seed in range(SEEDS):
                    losses = setting.run(n, setting.others, seed)
                    rows += [
                        {"n": n, setting.by: z, "seed": seed, "value": v}
                        for z, v in zip(setting.others, losses, strict=True)
                    ]
                    done(1)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(rows))
    return pd.DataFrame(json.loads(path.read_text()))


def foreseen(law: JointLaw, rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(K,) each: the median curve, and the interval of a fresh mean of as many runs as were made; rows are cells."""
    n, other = rows.n.to_numpy(float), rows[law.by].to_numpy(float)
    seeds = int(rows.runs.iloc[0])
    luck = np.random.default_rng(0).standard_normal((len(law.curves(n, other)), len(n)))
    fresh = law.curves(n, other) + np.sqrt(law.run_variance(n, other, seeds)) * luck
    low, high = np.quantile(fresh, [0.5 - LEVEL / 2, 0.5 + LEVEL / 2], axis=0)
    return np.median(law.curves(n, other), axis=0), low, high


def errors(source: str, reach: str, who: str, truth: np.ndarray, found: np.ndarray) -> Row:
    """Root mean squared log error."""
    log_error = np.log(np.maximum(found, 1e-9) / truth)
    return row(source, reach, f"RMSLE, {who}", float(np.sqrt(np.mean(log_error**2))))


def judged(source: str, reach: str, law: JointLaw, rows: pd.DataFrame) -> list[Row]:
    """How far off the law is on ``rows``, and how often its interval holds."""
    middle, low, high = foreseen(law, rows)
    truth = rows.value.to_numpy()
    return [
        errors(source, reach, "joint law", truth, middle),
        row(source, reach, "90 % interval holds", float(np.mean((low <= truth) & (truth <= high)))),
    ]


def row(source: str, reach: str, measure: str, value: float | None, note: str = "") -> Row:
    return {
        "benchmark": "joint laws",
        "source": source,
        "reach": reach,
        "measure": measure,
        "value": value,
        "published": None,
        "note": note,
    }


def experiment(setting: Setting, limit: int) -> list[Row]:
    """Fit up to ``limit``, predict the rest, invert, and train what the answer says to buy."""
    runs = table(setting)
    small = (runs.n <= limit) & (runs[setting.by] <= setting.most)
    law = fit_joint_law(runs[small], by=setting.by, bounds=LOSS)
    cells = runs.groupby(["n", setting.by]).value.agg(value="mean", runs="size").reset_index()
    unseen = cells[(cells.n > limit) | (cells[setting.by] > setting.most)]
    reach = f"n to {limit}"
    rows = judged(setting.name, reach, law, unseen)
    constant = float(np.exp(np.log(runs[small].value).mean()))
    rows.append(
        errors(
            setting.name,
            reach,
            "no law (the fitted part's mean)",
            unseen.value.to_numpy(),
            np.full(len(unseen), constant),
        )
    )

    target = float(cells[(cells.n == 2 * limit) & (cells[setting.by] == setting.goal)].value.iloc[0])
    answer = law.invert(target, setting.cost, setting.offered, LEVEL)
    real = cheapest(cells, setting, target)
    rows += [
        row(setting.name, reach, "cheapest measured cost", real),
        row(
            setting.name,
            reach,
            "90 % interval of the cost holds it",
            float(answer.cost_low <= real <= answer.cost_high),
            f"{answer.cost_low:,.0f} to {answer.cost_high:,.0f}; {answer.status}; P(unreachable) "
            f"{answer.p_unreachable:.2f}",
        ),
    ]
    for sure in SURE:
        rows += bought(setting, reach, law.invert(target, setting.cost, setting.offered, sure), real)
    return rows


def bought(setting: Setting, reach: str, answer: JointInversion, real: float) -> list[Row]:
    """The combination to buy, trained for real with fresh seeds."""
    measure = f"bought {100 * answer.level:.0f} % sure: loss / target"
    if answer.best is None or answer.best.buy > POOL:
        return [row(setting.name, reach, measure, None, answer.sentence())]
    n, other = math.ceil(answer.best.buy), answer.best.other
    losses = [setting.run(n, [other], 1000 + seed)[0] for seed in range(CHECKS)]
    note = f"n = {n}, {setting.by} = {other:g}; {CHECKS} fresh seeds, target {answer.target:.3g}"
    paid = f"bought {100 * answer.level:.0f} % sure: cost / cheapest measured"
    return [
        row(setting.name, reach, measure, float(np.mean(losses)) / answer.target, note),
        row(setting.name, reach, paid, answer.best.cost / real, f"equally good n: {answer.apart:.3g}-fold"),
    ]


def cheapest(cells: pd.DataFrame, setting: Setting, target: float) -> float:
    """The least cost at which the measured means meet the target, between sizes linearly in log n."""
    costs = []
    for other, column in cells.groupby(setting.by):
        n, loss = column.n.to_numpy(float), column.value.to_numpy()
        met = np.flatnonzero(loss <= target)
        if len(met) and met[0] > 0:
            j = met[0]
            share = (loss[j - 1] - target) / (loss[j - 1] - loss[j])
            costs.append(setting.cost(float(n[j - 1] * (n[j] / n[j - 1]) ** share), float(other)))
    return min(costs)


def sizes(folder: Path) -> list[Row]:
    """The language models' curves."""
    table = pd.read_csv(folder / "learning_curves" / "extrapolation_lang.csv.gz")
    table = table[table.Domain == "LM"].drop_duplicates()
    runs = pd.DataFrame(
        {
            "n": table["Seen Examples"],
            "size": table.Model.astype(float),
            "value": table.Loss,
            "early": table.Training == 1,
            "runs": 1,
        }
    ).sort_values(["size", "n"])
    rows: list[Row] = []
    every = np.unique(runs["size"])
    for count in (3, 4):
        seen = runs["size"] <= every[count - 1]
        fitted = runs[seen & runs.early]
        law = fit_joint_law(fitted, by="size", bounds=LOSS)
        parts = {"later": runs[seen & ~runs.early], "larger": runs[~seen]}
        for name, part in parts.items():
            reach = f"{count} sizes, {name}"
            truth = part.value.to_numpy()
            rows += judged("size", reach, law, part)
            for who, published in PUBLISHED.items():
                rows.append(errors("size", reach, f"{who}, least squares", truth, published(fitted, part)))
        later = parts["later"]
        alone = {s: fit_law(fitted[fitted["size"] == s], bounds=LOSS) for s in every[:count]}
        median = np.concatenate(
            [alone[s].predict(curve.n).quantiles[2] for s, curve in later.groupby("size")]
        )
        rows.append(errors("size", f"{count} sizes, later", "one law a size", later.value.to_numpy(), median))
    return rows


def additive(p: np.ndarray, log_n: np.ndarray, log_size: np.ndarray) -> np.ndarray:
    """Hoffmann et al. 2022."""
    return np.exp(p[0]) + np.exp(p[1] - np.exp(p[2]) * log_n) + np.exp(p[3] - np.exp(p[4]) * log_size)


def multiplicative(p: np.ndarray, log_n: np.ndarray, log_size: np.ndarray) -> np.ndarray:
    """Zhang et al. 2024."""
    return np.exp(p[0]) + np.exp(p[1] - np.exp(p[2]) * log_n - np.exp(p[3]) * log_size)


def least_squares_fit(
    law: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray], parameters: int
) -> Callable[[pd.DataFrame, pd.DataFrame], np.ndarray]:
    """Fitted to the one, predicting the other; the best of several starts."""

    def predict(fitted: pd.DataFrame, part: pd.DataFrame) -> np.ndarray:
        def inputs(rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
            return np.log(rows.n.to_numpy() / 1e11), np.log(rows["size"].to_numpy() / 1e8)

        y = fitted.value.to_numpy()
        starts = [np.r_[floor, [-2.0, -1.0, -2.0, -1.0][: parameters - 1]] for floor in (-4.0, -1.0, -0.3)]
        fits = [
            least_squares(lambda p: law(p, *inputs(fitted)) - y, start, max_nfev=2000) for start in starts
        ]
        return law(min(fits, key=lambda fit: fit.cost).x, *inputs(part))

    return predict


PUBLISHED = {
    "additive (Chinchilla)": least_squares_fit(additive, 5),
    "multiplicative": least_squares_fit(multiplicative, 4),
}


def main() -> None:
    options = arguments(__doc__ or "")
    torch.set_num_threads(1)
    rows = [] if options.data is None else sizes(options.data)
    limits = LIMITS[-1:] if options.quick else LIMITS
    with progress("digits: laws", len(SETTINGS) * len(limits)) as done:
        for setting in SETTINGS:
            for limit in limits:
                rows += experiment(setting, limit)
                done(1)
    write("scaling_joint-quick" if options.quick else "scaling_joint", rows, options.json)


if __name__ == "__main__":
    main()
