"""Replay against retraining: the recorded run's end, finite differences through it, and the memory it takes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from attribution_cases import Classify, examples, mlp
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from backcast.attribution import attribute
from backcast.attribution.recording import OptimizerSpec, Recording, Step
from backcast.attribution.replay import Trajectory
from backcast.attribution.replay.schedule import backwards
from backcast.data import Example, Examples
from backcast.errors import InputError
from backcast.tasks import Batch, Task
from backcast.tasks.hashes import weights_hash
from backcast.tasks.head import token_losses

ADAM = {"betas": (0.9, 0.99), "eps": 1e-3}
OPTIMIZERS: list[tuple[str, dict[str, Any]]] = [
    ("sgd", {"momentum": 0.0, "dampening": 0.0, "nesterov": False}),
    ("sgd", {"momentum": 0.9, "dampening": 0.2, "nesterov": False}),
    ("sgd", {"momentum": 0.9, "dampening": 0.0, "nesterov": True}),
    ("adam", ADAM),
    ("adamw", ADAM),
]
MAKE: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}


class Double(Classify):
    def collate(self, examples: Sequence[Example]) -> Batch:
        batch = super().collate(examples)
        return {**batch, "x": batch["x"].double()}


class Tokens(Task):
    """Next-token losses of rows of token ids."""

    def collate(self, examples: Sequence[Example]) -> Batch:
        return {"ids": torch.stack([e.fields["ids"] for e in examples])}

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        ids = batch["ids"]
        labels = F.pad(ids[:, 1:], (0, 1), value=-100)
        return token_losses(model, {"input_ids": ids, "use_cache": False}, labels).sum(1)


def write(
    folder: Path, model: nn.Module, rows: Examples, optimizer: OptimizerSpec, steps: Sequence[Step]
) -> Recording:
    folder.mkdir()
    (folder / "recording.json").write_text(json.dumps(Recording(folder, rows.index, optimizer).to_json()))
    named = (*model.named_parameters(), *model.named_buffers())
    save_file(
        {f"weights/{n}": v.detach().clone().contiguous() for n, v in named}, folder / "start.safetensors"
    )
    (folder / "steps.jsonl").write_text("".join(json.dumps(asdict(step)) + "\n" for step in steps))
    return Recording.open(folder)


def groups_of(model: nn.Module, settings: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    """Two groups, of which one decays."""
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    middle = len(names) // 2
    return (
        {"names": names[:middle], "weight_decay": 0.1, **settings},
        {"names": names[middle:], "weight_decay": 0.0, **settings},
    )


def steps_of(n: int, count: int, sizes: Sequence[int]) -> list[Step]:
    """Steps of micro-batches of the given sizes, the objective their mean, at falling rates."""
    generator = torch.Generator().manual_seed(0)
    return [
        Step(
            tuple(tuple(torch.randperm(n, generator=generator)[:size].tolist()) for size in sizes),
            tuple(1 / sum(sizes) for _ in sizes),
            (0.05 / (t + 1), 0.03),
            t,
        )
        for t in range(count)
    ]


def trained_by_torch(
    model: nn.Module, task: Task, rows: Examples, recording: Recording, weights: Tensor | None = None
) -> nn.Module:
    """The recorded run as anybody would write it, with torch's own optimizer; trains the model itself."""
    weights = torch.ones(len(rows), dtype=torch.float64) if weights is None else weights
    spec, own = recording.optimizer, dict(model.named_parameters())
    groups = [
        {**{k: v for k, v in group.items() if k != "names"}, "params": [own[name] for name in group["names"]]}
        for group in spec.groups
    ]
    optimizer = MAKE[spec.kind](groups, lr=1.0)
    model.train()
    for step in recording.steps:
        for group, rate in zip(optimizer.param_groups, step.rates, strict=True):
            group["lr"] = rate
        optimizer.zero_grad()
        torch.manual_seed(step.seed)
        for batch, scale in zip(step.batches, step.scales, strict=True):
            losses = task.training_losses(model, task.collate(rows[list(batch)]))
            (scale * (weights[list(batch)].to(losses) * losses).sum()).backward()
        if spec.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(own.values(), spec.max_grad_norm)
        optimizer.step()
    return model


def differences(
    make: Callable[[], nn.Module],
    task: Task,
    rows: Examples,
    wanted: Examples,
    recording: Recording,
) -> np.ndarray:
    """(n, m) central differences of the targets' losses by each row's weight, through torch's own training."""
    step, out = 1e-5, np.zeros((len(rows), len(wanted)))
    for row in range(len(rows)):
        for sign in (1, -1):
            weights = torch.ones(len(rows), dtype=torch.float64)
            weights[row] += sign * step
            model = trained_by_torch(make(), task, rows, recording, weights).eval()
            with torch.no_grad():
                out[row] += sign * task.loss(model, task.collate(wanted)).numpy() / (2 * step)
    return out


