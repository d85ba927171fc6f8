"""TRAK against its definition, traker, whole gradients and exact leave-one-out."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from attribution_cases import CLASSES, INPUTS, Margin, exact_gradients, examples, store_of
from torch import Tensor, nn
from trak import TRAKer

from backcast.attribution import attribute, collect
from backcast.errors import InputError
from backcast.kernels import SketchSpec, TrakProjector
from backcast.tasks import Batch


def definition(
    phi: Sequence[np.ndarray], slopes: Sequence[np.ndarray], wanted: Sequence[np.ndarray], damping: float
) -> np.ndarray:
    """Σ_c Q̄ φ_cᵀ(Φ_cᵀΦ_c + λ_cI)⁻¹φ_c / C with every matrix whole, in float64."""
    total: np.ndarray | float = 0.0
    for features, towards in zip(phi, wanted, strict=True):
        features, towards = features.astype(np.float64), towards.astype(np.float64)
        level = damping * (features**2).sum() / len(features)
        inverse = np.linalg.inv(features.T @ features + level * np.eye(features.shape[1]))
        total += features @ inverse @ towards.T
    return -np.mean(slopes, axis=0)[:, None] * total / len(phi)


def close(found: np.ndarray, expected: np.ndarray, tolerance: float = 1e-5) -> None:
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("k", [6, 40])  # fewer numbers than examples, and more
@pytest.mark.parametrize("damping", [1e-3, 1.0])
def test_trak_is_its_formula(k, damping, tmp_path):
    rng = np.random.default_rng(0)
    phi, wanted = ([scale * rng.normal(size=(n, k)) for scale in (1.0, 30.0)] for n in (19, 5))
    slopes, others = ([-rng.random(n) for _ in range(2)] for n in (19, 5))
    train = store_of(tmp_path / "train", phi, slopes=slopes, shard_rows=7)
    target = store_of(tmp_path / "target", wanted, slopes=others, name="wanted", shard_rows=7)
    close(
        attribute(train, target, "trak", damping=damping).values,
        definition(phi, slopes, wanted, damping),
        1e-4,
    )
    groups = attribute(train, target, "trak", groups=["b", "a", "b", "b", "a"], damping=damping)
    means = [np.stack([z[[0, 2, 3]].mean(0), z[[1, 4]].mean(0)]) for z in wanted]
    close(groups.values, definition(phi, slopes, means, damping), 1e-4)


def test_trak_of_losses_is_influence_of_losses(tmp_path):
    rng = np.random.default_rng(1)
    losses, wanted = rng.normal(size=(19, 6)), rng.normal(size=(5, 6))
    stores = store_of(tmp_path / "train", [losses]), store_of(tmp_path / "target", [wanted])
    scores = attribute(*stores, "trak").values
    close(scores, definition([losses], [-np.ones(19)], [wanted], 1.0))
    np.testing.assert_array_equal(scores, attribute(*stores, "influence").values)


def test_rows_of_zeros_count_for_nothing(tmp_path):
    phi = np.random.default_rng(2).normal(size=(9, 20))
    phi[4] = 0
    scores = attribute(
        store_of(tmp_path / "train", [phi]), store_of(tmp_path / "target", [phi[:3]]), "trak"
    ).values
    assert np.isfinite(scores).all()
    assert not scores[4].any()
    nothing = store_of(tmp_path / "nothing", [np.zeros((9, 20))])
    assert not attribute(nothing, nothing, "trak").values.any()


@pytest.mark.parametrize("damping", [0.0, -1.0, float("nan"), float("inf")])
def test_damping_is_a_positive_number(damping, tmp_path):
    store = store_of(tmp_path / "train", [np.ones((9, 20))])
    with pytest.raises(InputError, match="give a positive number"):
        attribute(store, store, "trak", damping=damping)


class MarginAsLoss(Margin):
    """For `exact_gradients`, which differentiates losses."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return self.output(model, batch)


def regression(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(INPUTS, CLASSES))


