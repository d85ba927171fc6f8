"""Influence in sketch space against its definition, whole gradients, retraining and exact leave-one-out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import pytest
import torch
from attribution_cases import CLASSES, INPUTS, Margin, exact_gradients, store_of
from scipy.stats import spearmanr
from torch import nn

from backcast.attribution import attribute, collect
from backcast.data import Examples
from backcast.errors import InputError
from backcast.kernels import SketchSpec
from backcast.tasks import Batch


def definition(
    gradients: Sequence[np.ndarray],
    slopes: Sequence[np.ndarray],
    wanted: Sequence[np.ndarray],
    damping: float,
) -> np.ndarray:
    """Σ_c g(x)ᵀ (Σ_i g_i g_iᵀ / |s_i| + λ_cI)⁻¹ g(z) / C of loss gradients g, every matrix whole, in float64."""
    total: np.ndarray | float = 0.0
    for g, s, towards in zip(gradients, slopes, wanted, strict=True):
        g, towards = g.astype(np.float64), towards.astype(np.float64)
        H = sum(np.outer(row, row) / abs(slope) for row, slope in zip(g, s, strict=True))
        level = damping * np.trace(H) / len(g)
        total += g @ np.linalg.inv(H + level * np.eye(g.shape[1])) @ towards.T
    return total / len(gradients)


def close(found: np.ndarray, expected: np.ndarray, tolerance: float = 1e-5) -> None:
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("k", [6, 40])  # fewer numbers than examples, and more
@pytest.mark.parametrize("of", ["loss", "output"])
def test_influence_is_its_formula(of, k, tmp_path):
    rng = np.random.default_rng(0)
    rows, wanted = ([scale * rng.normal(size=(n, k)) for scale in (1.0, 30.0)] for n in (19, 5))
    if of == "loss":
        slopes, others = ([np.ones(n)] * 2 for n in (19, 5))
        stores = (
            store_of(tmp_path / "train", rows, shard_rows=7),
            store_of(tmp_path / "target", wanted, name="wanted", shard_rows=7),
        )
    else:
        slopes, others = ([-rng.uniform(0.05, 1, size=n) for _ in range(2)] for n in (19, 5))
        stores = (
            store_of(tmp_path / "train", rows, slopes=slopes, shard_rows=7),
            store_of(tmp_path / "target", wanted, slopes=others, name="wanted", shard_rows=7),
        )
    g = [s[:, None] * phi for s, phi in zip(slopes, rows, strict=True)]
    h = [s[:, None] * phi for s, phi in zip(others, wanted, strict=True)]
    close(attribute(*stores, "influence").values, definition(g, slopes, h, 1.0))
    close(attribute(*stores, "influence", damping=1e-3).values, definition(g, slopes, h, 1e-3), 1e-4)
    groups = attribute(*stores, "influence", groups=["b", "a", "b", "b", "a"])
    means = [np.stack([z[[0, 2, 3]].mean(0), z[[1, 4]].mean(0)]) for z in h]
    close(groups.values, definition(g, slopes, means, 1.0))


def test_scores_do_not_depend_on_the_gradients_scale(tmp_path):
    rng = np.random.default_rng(1)
    rows, wanted = rng.normal(size=(19, 6)), rng.normal(size=(5, 6))
    one, thousand = (
        attribute(
            store_of(tmp_path / f"train{scale}", [scale * rows]),
            store_of(tmp_path / f"target{scale}", [scale * wanted]),
            "influence",
        ).values
        for scale in (1.0, 1000.0)
    )
    close(one, thousand)


def test_large_damping_leaves_inner_products(tmp_path):
    rng = np.random.default_rng(2)
    stores = (
        store_of(tmp_path / "train", [rng.normal(size=(19, 6))]),
        store_of(tmp_path / "target", [rng.normal(size=(5, 6))]),
    )
    damped, plain = attribute(*stores, "influence", damping=1e6).values, attribute(*stores, "grad_dot").values
    close(damped / np.abs(damped).max(), plain / np.abs(plain).max(), 1e-4)


def test_rows_of_zeros_and_examples_that_are_learnt_count_for_nothing(tmp_path):
    rng = np.random.default_rng(3)
    phi, slopes = rng.normal(size=(9, 20)), -rng.random(9)
    phi[4], slopes[5] = 0, 0
    train = store_of(tmp_path / "train", [phi], slopes=[slopes])
    scores = attribute(train, train, "influence").values
    assert np.isfinite(scores).all()
    assert not scores[[4, 5]].any()
    learnt = store_of(tmp_path / "learnt", [phi], slopes=[np.zeros(9)])
    assert not attribute(learnt, learnt, "influence").values.any()


def test_damping_must_be_positive(tmp_path):
    store = store_of(tmp_path / "train", [np.ones((9, 20))])
    with pytest.raises(InputError, match="give a positive number"):
        attribute(store, store, "influence", damping=0.0)


@pytest.mark.parametrize("of", ["loss", "output"])
def test_influence_is_leave_one_out_of_ridge_regression_up_to_the_leverage(of, tmp_path):
    """θ minimises Σ (y_i − θᵀx_i)²/2 + λ‖θ‖²/2, and every residual is ±1, for which both curvatures are XᵀX.

    Without row i, θ moves by Δ_i, and ∇ℓ(z)ᵀΔ_i is the score / (1 − h_i), h_i = x_iᵀ(XᵀX + λI)⁻¹x_i.
    """
    rng, level = np.random.default_rng(4), 2.5
    X, residuals = rng.normal(size=(25, 8)), rng.choice([-1.0, 1.0], size=25)
    theta = X.T @ residuals / level  # where the gradient of the whole objective is zero
    y = X @ theta + residuals
    Z, answers = rng.normal(size=(4, 8)), rng.normal(size=4)
    errors = Z @ theta - answers

    def fit(rows: np.ndarray) -> np.ndarray:
        return np.linalg.solve(X[rows].T @ X[rows] + level * np.eye(8), X[rows].T @ y[rows])

    everything = np.arange(25)
    np.testing.assert_allclose(fit(everything), theta)
    rise = np.stack([(fit(np.delete(everything, i)) - theta) @ (errors[:, None] * Z).T for i in everything])
    leverage = np.einsum("ij,ij->i", X @ np.linalg.inv(X.T @ X + level * np.eye(8)), X)
    if of == "loss":
        train = store_of(tmp_path / "train", [-residuals[:, None] * X])
        target = store_of(tmp_path / "target", [errors[:, None] * Z])
    else:
        train = store_of(tmp_path / "train", [X], slopes=[-residuals])
        target = store_of(tmp_path / "target", [Z], slopes=[errors])
    scores = attribute(train, target, "influence", damping=level * 25 / (X**2).sum()).values
    close(scores / (1 - leverage)[:, None], rise, 1e-4)


DECAY = 0.1


def taught(n: int, seed: int) -> Examples:
    """Vectors whose entries have falling spreads, and which class a fixed linear teacher gives them."""
    draw = partial(torch.randn, dtype=torch.float64)
    teacher = draw(INPUTS, CLASSES, generator=torch.Generator().manual_seed(9))
    spreads = torch.logspace(0.5, -0.5, INPUTS, dtype=torch.float64)
    x = draw(n, INPUTS, generator=torch.Generator().manual_seed(seed)) * spreads
    label = (x @ teacher).argmax(1).tolist()
    return Examples.from_fields([{"text": f"{seed}/{i}", "label": label[i], "x": x[i]} for i in range(n)])


def fitted(batch: Batch, weights: torch.Tensor, start: nn.Module | None = None) -> nn.Module:
    """Softmax regression at the minimum of Σ_i w_i ℓ_i + λ‖θ‖²/2."""
    model = nn.Sequential(nn.Linear(INPUTS, CLASSES, bias=False)).double()
    model.load_state_dict(start.state_dict() if start else {"0.weight": torch.zeros(CLASSES, INPUTS)})
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=300, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        objective = weights @ Margin().loss(model, batch) + DECAY / 2 * model[0].weight.square().sum()
        objective.backward()
        return objective

    optimizer.step(closure)
    return model


def test_influence_predicts_what_retraining_without_an_example_does(tmp_path):
    """Whole gradients by an isometric sketch, against leaving out each of 20 of 60 examples."""
    train, target, task = taught(60, 0), taught(10, 1), Margin()
    batch, wanted = task.collate(train), task.collate(target)
    everything, one = torch.ones(60).double(), torch.eye(60).double()
    model = fitted(batch, everything)
    outputs, losses = (
        [
            collect(model, task, rows, tmp_path / of / name, of=of, spec=SketchSpec("sjlt", 64))
            for rows, name in ((train, "train"), (target, "target"))
        ]
        for of in ("output", "loss")
    )
    scores = attribute(*outputs, "influence", damping=0.1).values
    g, h = (
        exact_gradients(model, task, rows, {"0": model[0].weight})["0"].flatten(1).numpy()
        for rows in (train, target)
    )
    close(scores, definition([g], [outputs[0].slopes()], [h], 0.1), 1e-4)

    retrained = [fitted(batch, everything - one[i], model) for i in range(20)]
    rises = np.stack([(task.loss(m, wanted) - task.loss(model, wanted)).detach() for m in retrained])

    def agreement(scores: np.ndarray) -> float:
        return float(np.mean([spearmanr(scores[:20, j], rises[:, j]).statistic for j in range(10)]))

    assert agreement(scores) > 0.75
    assert agreement(attribute(*losses, "influence", damping=0.1).values) > 0.65
    assert agreement(attribute(*losses, "grad_dot").values) < 0.6