def assert_is_the_derivative(
    make: Callable[[], nn.Module],
    task: Task,
    rows: Examples,
    wanted: Examples,
    recording: Recording,
) -> None:
    model = trained_by_torch(make(), task, rows, recording)
    scores = attribute(rows, wanted, "replay", model=model, task=task, run=recording)
    expected = -differences(make, task, rows, wanted, recording)
    np.testing.assert_allclose(scores.values, expected, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("most", [None, 0.3])
@pytest.mark.parametrize(("kind", "settings"), OPTIMIZERS)
def test_scores_are_the_derivative_of_the_targets_loss_through_training(kind, settings, most, tmp_path):
    rows, wanted = examples(10, dtype=torch.float64), examples(3, seed=3, dtype=torch.float64)
    make = lambda: mlp().double()  # noqa: E731
    spec = OptimizerSpec(kind, groups_of(make(), settings), most)
    recording = write(tmp_path / "run", make(), rows, spec, steps_of(10, 7, [4, 3]))
    assert_is_the_derivative(make, Double(), rows, wanted, recording)


def test_dropout_is_replayed(tmp_path):
    rows, wanted = examples(8, dtype=torch.float64), examples(2, seed=3, dtype=torch.float64)

    def make() -> nn.Module:
        layers = list(mlp().double())
        return nn.Sequential(*layers[:2], nn.Dropout(0.5), *layers[2:])

    spec = OptimizerSpec("adamw", groups_of(make(), ADAM))
    recording = write(tmp_path / "run", make(), rows, spec, steps_of(8, 5, [4]))
    assert_is_the_derivative(make, Double(), rows, wanted, recording)


def test_through_attention_norms_and_a_frozen_head(tmp_path):
    """Of which fused attention and the head's fused loss have no second derivative."""
    torch.manual_seed(0)
    rows, wanted = (
        Examples.from_fields([{"text": f"{k}/{i}", "ids": torch.randint(1, 20, (6,))} for i in range(n)])
        for k, n in enumerate((5, 2))
    )

    def make() -> nn.Module:
        torch.manual_seed(0)
        config = GPT2Config(
            vocab_size=20, n_positions=8, n_embd=8, n_layer=2, n_head=2, tie_word_embeddings=False
        )
        model = GPT2LMHeadModel(config).double()
        model.get_output_embeddings().requires_grad_(False)
        return model

    spec = OptimizerSpec("adamw", groups_of(make(), ADAM))
    recording = write(tmp_path / "run", make(), rows, spec, steps_of(5, 3, [3]))
    assert_is_the_derivative(make, Tokens(), rows, wanted, recording)


def test_a_groups_score_is_its_mean_and_the_model_is_left_as_it_was(tmp_path):
    rows, wanted, task = examples(10), examples(3, seed=3), Classify()
    spec = OptimizerSpec("sgd", groups_of(mlp(), OPTIMIZERS[1][1]))
    recording = write(tmp_path / "run", mlp(), rows, spec, steps_of(10, 6, [4]))
    model = trained_by_torch(mlp(), task, rows, recording).eval()
    model[0].weight.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    options = {"model": model, "task": task, "run": recording}
    random = torch.get_rng_state()
    single = attribute(rows, wanted, "replay", **options).values
    grouped = attribute(rows, wanted, "replay", groups=["a", "b", "a"], **options)
    assert grouped.targets == ("a", "b")
    np.testing.assert_allclose(
        grouped.values, np.stack([single[:, [0, 2]].mean(1), single[:, 1]], 1), rtol=1e-4, atol=1e-7
    )
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.training
    assert torch.equal(torch.get_rng_state(), random)
    assert [p.requires_grad for p in model.parameters()] == [False, True, True, True]


@pytest.mark.parametrize(("kind", "settings"), OPTIMIZERS)
def test_a_run_with_some_rows_left_out_is_training_without_them(kind, settings, tmp_path):
    rows, task = examples(10, dtype=torch.float64), Double()
    spec = OptimizerSpec(kind, groups_of(mlp(), settings), 0.5)
    recording = write(tmp_path / "run", mlp().double(), rows, spec, steps_of(10, 8, [4, 2]))
    weights = torch.ones(10, dtype=torch.float64)
    weights[[1, 5, 6]] = 0
    model = mlp().double()
    trajectory = Trajectory(model, task, rows, recording)
    with trajectory.borrowed():
        end = trajectory.run(weights)
    expected = trained_by_torch(mlp().double(), task, rows, recording, weights)
    torch.testing.assert_close(
        end.theta, nn.utils.parameters_to_vector(expected.parameters()), rtol=1e-10, atol=1e-12
    )


def test_an_optimizer_that_has_run_before_goes_on(tmp_path):
    """With dampening, which spares an optimizer's first step alone."""
    rows, task = examples(10, dtype=torch.float64), Double()
    settings = {"momentum": 0.9, "dampening": 0.5, "nesterov": False}
    recording = write(
        tmp_path / "run",
        mlp().double(),
        rows,
        OptimizerSpec("sgd", groups_of(mlp(), settings)),
        steps_of(10, 6, [4]),
    )
    model = mlp().double()
    state, optimizer = (
        recording.start(),
        torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9, dampening=0.5),
    )
    for _ in range(3):
        optimizer.zero_grad()
        task.objective(model, task.collate(rows)).backward()
        optimizer.step()
    for name, p in model.named_parameters():
        state[f"weights/{name}"] = p.detach().clone()
        state[f"optimizer/momentum_buffer/{name}"] = optimizer.state[p]["momentum_buffer"].clone()
    save_file(state, recording.path / "start.safetensors")
    trajectory = Trajectory(mlp().double(), task, rows, recording)
    with trajectory.borrowed():
        end = trajectory.run()
    own = dict(model.named_parameters())
    optimizer.param_groups.clear()
    for group in recording.optimizer.groups:
        optimizer.add_param_group(
            {"params": [own[n] for n in group["names"]], "weight_decay": group["weight_decay"]}
        )
    for step in recording.steps:
        for group, rate in zip(optimizer.param_groups, step.rates, strict=True):
            group["lr"] = rate
        optimizer.zero_grad()
        task.objective(model, task.collate(rows[list(step.batches[0])])).backward()
        optimizer.step()
    expected = nn.utils.parameters_to_vector(model.parameters())
    torch.testing.assert_close(end.theta, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 7, 40, 100])
