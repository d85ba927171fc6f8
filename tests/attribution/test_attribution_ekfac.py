"""EK-FAC and SOURCE against dense matrices in float64, against kronfluence, and against retraining's own derivative."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from attribution_cases import Classify, exact_gradients, examples, mlp
from safetensors.torch import save_file
from torch import Tensor, nn

from backcast.attribution import Checkpoint
from backcast.attribution.curvature import products
from backcast.attribution.estimators.ekfac import ekfac
from backcast.attribution.estimators.source import source
from backcast.attribution.problem import Problem
from backcast.data import Example, Examples
from backcast.errors import InputError
from backcast.tasks import Batch, Task


class Double(Classify):
    def collate(self, examples: Sequence[Example]) -> Batch:
        batch = super().collate(examples)
        return {**batch, "x": batch["x"].double()}


TRAIN, TARGET = examples(40), examples(6, seed=1)


def problem(model: nn.Module | None = None, task: Task | None = None, **fields) -> Problem:
    model = mlp(8).double() if model is None else model
    given = {"train": TRAIN, "target": TARGET, "method": "test", "model": model, "task": task or Double()}
    return Problem(**given | fields)


def whole(model: nn.Module, rows: Examples) -> dict[str, np.ndarray]:
    """(B, N) gradients of the two weights of an `mlp`."""
    found = exact_gradients(model, Double(), rows, {"0": model[0].weight, "2": model[2].weight})
    return {name: G.flatten(1).numpy() for name, G in found.items()}


def dense_fisher(models: Sequence[nn.Module]) -> dict[str, np.ndarray]:
    """EK-FAC matrices (N, N) of an `mlp`'s two weights, averaged over the models, from products with all of X and D."""
    x, labels = (
        torch.stack([e.fields["x"] for e in TRAIN]).double(),
        torch.tensor([e.fields["label"] for e in TRAIN]),
    )
    rows: dict[str, list[tuple[Tensor, Tensor]]] = {"0": [], "2": []}
    for model in models:
        first = model[0](x)
        hidden = torch.tanh(first)
        out = model[2](hidden)
        by_first, by_out = torch.autograd.grad(F.cross_entropy(out, labels, reduction="sum"), (first, out))
        rows["0"].append((x, by_first))
        rows["2"].append((hidden.detach(), by_out))
    gradients = [whole(model, TRAIN) for model in models]
    fisher = {}
    for name, pairs in rows.items():
        U_A, U_S = (
            torch.linalg.eigh(sum(r.T @ r for r in side)).eigenvectors for side in zip(*pairs, strict=True)
        )
        basis = np.kron(U_S.numpy(), U_A.numpy())
        values = np.mean([np.mean((g[name] @ basis) ** 2, axis=0) for g in gradients], axis=0)
        fisher[name] = basis @ np.diag(values) @ basis.T
    return fisher


def close(a: np.ndarray, b: np.ndarray, tolerance: float = 1e-9) -> bool:
    return bool(np.abs(a - b).max() <= tolerance * np.abs(b).max())


# EK-FAC.


@pytest.mark.parametrize("damping", [None, 1e-2])
def test_scores_are_those_of_the_dense_matrices(damping):
    given = problem()
    train, target = whole(given.model, TRAIN), whole(given.model, TARGET)
    expected = 0
    for name, fisher in dense_fisher([given.model]).items():
        mean = np.trace(fisher) / len(fisher)
        damped = fisher + (0.1 * mean if damping is None else damping) * np.eye(len(fisher))
        expected = expected + train[name] @ np.linalg.solve(damped, target[name].T)
    assert close(ekfac(given, damping=damping), expected)


def test_large_damping_leaves_the_inner_products_of_gradients():
    given = problem()
    train, target = whole(given.model, TRAIN), whole(given.model, TARGET)
    expected = sum(train[name] @ target[name].T for name in train)
    assert close(1e8 * ekfac(given, damping=1e8), expected, 1e-6)


def test_a_groups_score_is_linear_in_its_members():
    names = ["b", "a", "b", "b", "c", "a"]
    single = ekfac(problem(), damping=1.0)
    expected = np.stack([single[:, [0, 2, 3]].mean(1), single[:, [1, 5]].mean(1), single[:, 4]], 1)
    assert close(ekfac(problem(groups=names), damping=1.0), expected, 1e-6)


@pytest.mark.parametrize("iterations", [0, 3])
def test_targets_in_parts_have_the_same_scores(iterations, monkeypatch):
    together = ekfac(problem(), damping=1.0, iterations=iterations)
    monkeypatch.setattr(products, "MEMORY", 2 * 5 * 136)
    assert close(ekfac(problem(), damping=1.0, iterations=iterations), together)


