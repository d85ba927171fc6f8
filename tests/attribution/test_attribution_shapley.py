"""In-run Shapley values against loops of autograd over single examples, and against the game itself."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attribution_cases import CLASSES, Classify, examples, llama, mlp
from torch import Tensor, nn
from torch.func import functional_call
from transformers import GPT2Config, GPT2LMHeadModel

from backcast.attribution import Recorder, Recording, attribute
from backcast.data import Example, Examples
from backcast.errors import InputError
from backcast.tasks import Batch, CausalLMTask, Task

WORDS = 11


class Words(CausalLMTask):
    """A language model's loss on token ids that are given."""

    def __init__(self) -> None:
        super().__init__(tokenizer=None, reduction="sum")

    def collate(self, examples: Sequence[Example]) -> Batch:
        ids = torch.tensor([e.fields["ids"] for e in examples])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


def words(n: int, seed: int) -> Examples:
    ids = torch.randint(1, WORDS, (n, 6), generator=torch.Generator().manual_seed(seed)).tolist()
    return Examples.from_fields([{"text": f"{seed}/{i}", "ids": ids[i]} for i in range(n)])


def gpt2() -> nn.Module:
    """With biases, transposed weights, and a table that is also the head; its positions are frozen."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=WORDS,
        n_positions=8,
        n_embd=8,
        n_layer=1,
        n_head=2,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=1,
        eos_token_id=1,
    )
    model = GPT2LMHeadModel(config)
    model.transformer.wpe.requires_grad_(False)
    return model


def image() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.GroupNorm(1, 3), nn.Tanh(), nn.Flatten(), nn.Linear(3 * 16, CLASSES)
    )


CASES: dict[str, Any] = {
    "mlp": (mlp, Classify(), examples(6, dtype=torch.float64), examples(3, seed=1, dtype=torch.float64)),
    "image": (
        image,
        Classify(),
        examples(6, (2, 4, 4), dtype=torch.float64),
        examples(3, (2, 4, 4), seed=1, dtype=torch.float64),
    ),
    "llama": (lambda: llama(WORDS), Words(), words(6, 0), words(3, 1)),
    "gpt2": (gpt2, Words(), words(6, 0), words(3, 1)),
}
GROUPS = ["a", "b", "a"]


def gradient(model: nn.Module, task: Task, rows: Examples, graph: bool = False) -> Tensor:
    """(N,) of the mean loss, flat."""
    loss = task.loss(model, task.collate(rows)).mean()
    parameters = [p for p in model.parameters() if p.requires_grad]
    parts = torch.autograd.grad(loss, parameters, create_graph=graph, materialize_grads=True)
    return torch.cat([g.flatten() for g in parts])


def expected(
    model: nn.Module,
    task: Task,
    batch: Examples,
    targets: Sequence[Examples],
    scale: float,
    gain: Tensor,
    clip: float,
) -> np.ndarray:
    """(B, 2, g) by the formula, one example and one backward at a time, with whole gradients and Hessian products."""
    moves = [-gain * clip * scale * gradient(model, task, batch[[i]]) for i in range(len(batch))]
    total = torch.stack(moves).sum(0)
    parameters = [p for p in model.parameters() if p.requires_grad]
    terms = []
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        for target in targets:
            slope = gradient(model, task, target, graph=True)
            curved = torch.autograd.grad((slope * total).sum(), parameters, materialize_grads=True)
            curved = torch.cat([c.flatten() for c in curved])
            terms.append([[-(move @ slope).item(), -0.5 * (move @ curved).item()] for move in moves])
    return np.array(terms).transpose(1, 2, 0)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("most", [None, 0.5])
def test_both_orders_are_the_formula_with_whole_gradients(
    case: str, most: float | None, tmp_path: Path
) -> None:
    make, task, train, target = CASES[case]
    model = make().double()
    rates = 0.3, 0.05
    first, *others = model.parameters()
    optimizer = torch.optim.SGD([{"params": [first], "lr": rates[0]}, {"params": others, "lr": rates[1]}])
    scale = 1 / 5
    whole = sum(gradient(model, task, train[[i]]) for i in range(5)) * scale
    clip = 1.0 if most is None else min(1.0, most / (whole.norm().item() + 1e-6))
    gain = torch.full_like(whole, rates[1])
    gain[: first.numel()] = rates[0]
    wanted = expected(model, task, train[:5], [target[[0, 2]], target[[1]]], scale, gain, clip)
    with Recorder(
        model,
        optimizer,
        train,
        tmp_path / "run",
        task=task,
        max_grad_norm=most,
        target=target,
        groups=GROUPS,
        order=2,
    ) as recorder:
        for rows in ([0, 1, 2], [3, 4]):
            recorder.batch(rows, scale)
            (task.loss(model, task.collate(train[rows])).sum() * scale).backward()
        if most is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), most)
        optimizer.step()
    ((step, rows, values),) = Recording.open(tmp_path / "run").contributions()
    assert (step, rows.tolist()) == (0, [0, 1, 2, 3, 4])
    precision = (
        1e-9 if isinstance(task, Classify) else 1e-5
    )  # language models' norms and losses are in float32
    np.testing.assert_allclose(values, wanted, rtol=precision, atol=precision * np.abs(wanted).max())


def test_what_the_optimizer_does_not_move_counts_for_nothing(tmp_path: Path) -> None:
    """A frozen bias, and one that has gradients but is in no group."""
    task, train, target = (
        Classify(),
        examples(4, dtype=torch.float64),
        examples(2, seed=1, dtype=torch.float64),
    )
    model = mlp().double()
    model[0].bias.requires_grad_(False)
    optimizer = torch.optim.SGD([model[0].weight, model[2].weight], lr=0.1)
    moved = model[0].weight.numel() + model[2].weight.numel()
    gain = torch.tensor([0.1] * moved + [0.0] * CLASSES, dtype=torch.float64)
    wanted = expected(model, task, train, [target[[0]], target[[1]]], 1 / 4, gain, 1.0)
    with Recorder(model, optimizer, train, tmp_path, task=task, target=target, order=2) as recorder:
        recorder.batch(range(4))
        task.objective(model, task.collate(train)).backward()
        optimizer.step()
    ((_, _, values),) = Recording.open(tmp_path).contributions()
    np.testing.assert_allclose(values, wanted, rtol=1e-9)


def after(model: nn.Module, task: Task, batch: Examples, target: Examples, rate: float) -> float:
    """The target's loss after a step on the batch's sum over four."""
    weights = dict(model.named_parameters())
    moved = weights
    if len(batch):
        gradients = torch.autograd.grad(
            task.loss(model, task.collate(batch)).sum() / 4, list(weights.values())
        )
        moved = {n: p - rate * g for (n, p), g in zip(weights.items(), gradients, strict=True)}
    batch_ = task.collate(target)
    logits = functional_call(model, moved, (batch_["x"],))
    return nn.functional.cross_entropy(logits, batch_["y"]).item()


def true_shapley(model: nn.Module, task: Task, batch: Examples, target: Examples, rate: float) -> np.ndarray:
    """(4,) by their definition: the mean over orders of joining of how much the loss falls as one joins."""
    n, values = len(batch), []
    for i in range(n):
        others = [j for j in range(n) if j != i]
        value = 0.0
        for size in range(n):
            for subset in combinations(others, size):
                fall = after(model, task, batch[list(subset)], target, rate)
                fall -= after(model, task, batch[[*subset, i]], target, rate)
                value += fall / (n * comb(n - 1, size))
        values.append(value)
    return np.array(values)


def test_the_error_against_all_subsets_shrinks_as_the_taylor_order(tmp_path: Path) -> None:
    task, batch = Classify(), examples(4, dtype=torch.float64)
    target = examples(5, seed=1, dtype=torch.float64)
    errors: dict[int, list[float]] = {1: [], 2: []}
    for rate in (0.4, 0.2, 0.1):
        model = mlp().double()
        wanted = true_shapley(model, task, batch, target, rate)
        optimizer = torch.optim.SGD(model.parameters(), lr=rate)
        out = tmp_path / f"{rate}"
        with Recorder(
            model, optimizer, batch, out, task=task, target=target, groups=["all"] * 5, order=2
        ) as recorder:
            recorder.batch(range(4))
            task.objective(model, task.collate(batch)).backward()
            optimizer.step()
        for order, found in errors.items():
            run = Recording.open(out)
            scores = attribute(batch, target, "shapley", run=run, groups=["all"] * 5, order=order).values[
                :, 0
            ]
            found.append(np.abs(scores - wanted).max())
    for order, found in errors.items():
        fall = np.array(found[:-1]) / np.array(found[1:])
        np.testing.assert_allclose(fall, 2 ** (order + 1), rtol=0.25)


def test_the_values_of_a_step_add_up_to_the_fall_of_the_loss(tmp_path: Path) -> None:
    """Over a run of several epochs, and with the examples' scores in place."""
    task, train = Classify(), examples(8, dtype=torch.float64)
    target = examples(5, seed=1, dtype=torch.float64)
    model = mlp().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    before = task.evaluate(model, target)
    with Recorder(
        model, optimizer, train, tmp_path, task=task, target=target, groups=["all"] * 5, order=2
    ) as recorder:
        for step in range(12):
            rows = [(3 * step + i) % 8 for i in range(3)]
            recorder.batch(rows)
            task.objective(model, task.collate(train[rows])).backward()
            optimizer.step()
            optimizer.zero_grad()
    scores = attribute(train, target, "shapley", run=Recording.open(tmp_path), groups=["all"] * 5, order=2)
    assert scores.values.shape == (8, 1)
    assert scores.values.sum() == pytest.approx(before - task.evaluate(model, target), rel=1e-3)