@pytest.mark.parametrize("kept", [1, 2, 3, 8, 200])
def test_going_backwards_keeps_few_states_and_runs_no_step_too_often(steps, kept):
    """Against the bound of the binomial schedule: r runs of a step where C(s + r, s) ≥ steps."""
    runs, alive = [0] * steps, []

    class Counted(int):
        pass

    def advance(state: Counted, t: int) -> Counted:
        assert state == t
        runs[t] += 1
        return Counted(t + 1)

    order = []
    generator = backwards(Counted(0), steps, kept, advance)
    for t, state in generator:
        assert state == t
        order.append(t)
        alive.append(len(generator.gi_frame.f_locals["stack"]))
    assert order == list(range(steps))[::-1]
    assert max(alive) <= kept
    most = next(r for r in range(steps + 1) if comb(kept + r, kept) >= steps)
    assert max(runs) <= most


def test_thousands_of_steps_in_the_memory_of_a_dozen_states():
    """log₂ of the steps' number of states, and less than half of log₂ runs of a step."""
    runs = [0] * 4096

    def advance(state: int, t: int) -> int:
        runs[t] += 1
        return state + 1

    assert sum(1 for _ in backwards(0, 4096, 13, advance)) == 4096
    assert sum(runs) / 4096 < 5


def test_another_model_task_or_data_is_refused(tmp_path):
    rows, wanted = examples(10), examples(3, seed=3)
    spec = OptimizerSpec("sgd", groups_of(mlp(), OPTIMIZERS[0][1]))
    recording = write(tmp_path / "run", mlp(), rows, spec, steps_of(10, 6, [4]))
    model = trained_by_torch(mlp(), Classify(), rows, recording)
    options = {"task": Classify(), "run": recording}
    with pytest.raises(InputError, match=r"run again it ends \d+% of its way from where it ended"):
        attribute(rows, wanted, "replay", model=mlp(seed=1), **options)
    ended = replace(recording, end=weights_hash(model))
    attribute(rows, wanted, "replay", model=model, task=Classify(), run=ended)
    with pytest.raises(InputError, match="the model given is not the one that the run ended with"):
        attribute(rows, wanted, "replay", model=mlp(seed=1), task=Classify(), run=ended)
    other = replace(recording, origin={"task": "Classify", "settings": {"reduction": "sum"}})
    with pytest.raises(InputError, match=r"trained by Classify {'reduction': 'sum'}, not by Classify {}"):
        attribute(rows, wanted, "replay", model=model, task=Classify(), run=other)
    with pytest.raises(InputError, match="recorded on 10 other examples than the 9 given"):
        attribute(rows[:9], wanted, "replay", model=model, **options)
    with pytest.raises(InputError, match=r"ran with another 0\.weight than this Sequential's"):
        attribute(rows, wanted, "replay", model=mlp(hidden=8), **options)
    with pytest.raises(InputError, match=r"ran with another 3\.weight"):
        attribute(rows, wanted, "replay", model=nn.Sequential(*mlp(), nn.Linear(5, 5)), **options)
    with pytest.raises(InputError, match="'replay' goes back through a training run: give run="):
        attribute(rows, wanted, "replay", model=model, task=Classify())
    odd = write(tmp_path / "odd", mlp(), rows, OptimizerSpec("lion", spec.groups), steps_of(10, 1, [4]))
    with pytest.raises(InputError, match="optimizer 'lion' cannot be replayed; train with SGD, Adam or"):
        attribute(rows, wanted, "replay", model=model, task=Classify(), run=odd)