def dense_hessian(model: nn.Module) -> np.ndarray:
    x, labels = Double().collate(TRAIN).values()

    def loss(theta: Tensor) -> Tensor:
        first, last = theta[:96].view(8, 12), theta[96:].view(5, 8)
        hidden = torch.tanh(F.linear(x, first, model[0].bias))
        return F.cross_entropy(F.linear(hidden, last, model[2].bias), labels)

    theta = torch.cat([model[0].weight.flatten(), model[2].weight.flatten()]).detach()
    return torch.func.hessian(loss)(theta).detach().numpy()


def test_conjugate_gradients_end_at_the_dense_hessians_solution():
    given = problem()
    hessian = dense_hessian(given.model)
    damping = 0.05 - min(0.0, np.linalg.eigvalsh(hessian)[0])
    train, target = (np.concatenate(list(whole(given.model, rows).values()), 1) for rows in (TRAIN, TARGET))
    expected = train @ np.linalg.solve(hessian + damping * np.eye(136), target.T)
    errors = [
        np.abs(ekfac(given, damping=damping, iterations=i) - expected).max() / np.abs(expected).max()
        for i in (0, 5, 100)
    ]
    assert errors[0] > 5 * errors[1]
    assert errors[2] < 1e-8


def test_damping_is_raised_until_the_hessian_is_positive(caplog):
    given = problem()
    hessian = dense_hessian(given.model)
    least = -np.linalg.eigvalsh(hessian)[0]
    assert least > 0
    damping = least / 10
    raised = ekfac(given, damping=damping, iterations=100)
    assert "not convex here: damping is raised 16-fold" in caplog.text
    assert close(raised, ekfac(given, damping=16 * damping, iterations=100), 1e-8)


class Regress(Task):
    """½ (f − y)², with labels drawn as f ± 1: their Fisher matrix is the Hessian E[x xᵀ], whatever is drawn."""

    def collate(self, examples: Sequence[Example]) -> Batch:
        return {
            "x": torch.stack([e.fields["x"] for e in examples]),
            "y": torch.tensor([e.fields["y"] for e in examples], dtype=torch.float64),
        }

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return (model(batch["x"])[:, 0] - batch["y"]).square() / 2

    def sampled(self, model: nn.Module, batch: Batch, generator: torch.Generator) -> Batch:
        drawn = 2.0 * torch.randint(0, 2, batch["y"].shape, generator=generator) - 1
        return {**batch, "y": model(batch["x"])[:, 0] + drawn}


def regression(n: int, seed: int) -> tuple[Examples, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 4)) * [1, 0.5, 2, 0.2]
    y = x @ [1, -1, 0.5, 2] + 0.3 * rng.normal(size=n)
    fields = [{"id": f"{seed}/{i}", "x": torch.tensor(x[i]), "y": float(y[i])} for i in range(n)]
    return Examples.from_fields(fields), x, y


def linear(weight: np.ndarray) -> nn.Module:
    model = nn.Linear(4, 1, bias=False).double()
    model.weight.data = torch.tensor(weight)[None]
    return model


def test_the_true_fisher_of_a_regression_gives_its_influence_function():
    (train, x, y), (target, u, v) = regression(30, 0), regression(5, 1)
    weight = np.linalg.lstsq(x, y)[0]
    given = problem(linear(weight), Regress(), train=train, target=target)
    hessian = x.T @ x / 30 + 0.01 * np.eye(4)
    expected = (x * (x @ weight - y)[:, None]) @ np.linalg.solve(hessian, (u * (u @ weight - v)[:, None]).T)
    assert close(ekfac(given, damping=0.01, fisher="true"), expected)
    assert not close(ekfac(given, damping=0.01), expected, 0.1)
    assert close(ekfac(given, damping=0.01, iterations=6), expected)


def test_curvature_from_fewer_rows_is_theirs():
    every = ekfac(problem(), damping=0.1)
    assert np.array_equal(ekfac(problem(), damping=0.1, rows=40), every)
    few = ekfac(problem(), damping=0.1, rows=15, seed=3)
    assert np.array_equal(ekfac(problem(), damping=0.1, rows=15, seed=3), few)
    drawn = np.sort(np.random.default_rng(3).choice(40, 15, replace=False))
    assert close(ekfac(problem(train=TRAIN[drawn]), damping=0.1), few[drawn])


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"damping": 0.0}, "damping 0.0 gives no curvature"),
        ({"damping": float("nan")}, "damping nan gives no curvature"),
        ({"iterations": -1}, "iterations -1 must be zero or more"),
        ({"rows": 0}, "rows 0 must be at least 1"),
        ({"fisher": "exact"}, "fisher 'exact' does not exist; choose empirical or true"),
        ({"fisher": "true"}, "Double defines no predictions to draw from; override sampled"),
    ],
)
def test_parameters_out_of_range_are_refused(params, message):
    with pytest.raises(InputError, match=message):
        ekfac(problem(), **params)


