"""Curvature against its definition in float64, layer by layer, from single examples and plain autograd."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from attribution_cases import Classify, exact_gradients, examples, llama, mlp
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from backcast.attribution.curvature import (
    Corrections,
    Covariances,
    Curvature,
    InnerProducts,
    at_rest,
    mean_gradients,
)
from backcast.attribution.curvature.hessian import conjugate_gradients, hessian_products
from backcast.data import Example, Examples
from backcast.errors import InputError
from backcast.tasks import Batch, Task


class Double(Classify):
    def collate(self, examples: Sequence[Example]) -> Batch:
        batch = super().collate(examples)
        return {**batch, "x": batch["x"].double()}


class Mean(nn.Module):
    """Sequences in, the mean over positions out; ``inner`` is used as often as said."""

    def __init__(self, inner: nn.Module, uses: int = 1) -> None:
        super().__init__()
        self.inner, self.uses, self.head = inner, uses, nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.uses):
            x = torch.tanh(self.inner(x))
        return self.head(x.mean(1))


def conv() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding="same"),
        nn.Tanh(),
        nn.Conv2d(4, 3, (2, 3), stride=2),
        nn.Flatten(),
        nn.Linear(27, 5),
    )


#: name → model, shape of an input
MODELS = {
    "vectors": (lambda: mlp(8), (12,)),
    "few positions": (lambda: Mean(nn.Linear(6, 6)), (2, 6)),  # rows are rotated
    "many positions": (lambda: Mean(nn.Linear(6, 6)), (20, 6)),  # gradients are
    "Conv1D": (lambda: Mean(Conv1D(6, 4)), (3, 4)),
    "used twice": (lambda: Mean(nn.Linear(6, 6), uses=2), (3, 6)),
    "images": (conv, (2, 6, 7)),
}


def build(name: str) -> tuple[nn.Module, Examples]:
    make, shape = MODELS[name]
    torch.manual_seed(0)
    return make().double(), examples(23, shape, dtype=torch.float64)


def exact_rows(
    model: nn.Module, task: Task, rows: Examples, modules: Mapping[str, nn.Module]
) -> dict[str, tuple[Tensor, Tensor]]:
    """For each module all positions' inputs (N, I) and output gradients (N, O), an example at a time."""
    found: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in modules}
    for b in range(len(rows)):
        seen: list[tuple[str, Tensor, Tensor]] = []

        def see(name, module, arguments, output, seen=seen):
            output.retain_grad()
            seen.append((name, arguments[0].detach(), output))

        handles = [
            m.register_forward_hook(lambda m, a, o, n=name: see(n, m, a, o)) for name, m in modules.items()
        ]
        task.loss(model, task.collate(rows[b : b + 1])).sum().backward()
        for handle in handles:
            handle.remove()
        for name, x, output in seen:
            module, d = modules[name], output.grad
            if isinstance(module, nn.Conv2d):
                if module.padding == "same":
                    x = F.pad(x, (1, 1, 1, 1))
                x, d = F.unfold(x, module.kernel_size, stride=module.stride).mT, d.flatten(2).mT
            found[name].append((x.reshape(-1, x.shape[-1]), d.reshape(-1, d.shape[-1])))
    model.zero_grad()
    return {
        name: tuple(torch.cat(side) for side in zip(*pairs, strict=True)) for name, pairs in found.items()
    }


def exact_matrices(
    model: nn.Module, task: Task, rows: Examples, modules: Mapping[str, nn.Module]
) -> dict[str, Tensor]:
    """(B, O, I) gradients by module, of autograd."""
    found = exact_gradients(model, task, rows, {name: m.weight for name, m in modules.items()})
    return {n: G.mT if isinstance(modules[n], Conv1D) else G.flatten(2) for n, G in found.items()}


def curvature_of(
    model: nn.Module, task: Task, rows: Examples, batch_size: int = 7
) -> tuple[Covariances, Curvature]:
    with at_rest(model, task, batch_size) as passes:
        covariances = Covariances(passes.dtype)
        passes.run(covariances, rows, "factors")
        corrections = Corrections(covariances.bases())
        passes.run(corrections, rows, "eigenvalues")
    return covariances, corrections.curvature()


def close(a: Tensor, b: Tensor, tolerance: float = 1e-10) -> bool:
    return bool((a - b).detach().norm() <= tolerance * b.norm())


@pytest.mark.parametrize("name", MODELS)
def test_a_layers_curvature_is_its_definition(name):
    model, rows = build(name)
    task = Double()
    modules = task.modules(model)
    inputs_and_slopes = exact_rows(model, task, rows, modules)
    gradients = exact_matrices(model, task, rows, modules)
    covariances, curvature = curvature_of(model, task, rows)
    assert curvature.layers.keys() == modules.keys()
    for layer, found in curvature.layers.items():
        x, d = inputs_and_slopes[layer]
        gathered = covariances.layers[layer]
        assert close(gathered.A, x.T @ x)
        assert close(gathered.S, d.T @ d)
        for vectors, matrix in ((found.basis.inputs, x.T @ x), (found.basis.outputs, d.T @ d)):
            assert close(vectors.T @ vectors, torch.eye(len(vectors), dtype=torch.float64))
            diagonal = vectors.T @ matrix @ vectors
            assert close(torch.diag(diagonal.diagonal()), diagonal)
        rotated = torch.einsum("op,boi,ij->bpj", found.basis.outputs, gradients[layer], found.basis.inputs)
        assert close(found.eigenvalues, rotated.square().mean(0))