def test_adam_uses_the_second_moments_before_the_step(tmp_path: Path) -> None:
    task, train, target = (
        Classify(),
        examples(4, dtype=torch.float64),
        examples(2, seed=1, dtype=torch.float64),
    )
    model = mlp().double()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    with Recorder(model, optimizer, train, tmp_path, task=task, target=target, groups=["a", "b"]) as recorder:
        for step in range(2):
            if step:
                moments = torch.cat([optimizer.state[p]["exp_avg_sq"].flatten() for p in model.parameters()])
                gain = 0.1 / ((moments / (1 - 0.999)).sqrt() + 1e-8)
                wanted = expected(model, task, train, [target[[0]], target[[1]]], 1 / 4, gain, 1.0)[:, :1]
            recorder.batch(range(4))
            task.objective(model, task.collate(train)).backward()
            optimizer.step()
            optimizer.zero_grad()
    (_, _, none), (_, _, values) = Recording.open(tmp_path).contributions()
    assert not none.any()
    np.testing.assert_allclose(values, wanted, rtol=1e-9)


class Bare(nn.Module):
    """A parameter that is no module's."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(12))
        self.layer = nn.LazyLinear(CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x + self.shift)


def test_what_would_not_be_exact_is_refused(tmp_path: Path) -> None:
    task, train = Classify(), examples(4)
    bare = Bare()
    bare(task.collate(train)["x"])
    with pytest.raises(InputError, match=r"^shift: .*freeze it"):
        Recorder(bare, torch.optim.SGD(bare.parameters()), train, tmp_path / "a", task=task, target=train)
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(model, optimizer, train, tmp_path / "b", task=task, target=train) as recorder:
        recorder.batch(range(4))
        task.objective(model, task.collate(train)).backward()
        optimizer.param_groups[0]["lr"] = 0.2
        with pytest.raises(InputError, match="learning rate changed"):
            optimizer.step()


def test_values_of_other_groups_of_the_same_names_are_refused(tmp_path: Path) -> None:
    task, train, target = Classify(), examples(4), examples(3, seed=1)
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    groups = ["a", "b", "a"]
    with Recorder(model, optimizer, train, tmp_path, task=task, target=target, groups=groups) as recorder:
        recorder.batch(range(4))
        task.objective(model, task.collate(train)).backward()
        optimizer.step()
    run = Recording.open(tmp_path)
    assert attribute(train, target, "shapley", run=run, groups=groups).targets == ("a", "b")
    with pytest.raises(InputError, match="other targets"):
        attribute(train, target, "shapley", run=run, groups=["a", "b", "b"])


def test_values_for_others_are_refused(tmp_path: Path) -> None:
    task, train, target = Classify(), examples(4), examples(2, seed=1)
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(model, optimizer, train, tmp_path, task=task, target=target) as recorder:
        recorder.batch(range(4))
        task.objective(model, task.collate(train)).backward()
        optimizer.step()
    run = Recording.open(tmp_path)
    assert attribute(train, target, "shapley", run=run).values.shape == (4, 2)
    with pytest.raises(InputError, match="of order 0 do not exist; choose 1 or 2"):
        attribute(train, target, "shapley", run=run, order=0)
    with pytest.raises(InputError, match="of order 2"):
        attribute(train, target, "shapley", run=run, order=2)
    with pytest.raises(InputError, match="other targets"):
        attribute(train, target, "shapley", run=run, groups=["a", "a"])
    with pytest.raises(InputError, match="other examples"):
        attribute(train[:3], target, "shapley", run=run)
