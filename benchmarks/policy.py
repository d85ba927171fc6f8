"""Does REINFORCE over subsets learn, and how far apart do its runs end?

The pool: 600 of scikit-learn's digits, a fifth with wrong labels; the model: multinomial logistic regression, trained
from zero on each subset; the reward: accuracy on 300 other digits, which also are the targets of the scores. Ten runs
of `policy` on the same pool differ in their seeds alone.

**spread** is the mean overlap (Jaccard) of two runs' subsets, beside that of two random subsets. **variance** is that
of the gradient estimate of a round, over 50 rounds at the same policy (the first), for every baseline, as a share of
the variance without one. **test** is the accuracy on the 897 further digits of what the selectors chose.

Rows: check, method, baseline, value, low, high, note.
"""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import torch.nn.functional as F
from common import Row, arguments, write
from sklearn.datasets import load_digits
from torch import nn

from backcast.attribution import Scores, SketchStore, attribute, collect
from backcast.data import Examples
from backcast.kernels import SketchSpec
from backcast.progress import progress
from backcast.selectors import Evidence, select
from backcast.selectors.allowance import Allowance
from backcast.selectors.methods.policy import BASELINES, Past, draw, estimates
from backcast.tasks import Task

POOL, TARGET, WRONG = 600, 300, 0.2
BUDGET = "20%"
STEPS, RATE = 60, 0.05