# kronfluence.


def bare_mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 8, bias=False), nn.Tanh(), nn.Linear(8, 5, bias=False))


def bare_conv() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, bias=False),
        nn.Tanh(),
        nn.Conv2d(4, 3, 3, stride=2, bias=False),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(12, 5, bias=False),
    )


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "vectors": (bare_mlp, (12,)),
    "images": (bare_conv, (2, 6, 6)),
}


def kronfluence_scores(name: str, damping: float | None, folder: Path) -> np.ndarray:
    """(24, 3), of kronfluence in float64: how the numbers below were made (1.0.1)."""
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.arguments import FactorArguments, ScoreArguments
    from kronfluence.task import Task as KronfluenceTask

    class SumOfLosses(KronfluenceTask):
        def compute_train_loss(self, batch, model, sample=False):
            return F.cross_entropy(model(batch[0]), batch[1], reduction="sum")

        def compute_measurement(self, batch, model):
            return self.compute_train_loss(batch, model)

    make, shape = NETS[name]
    train, target = (
        torch.utils.data.TensorDataset(*Double().collate(examples(n, shape, seed, torch.float64)).values())
        for n, seed in ((24, 0), (3, 1))
    )
    model = prepare_model(make().double(), SumOfLosses())
    analyzer = Analyzer("test", model, SumOfLosses(), cpu=True, output_dir=str(folder), disable_tqdm=True)
    wide = torch.float64
    analyzer.fit_all_factors(
        "factors",
        train,
        per_device_batch_size=8,
        factor_args=FactorArguments(
            strategy="ekfac",
            use_empirical_fisher=True,
            activation_covariance_dtype=wide,
            gradient_covariance_dtype=wide,
            per_sample_gradient_dtype=wide,
            lambda_dtype=wide,
        ),
    )
    analyzer.compute_pairwise_scores(
        "scores",
        "factors",
        target,
        train,
        per_device_query_batch_size=3,
        per_device_train_batch_size=8,
        score_args=ScoreArguments(
            damping_factor=damping, per_sample_gradient_dtype=wide, precondition_dtype=wide, score_dtype=wide
        ),
    )
    return analyzer.load_pairwise_scores("scores")["all_modules"].T.numpy()


#: network, damping → the first six rows of `kronfluence_scores`.
KRONFLUENCE = {
    ("vectors", None): [
        [-0.1391373, 1.003703, -5.447311],
        [-20.57157, -0.606503, 1.428509],
        [-3.371148, 5.35618, 14.1626],
        [0.320758, 18.25621, -15.55698],
        [-1.292393, 31.40427, 2.570355],
        [3.027002, 5.985853, 1.34089],
    ],
    ("vectors", 0.001): [
        [-0.9649197, 1.432622, -5.509326],
        [-26.1619, -0.7759168, 1.365418],
        [-4.804745, 5.580612, 14.40956],
        [-1.432753, 20.6023, -18.43598],
        [-2.197603, 32.18947, 2.323284],
        [3.6165, 6.144142, 0.9769163],
    ],
    ("images", None): [
        [-4.382102, 26.185, 0.3336057],
        [-1.984525, 25.48281, 3.298432],
        [-12.89533, 0.4059187, -3.965435],
        [-2.983508, -3.424581, 25.23376],
        [9.25849, 14.22541, -15.39842],
        [-2.609022, 5.686245, -26.8574],
    ],
    ("images", 0.001): [
        [-4.227357, 26.72722, 0.5870559],
        [-3.049803, 25.19695, 2.835307],
        [-12.69028, 0.7063296, -3.824495],
        [-3.812769, -4.378224, 25.06473],
        [9.674933, 14.35706, -15.4521],
        [-3.411615, 5.95065, -28.25104],
    ],
}


