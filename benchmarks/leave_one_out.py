"""How near are the scores to exact leave-one-out?

Logistic regression has one optimum, so each row can be left out exactly: Newton's method from the optimum on all rows.
On `digits-logistic`, the rank correlation and the linear correlation of each method's scores with the rise of the
target's loss, over all rows, as means over the targets. Needs what `lds.py` has made.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from common import HERE, Row, write
from lds import SEEDS, WAYS, interval, made, wanted
from lds_truth import Place
from scipy.stats import rankdata
from torch import Tensor

from backcast.progress import progress

NAME = "digits-logistic"


def optimum(x: Tensor, y: Tensor, weights: Tensor, decay: float, start: Tensor) -> Tensor:
    """argmin_W Σ_i weights_i ℓ(W; x_i, y_i) + decay ‖W‖²/2, (classes, inputs), by Newton's method."""
    W = start
    classes, inputs = W.shape
    for _ in range(50):
        p = (x @ W.T).softmax(1)
        residual = weights[:, None] * (p - F.one_hot(y, classes))
        gradient = residual.T @ x + decay * W
        curvature = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
        hessian = torch.einsum("n,nab,ni,nj->aibj", weights, curvature, x, x).reshape(classes * inputs, -1)
        hessian.diagonal().add_(decay)
        step = torch.linalg.solve(hessian, gradient.flatten()).view_as(W)
        W = W - step
        if step.norm() < 1e-9 * W.norm():
            return W
    raise RuntimeError("Newton's method did not converge")


def one_step(x: Tensor, y: Tensor, decay: float, W: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse Hessian at the optimum of the mean loss, and each row's gradient (n, classes · inputs)."""
    classes = len(W)
    p = (x @ W.T).softmax(1)
    curvature = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    hessian = torch.einsum("nab,ni,nj->aibj", curvature, x, x).reshape(W.numel(), -1) / len(x)
    hessian.diagonal().add_(decay)
    gradients = (p - F.one_hot(y, classes))[:, :, None] * x[:, None, :]
    return torch.linalg.inv(hessian), gradients.flatten(1)


def left_out(place: Place) -> np.ndarray:
    """(n, m) the rise of each target's loss when a row is left out and the rest is trained to the optimum."""
    setting = place.setting
    decay = setting.training.options["weight_decay"]
    (x, y), (tx, ty) = (
        (batch["x"].double(), batch["y"])
        for batch in (setting.task.collate(setting.train), setting.task.collate(setting.target))
    )
    n = len(x)
    every = torch.full((n,), 1 / n, dtype=torch.float64)
    W = optimum(x, y, every, decay, torch.zeros(10, x.shape[1], dtype=torch.float64))
    before = F.cross_entropy(tx @ W.T, ty, reduction="none")
    inverse, gradients = one_step(x, y, decay, W)
    out = np.zeros((n, len(tx)))
    with progress("left out", n) as done:
        for row in range(n):
            without = every.clone()
            without[row] = 0
            # Near enough for one Hessian to serve all: the optimum without the row by its own fixed-point iteration.
            V = W + (inverse @ gradients[row] / n).view_as(W)
            V = _polished(x, y, without, decay, V, inverse)
            out[row] = (F.cross_entropy(tx @ V.T, ty, reduction="none") - before).numpy()
            done(1)
    return out


def _polished(x: Tensor, y: Tensor, weights: Tensor, decay: float, W: Tensor, inverse: Tensor) -> Tensor:
    """Newton's method with a fixed inverse Hessian, until the gradient vanishes."""
    for _ in range(100):
        residual = weights[:, None] * ((x @ W.T).softmax(1) - F.one_hot(y, len(W)))
        gradient = (residual.T @ x + decay * W).flatten()
        if gradient.norm() < 1e-10:
            return W
        W = W - (inverse @ gradient).view_as(W)
    raise RuntimeError("the optimum without a row was not reached")


def correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(m,) of columns (n, m)."""
    a, b = a - a.mean(0), b - b.mean(0)
    length = np.linalg.norm(a, axis=0) * np.linalg.norm(b, axis=0)
    return np.divide((a * b).sum(0), length, out=np.zeros_like(length), where=length > 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="on what `lds.py --quick` has made")
    parser.add_argument("--json", action="store_true", help="print the results as one JSON object")
    parser.add_argument("--work", type=Path, metavar="DIR", default=HERE.parent / "runs" / "lds")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    places = [Place(asked.work, NAME, seed, asked.quick) for seed in range(1 if asked.quick else SEEDS[NAME])]
    if not (places[-1].path / "scores").is_dir():
        print(f"{places[-1].path}: nothing made there yet; run lds.py first", file=sys.stderr)
        sys.exit(2)
    exact = left_out(places[0])
    rows: list[Row] = []
    for (package, method), (sees, way, where) in WAYS.items():
        if not wanted(package, where, NAME, None):
            continue
        each = [made(way, place, package, method) for place in places]
        if any(one.scores is None for one in each):
            continue
        scores = np.mean([one.scores for one in each], axis=0)
        ranks = interval(correlation(rankdata(scores, axis=0), rankdata(exact, axis=0)))
        row: Row = {"package": package, "method": method, "sees": sees, "rank_correlation": ranks["lds"]}
        row |= {"low": ranks["low"], "high": ranks["high"]}
        rows.append({**row, "correlation": float(correlation(scores, exact).mean())})
    write("leave_one_out-quick" if asked.quick else "leave_one_out", rows, asked.json)


if __name__ == "__main__":
    main()