def test_solves_are_those_of_the_dense_matrix():
    model, rows = build("many positions")
    curvature = curvature_of(model, Double(), rows)[1]
    V = {n: torch.randn(3, *c.eigenvalues.shape, dtype=torch.float64) for n, c in curvature.layers.items()}
    solved = curvature.solve(V, {"inner": 0.01, "head": 0.02})
    for (name, layer), damping in zip(curvature.layers.items(), (0.01, 0.02), strict=True):
        basis = torch.kron(layer.basis.outputs, layer.basis.inputs)
        dense = basis @ torch.diag(layer.eigenvalues.flatten() + damping) @ basis.T
        assert close(solved[name].flatten(1).T, torch.linalg.solve(dense, V[name].flatten(1).T))


def test_a_layer_without_gradients_solves_to_zero():
    model, rows = build("vectors")
    nn.init.zeros_(model[2].weight)  # no slope reaches the first layer
    curvature = curvature_of(model, Double(), rows)[1]
    assert (curvature.layers["0"].eigenvalues == 0).all()
    ones = {n: torch.ones(1, *c.eigenvalues.shape, dtype=torch.float64) for n, c in curvature.layers.items()}
    solved = curvature.solve(ones, curvature.dampings(None))
    assert (solved["0"] == 0).all()
    assert (solved["2"] != 0).any()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("vectors", [1, 40])
def test_inner_products_are_those_of_whole_gradients(name, vectors):
    model, rows = build(name)
    task = Double()
    gradients = exact_matrices(model, task, rows, task.modules(model))
    V = {n: torch.randn(vectors, *G.shape[1:], dtype=torch.float64) for n, G in gradients.items()}
    with at_rest(model, task, 7) as passes:
        products = passes.run(InnerProducts(V), rows, "products")
    assert close(products, sum(torch.einsum("boi,goi->bg", G, V[n]) for n, G in gradients.items()))


@pytest.mark.parametrize("name", MODELS)
def test_a_groups_gradient_is_the_mean_of_its_members(name):
    model, rows = build(name)
    task = Double()
    gradients = exact_matrices(model, task, rows, task.modules(model))
    member = np.zeros((3, 23))
    member[0, :4], member[2, 4:15] = 1 / 4, 1 / 11  # the second group and the last rows are empty
    with at_rest(model, task, 7) as passes:
        means = mean_gradients(passes, rows, member)
    for layer, G in gradients.items():
        assert close(means[layer], torch.einsum("gb,boi->goi", torch.as_tensor(member), G))


class Tokens(Task):
    """Next tokens of padded rows of different lengths."""

    def length(self, example: Example) -> int:
        return len(example.fields["ids"])

    def collate(self, examples: Sequence[Example]) -> Batch:
        ids = [torch.tensor(e.fields["ids"]) for e in examples]
        mask = [torch.ones_like(i) for i in ids]
        pad = nn.utils.rnn.pad_sequence
        return {"input_ids": pad(ids, batch_first=True), "attention_mask": pad(mask, batch_first=True)}

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        logits = model(**batch).logits[:, :-1]
        losses = F.cross_entropy(logits.mT, batch["input_ids"][:, 1:], reduction="none")
        return (losses * batch["attention_mask"][:, 1:]).sum(1)


def token_rows(n: int) -> Examples:
    rng = np.random.default_rng(0)
    return Examples.from_fields(
        [{"ids": rng.integers(1, 20, rng.integers(3, 12)).tolist()} for _ in range(n)]
    )


def test_padding_changes_nothing():
    model, rows = llama(20, width=8, layers=1).double(), token_rows(12)
    alone, together = (curvature_of(model, Tokens(), rows, size) for size in (1, 12))
    for layer, one in alone[0].layers.items():
        assert close(together[0].layers[layer].A, one.A)
        assert close(together[0].layers[layer].S, one.S)
    ones = {n: torch.ones(1, *c.eigenvalues.shape).double() for n, c in alone[1].layers.items()}
    a, b = (curvature.solve(ones, curvature.dampings(None)) for _, curvature in (alone, together))
    assert all(close(a[layer], b[layer], 1e-8) for layer in ones)