class Digits(Task):
    """Cross-entropy of 64 numbers and a label."""

    def collate(self, examples: Examples) -> dict[str, torch.Tensor]:
        return {
            "x": torch.tensor([e.fields["pixels"] for e in examples]),
            "y": torch.tensor([e.fields["label"] for e in examples]),
        }

    def loss(self, model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return F.cross_entropy(model(batch["x"]), batch["y"], reduction="none")


def data() -> tuple[Examples, Examples, Examples, np.ndarray]:
    """Pool; targets; test; and (600,) which of the pool have a wrong label."""
    digits = load_digits()
    rng = np.random.default_rng(0)
    order = rng.permutation(len(digits.target))
    pixels, labels = (digits.data[order] / 16).astype(np.float32), digits.target[order].astype(int)
    wrong = rng.random(POOL) < WRONG
    labels[:POOL][wrong] = (labels[:POOL][wrong] + rng.integers(1, 10, wrong.sum())) % 10
    fields = [
        {"text": f"digit {i}", "pixels": x.tolist(), "label": int(y)}
        for i, (x, y) in enumerate(zip(pixels, labels, strict=True))
    ]
    cuts = (fields[:POOL], fields[POOL : POOL + TARGET], fields[POOL + TARGET :])
    pool, target, test = (Examples.from_fields(part) for part in cuts)
    return pool, target, test, wrong


def trained(batch: dict[str, torch.Tensor]) -> nn.Linear:
    """From zero, by full-batch Adam: no chance in it."""
    model = nn.Linear(64, 10)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    for _ in range(STEPS):
        optimizer.zero_grad()
        F.cross_entropy(model(batch["x"]), batch["y"]).backward()
        optimizer.step()
    return model


class Accuracy:
    """The accuracy, on some examples, of the model trained on some of the pool."""

    def __init__(self, pool: Examples, on: Examples) -> None:
        self.pool, self.on = (Digits().collate(examples) for examples in (pool, on))

    def __call__(self, positions: np.ndarray) -> float:
        rows = torch.as_tensor(np.asarray(positions))
        model = trained({name: values[rows] for name, values in self.pool.items()})
        with torch.no_grad():
            return float((model(self.on["x"]).argmax(1) == self.on["y"]).double().mean())


def scored(pool: Examples, target: Examples, folder: Path) -> tuple[Scores, SketchStore]:
    """Cosines of gradients after a tenth of the training on the pool; the targets of a class are a group."""
    model, task = trained({k: v[: POOL // 10] for k, v in Digits().collate(pool).items()}), Digits()
    wanted = collect(model, task, target, folder / "target", spec=SketchSpec("dense", 512))
    store = collect(model, task, pool, folder / "pool", like=wanted)
    groups = [str(e.fields["label"]) for e in target]
    return attribute(store, wanted, "tracin", cosine=True, groups=groups), store


def spread(subsets: list[np.ndarray]) -> list[float]:
    return [len({*a} & {*b}) / len({*a} | {*b}) for a, b in combinations([s.tolist() for s in subsets], 2)]


def variances(evidence: Evidence, reward: Accuracy, rounds: int, samples: int = 8) -> dict[str, float]:
    """baseline → Σ_f Var(ĝ_f) over rounds at the first policy, the moving average being what it tends to."""
    scores = evidence.best / evidence.best.std()
    classes = np.empty(len(evidence), dtype=np.int64)
    classes[evidence.ranked(evidence.best)] = np.arange(len(evidence)) * 10 // len(evidence)
    rng = np.random.Generator(np.random.PCG64(1))
    past, found = Past(), {name: [] for name in BASELINES}
    with progress("rounds", rounds) as done:
        for _ in range(rounds):
            room = [Allowance.of(POOL // 5, POOL) for _ in range(samples)]
            draws = [draw(evidence, scores, scores, classes, allowance, rng) for allowance in room]
            rewards = np.array([reward(d.subset) for d in draws])
            for name, terms in estimates(rewards, draws, past).items():
                found[name].append(terms.mean(axis=0))
            past = past.after(rewards, np.array([d.pull for d in draws]))
            done(1)
    return {name: float(np.var(terms[1:], axis=0, ddof=1).sum()) for name, terms in found.items()}


def row(check: str, method: str, baseline: str, values: list[float], note: str = "") -> Row:
    low, high = np.quantile(values, [0.05, 0.95]).tolist()
    return {
        "check": check,
        "method": method,
        "baseline": baseline,
        "value": float(np.mean(values)),
        "low": low,
        "high": high,
        "note": note,
    }


def main() -> None:
    args = arguments(__doc__ or "")
    torch.set_num_threads(1)
    trials, rounds, checked = (3, 3, 5) if args.quick else (10, 12, 50)
    pool, target, test, wrong = data()
    reward, measured = Accuracy(pool, target), Accuracy(pool, test)
    rows: list[Row] = []
    with TemporaryDirectory() as folder:
        scores, store = scored(pool, target, Path(folder))
        chosen = {
            baseline: [
                select(scores, BUDGET, "policy", seed, trial=reward, rounds=rounds, baseline=baseline).indices
                for seed in range(trials)
            ]
            for baseline in ("none", "leave_one_out", "linear")
        }
        random = [select(scores, BUDGET, "random", seed).indices for seed in range(trials)]
        for baseline, subsets in chosen.items():
            rows.append(row("spread", "policy", baseline, spread(subsets)))
        rows.append(row("spread", "random", "", spread(random)))
        found = variances(Evidence.of(scores), reward, checked)
        rows += [row("variance", "policy", name, [value / found["none"]]) for name, value in found.items()]
        for baseline, subsets in chosen.items():
            rows.append(row("test", "policy", baseline, [measured(s) for s in subsets]))
        rows.append(row("test", "random", "", [measured(s) for s in random]))
        probable = {"trial": reward, "rounds": rounds, "take": "probable"}
        last = [select(scores, BUDGET, "policy", seed, **probable).indices for seed in range(trials)]
        rows.append(row("spread", "policy, most probable rows", "leave_one_out", spread(last)))
        rows.append(row("test", "policy, most probable rows", "leave_one_out", [measured(s) for s in last]))
        for method in ("top_k", "less", "round_robin", "facility_location"):
            picked = select(scores, BUDGET, method, features=store).indices
            rows.append(row("test", method, "", [measured(picked)]))
        rows.append(row("test", "full pool", "", [measured(np.arange(POOL))]))
        rows.append(row("test", "clean rows alone", "", [measured(np.flatnonzero(~wrong))]))
    write("policy", rows, args.json)


if __name__ == "__main__":
    main()