def test_an_isometric_sketch_gives_the_scores_of_whole_gradients(tmp_path):
    """`sjlt` of one layer with no more weights than numbers permutes and signs them: nothing may be lost."""
    model, spec = regression(), SketchSpec("sjlt", 64)
    train, target = examples(30), examples(6, seed=1)
    stores = (
        collect(model, Margin(), rows, tmp_path / name, of="output", spec=spec)
        for rows, name in ((train, "train"), (target, "target"))
    )
    scores = attribute(*stores, "trak").values
    phi, wanted = (
        exact_gradients(model, MarginAsLoss(), rows, {"0": model[0].weight})["0"].flatten(1).numpy()
        for rows in (train, target)
    )
    p = torch.softmax(model(torch.stack([e.fields["x"] for e in train])), 1)
    right = p.gather(1, torch.tensor([[e.fields["label"]] for e in train]))[:, 0].detach().numpy()
    close(scores, definition([phi], [right - 1], [wanted], 1.0), 1e-4)


def test_trak_agrees_with_traker_on_the_same_projections(tmp_path):
    """Two models; k > n. traker divides each model's inverse by its mean entry, which is undone on the targets."""
    k, damping = 128, 0.3
    train, target = examples(40), examples(6, seed=1)
    batches = [
        [torch.stack([e.fields["x"] for e in rows]), torch.tensor([e.fields["label"] for e in rows])]
        for rows in (train, target)
    ]
    model = regression()
    traker = TRAKer(
        model=model,
        task="image_classification",
        train_set_size=40,
        save_dir=str(tmp_path / "traker"),
        device="cpu",
        projector=TrakProjector(sum(p.numel() for p in model.parameters()), k),
        proj_dim=k,
        use_half_precision=False,
        logging_level=logging.ERROR,
    )
    phi, slopes, wanted = [], [], []
    for c in range(2):
        weights = regression(seed=c).state_dict()
        traker.load_checkpoint(weights, model_id=c)
        traker.featurize(batches[0], num_samples=40)
        phi.append(np.array(traker.saver.current_store["grads"]))
        slopes.append(-np.array(traker.saver.current_store["out_to_loss"])[:, 0])
        level = damping * (phi[c] ** 2).sum() / 40
        traker.score_computer.lambda_reg = float(level)
        traker.finalize_features(model_ids=[c])
        traker.start_scoring_checkpoint("run", weights, model_id=c, num_targets=6)
        traker.score(batches[1], num_samples=6)
        mean_entry = np.abs(np.linalg.inv(phi[c].T @ phi[c] + level * np.eye(k))).mean()
        wanted.append(np.array(traker.saver.current_store["run_grads"]) / mean_entry)
    theirs = np.array(traker.finalize_scores("run"))
    ours = attribute(
        store_of(tmp_path / "train", phi, slopes=slopes, shard_rows=7),
        store_of(tmp_path / "target", wanted, slopes=[np.zeros(6)] * 2),
        "trak",
        damping=damping,
    ).values
    close(ours, theirs, 1e-4)


def test_trak_is_leave_one_out_of_ridge_regression_up_to_the_leverage(tmp_path):
    """f = θᵀx, ℓ = (y − f)²/2: without row i, f(z) falls by the score / (1 − h_i), h_i = x_iᵀ(XᵀX + λI)⁻¹x_i."""
    rng, level = np.random.default_rng(3), 2.5
    X, y, Z = rng.normal(size=(25, 8)), rng.normal(size=25), rng.normal(size=(4, 8))

    def fit(rows: np.ndarray) -> np.ndarray:
        return np.linalg.solve(X[rows].T @ X[rows] + level * np.eye(8), X[rows].T @ y[rows])

    everything = np.arange(25)
    theta = fit(everything)
    fall = np.stack([Z @ (theta - fit(np.delete(everything, i))) for i in everything])
    leverage = np.einsum("ij,ij->i", X @ np.linalg.inv(X.T @ X + level * np.eye(8)), X)
    train = store_of(tmp_path / "train", [X], slopes=[X @ theta - y])
    target = store_of(tmp_path / "target", [Z], slopes=[np.zeros(4)])
    scores = attribute(train, target, "trak", damping=level * 25 / (X**2).sum()).values
    close(scores / (1 - leverage)[:, None], fall, 1e-4)