def flat_loss(model: nn.Module, task: Task, rows: Examples, names: Sequence[str]):
    """The mean loss as a function of the named weights in a row, and where it stands."""
    weights = {name: model.get_parameter(name).detach() for name in names}
    sizes = [w.numel() for w in weights.values()]

    def loss(theta: Tensor) -> Tensor:
        parts = (p.view_as(w) for p, w in zip(theta.split(sizes), weights.values(), strict=True))
        swapped = dict(zip(names, parts, strict=True))
        return task.loss(
            lambda x: torch.func.functional_call(model, swapped, (x,)),  # type: ignore[arg-type]
            task.collate(rows),
        ).mean()

    return loss, torch.cat([w.flatten() for w in weights.values()])


@pytest.mark.parametrize("name", MODELS)
def test_hessian_products_are_those_of_the_dense_hessian(name):
    model, rows = build(name)
    task = Double()
    modules = task.modules(model)
    loss, theta = flat_loss(model, task, rows, [f"{n}.weight" for n in modules])
    H = torch.func.hessian(loss)(theta)
    v = torch.randn(2, len(theta), dtype=torch.float64)

    def as_matrices(flat: Tensor) -> dict[str, Tensor]:
        parts = flat.split([m.weight.numel() for m in modules.values()], 1)
        shaped = {n: p.view(2, *m.weight.shape) for p, (n, m) in zip(parts, modules.items(), strict=True)}
        return {n: V.mT if isinstance(modules[n], Conv1D) else V.flatten(2) for n, V in shaped.items()}

    with at_rest(model, task, 7) as passes:
        products = hessian_products(passes, rows, as_matrices(v))
    for layer, expected in as_matrices(v @ H).items():
        assert close(products[layer], expected)


def test_hessian_products_reach_through_attention():
    model, rows, task = llama(20, width=8, layers=1).double(), token_rows(6), Tokens()
    modules = task.modules(model)
    V = {n: torch.randn_like(m.weight).detach() for n, m in modules.items()}
    with at_rest(model, task, 4) as passes:
        products = hessian_products(passes, rows, {n: v[None] for n, v in V.items()})
    model.config._attn_implementation = "eager"
    weights = [m.weight for m in modules.values()]
    slopes = torch.autograd.grad(task.loss(model, task.collate(rows)).sum() / 6, weights, create_graph=True)
    bends = torch.autograd.grad(sum((s * v).sum() for s, v in zip(slopes, V.values(), strict=True)), weights)
    for name, bend in zip(modules, bends, strict=True):
        assert close(products[name][0], bend, 1e-5)  # the norms' own arithmetic is in float32


def test_conjugate_gradients_solve_in_as_many_steps_as_there_are_eigenvalues():
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(30, 30, dtype=torch.float64)).Q
    A = basis @ torch.diag(torch.tensor([0.5, 1.0, 2.0, 5.0, 9.0]).double().repeat(6)) @ basis.T
    b = torch.cat([torch.randn(4, 30, dtype=torch.float64), torch.zeros(1, 30, dtype=torch.float64)])
    plain = conjugate_gradients(lambda v: v @ A, lambda v: v, b, 5)
    assert close(plain, torch.linalg.solve(A, b.T).T)
    longer = conjugate_gradients(lambda v: v @ A, lambda v: v, b, 50)  # nothing is done to what is solved
    assert close(longer, torch.linalg.solve(A, b.T).T)
    exact = conjugate_gradients(lambda v: v @ A, lambda v: torch.linalg.solve(A, v.T).T, b, 1)
    assert close(exact, torch.linalg.solve(A, b.T).T)


def test_conjugate_gradients_notice_a_matrix_that_is_not_positive():
    A = torch.diag(torch.tensor([1.0, 4.0, -1.0]).double())
    met, not_met = torch.tensor([[1.0, 1, 0.1]]).double(), torch.tensor([[1.0, 1, 0]]).double()
    assert conjugate_gradients(lambda v: v @ A, lambda v: v / 2, torch.cat([met, not_met]), 10) is None
    assert close(
        conjugate_gradients(lambda v: v @ A, lambda v: v / 2, not_met, 10),
        torch.tensor([[1.0, 0.25, 0]]).double(),
    )


def test_the_model_is_left_as_it_was():
    model, rows = build("vectors")
    model[0].requires_grad_(False)
    model.train()
    task = Double()
    with at_rest(model, task) as passes:
        assert passes.modules.keys() == {"2"}  # the other is frozen
        assert not model.training
        hessian_products(passes, rows, {"2": torch.ones(1, 5, 8, dtype=torch.float64)})
        mean_gradients(passes, rows, np.eye(23))
    assert model.training
    assert [p.requires_grad for p in model.parameters()] == [False, False, True, True]
    assert all(p.grad is None for p in model.parameters())


def test_a_task_without_matrices_is_refused():
    class Norm(Classify):
        def modules(self, model: nn.Module) -> dict[str, nn.Module]:
            return {"1": model[1]}

    model = nn.Sequential(nn.Linear(12, 5), nn.LayerNorm(5))
    with pytest.raises(InputError, match="Norm tracks no weight matrix"), at_rest(model, Norm()):
        pass