class Same(Classify):
    """In the model's own precision."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        x = batch["x"].to(next(model.parameters()).dtype)
        return F.cross_entropy(model(x), batch["y"], reduction="none")


def kronfluences_problem(name: str, dtype: torch.dtype) -> Problem:
    make, shape = NETS[name]
    train, target = (examples(n, shape, seed, torch.float64) for n, seed in ((24, 0), (3, 1)))
    return problem(make().to(dtype), Same(), train=train, target=target)


@pytest.mark.parametrize(("name", "damping"), KRONFLUENCE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scores_are_kronfluences(name, damping, dtype):
    scores = ekfac(kronfluences_problem(name, dtype), damping=damping)
    tolerance = {torch.float32: 1e-5, torch.float64: 2e-7}[dtype]  # of the printed digits
    assert close(scores[:6], np.array(KRONFLUENCE[name, damping]), tolerance)


@pytest.mark.parametrize(("name", "damping"), KRONFLUENCE)
def test_scores_are_those_of_the_kronfluence_that_is_there(name, damping, tmp_path):
    pytest.importorskip("kronfluence", reason="kronfluence lives in the peers' environment")
    expected = kronfluence_scores(name, damping, tmp_path)
    assert close(ekfac(kronfluences_problem(name, torch.float64), damping=damping), expected)
    assert close(np.array(KRONFLUENCE[name, damping]), expected[:6], 2e-7)


# SOURCE.


def checkpoints(folder: Path, models: Sequence[nn.Module], rates: Sequence[float]) -> list[Checkpoint]:
    points = []
    for c, (model, rate) in enumerate(zip(models, rates, strict=True)):
        save_file(model.state_dict(), folder / f"{c}.safetensors")
        points.append(Checkpoint(str(folder / f"{c}.safetensors"), rate))
    return points


def test_source_is_the_derivative_of_gradient_descent_where_gradients_stand_still(tmp_path):
    """Gradient descent that starts at the optimum stays there; each example's weight still has an effect."""
    (train, x, y), (target, u, v) = regression(12, 0), regression(5, 1)
    weight = np.linalg.lstsq(x, y)[0]
    rates, steps = [0.004, 0.001], [60, 100]
    points = checkpoints(tmp_path, [linear(weight)] * 2, rates)
    given = problem(linear(weight), Regress(), train=train, target=target, checkpoints=points)
    scores = source(given, steps=steps, fisher="true")

    values, vectors = np.linalg.eigh(x.T @ x / 12)
    reach = (1 - np.exp(-np.dot(rates, steps) * values)) / values  # two segments of one curvature are one
    g, h = x * (x @ weight - y)[:, None], u * (u @ weight - v)[:, None]
    assert close(scores, (g @ vectors * reach) @ (h @ vectors).T / 12)

    X, Y = torch.tensor(x), torch.tensor(y)
    weights = torch.ones(12, dtype=torch.float64, requires_grad=True)
    theta = torch.tensor(weight)
    for rate, count in zip(rates, steps, strict=True):
        for _ in range(count):
            theta = theta - rate * X.T @ (weights * (X @ theta - Y)) / 12
    losses = (torch.tensor(u) @ theta - torch.tensor(v)).square() / 2
    unrolled = torch.stack([torch.autograd.grad(loss, weights, retain_graph=True)[0] for loss in losses], 1)
    assert close(scores, -unrolled.numpy(), 0.01)  # exp(−ηKλ) for (1 − ηλ)^K


@pytest.mark.parametrize("segments", [None, 2, 1])
def test_source_is_its_formula_with_dense_matrices(segments, tmp_path, monkeypatch):
    models = [mlp(8, seed).double() for seed in range(4)]
    rates, given = [0.3, 0.2, 0.2, 0.05], problem(mlp(8, 9).double())
    points = checkpoints(tmp_path, models, rates)
    before = [p.clone() for p in given.model.parameters()]
    count = segments or 4
    steps = list(range(10, 10 + count))
    expected: Any = 0
    ahead = whole(given.model, TARGET)
    for part in reversed(range(count)):
        span = slice(part * 4 // count, (part + 1) * 4 // count)
        gradients = [whole(model, TRAIN) for model in models[span]]
        time = np.mean(rates[span]) * steps[part]
        for name, fisher in dense_fisher(models[span]).items():
            values, vectors = np.linalg.eigh(fisher)
            values = values.clip(1e-12)
            response = vectors @ np.diag(-np.expm1(-time * values) / values) @ vectors.T
            decay = vectors @ np.diag(np.exp(-time * values)) @ vectors.T
            expected = expected + np.mean([g[name] for g in gradients], 0) @ response @ ahead[name].T
            ahead[name] = ahead[name] @ decay
    kept = problem(given.model, checkpoints=points)
    assert close(source(kept, steps=steps, segments=segments), expected / 40, 1e-6)
    monkeypatch.setattr(products, "MEMORY", 2 * 136)
    assert close(source(kept, steps=steps, segments=segments), expected / 40, 1e-6)
    assert all(torch.equal(p, q) for p, q in zip(given.model.parameters(), before, strict=True))


def test_source_refuses_what_does_not_make_segments(tmp_path):
    points = checkpoints(tmp_path, [mlp(8).double()] * 3, [0.1] * 3)
    with pytest.raises(InputError, match="give checkpoints="):
        source(problem(), steps=10)
    with pytest.raises(InputError, match="3 checkpoints do not make 2 equal segments"):
        source(problem(checkpoints=points), steps=10, segments=2)
    with pytest.raises(InputError, match="give steps="):
        source(problem(checkpoints=points))
    with pytest.raises(InputError, match=r"steps \[5, 5\] do not fit 3 segments"):
        source(problem(checkpoints=points), steps=[5, 5])
