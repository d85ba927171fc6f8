"""What a recorder writes of a plain loop: run again it ends at the same weights; its sketches are the examples' own."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attribution_cases import INPUTS, Classify, contents, exact_gradients, examples, mlp, sketch_of
from torch import Tensor, nn

import backcast
from backcast.attribution import Recorder, Recording, attribute
from backcast.attribution.recording import series
from backcast.attribution.replay import Trajectory
from backcast.errors import InputError
from backcast.kernels import SketchSpec
from backcast.tasks.hashes import weights_hash

ROWS = examples(12)
TASK = Classify()
OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "sgd": lambda m: torch.optim.SGD(m.parameters(), lr=0.1),
    "momentum": lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01),
    "nesterov": lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda m: torch.optim.Adam(m.parameters(), lr=0.01, weight_decay=0.01),
    "adamw": lambda m: torch.optim.AdamW(
        [
            {"params": [p for p in m.parameters() if p.dim() > 1], "weight_decay": 0.1},
            {"params": [p for p in m.parameters() if p.dim() == 1], "weight_decay": 0.0, "lr": 0.02},
        ],
        lr=0.01,
    ),
}


def dropping() -> nn.Module:
    body, tanh, head = mlp().children()
    return nn.Sequential(body, tanh, nn.Dropout(0.3), head)


def batches(steps: int, first: int = 0) -> Iterator[list[list[int]]]:
    """Two micro-batches a step, of different sizes."""
    for step in range(first, steps):
        rows = [(5 * step + i) % len(ROWS) for i in range(5)]
        yield [rows[:3], rows[3:]]


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    recorder: Recorder,
    steps: int,
    most: float | None = None,
) -> None:
    for parts in batches(steps, recorder.step):
        for group in optimizer.param_groups:
            group["lr"] *= 0.97
        for rows in parts:
            recorder.batch(rows, 1 / 5)
            (TASK.loss(model, TASK.collate(ROWS[rows])).sum() / 5).backward()
        if most is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), most)
        optimizer.step()
        optimizer.zero_grad()


def flat(model: nn.Module, path: Path) -> Tensor:
    own = dict(model.named_parameters())
    groups = Recording.open(path).optimizer.groups
    return torch.cat([own[name].detach().flatten() for group in groups for name in group["names"]])


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("most", [None, 0.3])
def test_a_recorded_loop_run_again_ends_at_the_same_weights(
    kind: str, most: float | None, tmp_path: Path
) -> None:
    """With dropout, and an optimizer that has taken steps before the recording begins."""
    model = dropping()
    optimizer = OPTIMIZERS[kind](model)
    for _ in range(2):
        TASK.objective(model, TASK.collate(ROWS)).backward()
        optimizer.step()
        optimizer.zero_grad()
    with Recorder(model, optimizer, ROWS, tmp_path, task=TASK, max_grad_norm=most) as recorder:
        train(model, optimizer, recorder, 8, most)
    recording = Recording.open(tmp_path)
    assert recording.end == weights_hash(model)
    assert [step.batches for step in recording.steps] == [
        tuple(tuple(rows) for rows in parts) for parts in batches(8)
    ]
    trajectory = Trajectory(dropping(), TASK, ROWS, recording)
    with trajectory.borrowed():
        ended = trajectory.run().theta.detach()
    torch.testing.assert_close(ended, flat(model, tmp_path), rtol=0, atol=2e-6)


def test_a_compiled_models_run_is_recorded_and_replayed_as_the_models_own(tmp_path: Path) -> None:
    wanted, scores = examples(3, seed=1), []
    for name in ("plain", "compiled"):
        model = mlp()
        called = torch.compile(model, backend="eager") if name == "compiled" else model
        optimizer = OPTIMIZERS["momentum"](called)
        with Recorder(called, optimizer, ROWS, tmp_path / name, task=TASK) as recorder:
            train(called, optimizer, recorder, 4)
        run = Recording.open(tmp_path / name)
        scores.append(attribute(ROWS, wanted, "replay", model=called, task=TASK, run=run))
    np.testing.assert_allclose(scores[1].values, scores[0].values, rtol=1e-5, atol=1e-7)
    assert scores[0].origin == scores[1].origin
    assert contents(tmp_path / "plain") == contents(tmp_path / "compiled")


def test_a_loop_that_goes_on_writes_the_folder_of_an_unbroken_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps, sketches in shards of 12 uses, seeds and the end; the steps beyond the checkpoint are done again."""
    monkeypatch.setattr(series, "SHARD_ROWS", 12)

    def recorder(name: str, model: nn.Module, optimizer: torch.optim.Optimizer, step: int = 0) -> Recorder:
        spec = SketchSpec("sjlt", 32)
        return Recorder(model, optimizer, ROWS, tmp_path / name, task=TASK, spec=spec, step=step)

    model = dropping()
    optimizer = OPTIMIZERS["adamw"](model)
    with recorder("whole", model, optimizer) as one:
        train(model, optimizer, one, 11)
    model = dropping()
    optimizer = OPTIMIZERS["adamw"](model)
    broken = recorder("broken", model, optimizer).__enter__()
    train(model, optimizer, broken, 5)
    broken.flush()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "checkpoint")
    train(model, optimizer, broken, 8)
    broken.__exit__(ConnectionError, None, None)
    assert Recording.open(tmp_path / "broken").end is None
    checkpoint = torch.load(tmp_path / "checkpoint", weights_only=True)
    model = dropping()
    optimizer = OPTIMIZERS["adamw"](model)
    model.load_state_dict(checkpoint["model"])
    optimizer.load_state_dict(checkpoint["optimizer"])
    with recorder("broken", model, optimizer, step=5) as one:
        train(model, optimizer, one, 11)
    whole, broken = (Recording.open(tmp_path / name) for name in ("whole", "broken"))
    assert whole.end == broken.end
    assert whole.steps == broken.steps
    files = [contents(tmp_path / name) for name in ("whole", "broken")]
    assert files[0]["start.safetensors"] == files[1]["start.safetensors"]
    for (a, rows, sketches, rates), (b, *others) in zip(whole.sketches(), broken.sketches(), strict=True):
        assert a == b
        for x, y in zip((rows, sketches, np.array(rates)), others, strict=True):
            np.testing.assert_array_equal(x, y)


def test_sketches_are_those_of_single_examples_at_the_weights_of_the_step(tmp_path: Path) -> None:
    """Every parameter of the tracked layers but biases; relative error below 1e-10, in float64."""
    rows = examples(12, dtype=torch.float64)
    model, spec = mlp().double(), SketchSpec("kron", 64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    wanted = []
    with Recorder(model, optimizer, rows, tmp_path, task=TASK, spec=spec) as recorder:
        for parts in batches(3):
            weights = {name: getattr(model, name).weight for name in ("0", "2")}
            wanted.append(
                sketch_of(exact_gradients(model, TASK, rows[[*parts[0], *parts[1]]], weights), spec)
            )
            for part in parts:
                recorder.batch(part, 0.2)
                (TASK.loss(model, TASK.collate(rows[part])).sum() * 0.2).backward()
            with torch.no_grad():
                TASK.loss(model, TASK.collate(rows))  # an evaluation between leaves no trace
            optimizer.step()
            optimizer.zero_grad()
    found = list(Recording.open(tmp_path).sketches())
    for (step, used, sketches, rates), parts, exact in zip(found, batches(3), wanted, strict=True):
        assert (used.tolist(), rates) == ([*parts[0], *parts[1]], (0.1,))
        np.testing.assert_allclose(
            sketches, exact.numpy(), atol=1e-10 * exact.abs().max().item(), err_msg=str(step)
        )
    assert Recording.open(tmp_path).layers == {"0": [16, INPUTS], "2": [5, 16]}


def test_training_is_the_same_with_and_without_watches(tmp_path: Path) -> None:
    ends = []
    for watch in ({}, {"spec": SketchSpec("kron", 64)}, {"target": examples(3, seed=1), "order": 2}):
        torch.manual_seed(7)
        model = dropping()
        optimizer = OPTIMIZERS["adamw"](model)
        torch.manual_seed(8)
        out = tmp_path / f"{len(ends)}"
        with Recorder(model, optimizer, ROWS, out, task=TASK, max_grad_norm=0.3, **watch) as recorder:
            train(model, optimizer, recorder, 4, 0.3)
        ends.append(Recording.open(out).end)
    assert len(set(ends)) == 1


def one_step(out: Path, **options: Any) -> Recorder:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(model, optimizer, ROWS, out, task=TASK, **options) as recorder:
        train(model, optimizer, recorder, recorder.step + 1)
    return recorder


def test_a_folder_is_never_mixed(tmp_path: Path) -> None:
    one_step(tmp_path / "a")
    with pytest.raises(InputError, match="a finished run"):
        one_step(tmp_path / "a")
    with pytest.raises(InputError, match="holds 1 steps, and the run goes on after 3"):
        one_step(tmp_path / "a", step=3)
    with pytest.raises(InputError, match="another model, task, optimizer or recorder"):
        one_step(tmp_path / "a", step=1, max_grad_norm=1.0)
    one_step(tmp_path / "a", step=1)
    assert len(Recording.open(tmp_path / "a").steps) == 2
    (tmp_path / "b").mkdir()
    (tmp_path / "b/notes").touch()
    with pytest.raises(InputError, match="not a recorded run, and not empty"):
        one_step(tmp_path / "b")


def test_sketches_that_were_not_flushed_are_missed(tmp_path: Path) -> None:
    model = mlp()

    def recorder(step: int) -> tuple[torch.optim.Optimizer, Recorder]:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        spec = SketchSpec("sjlt", 8)
        return optimizer, Recorder(
            model, optimizer, ROWS, tmp_path, task=TASK, spec=spec, step=step
        ).__enter__()

    optimizer, killed = recorder(0)
    train(model, optimizer, killed, 3)
    with pytest.raises(InputError, match="holds 0 steps, and the run goes on after 2"):
        recorder(2)
    killed.flush()
    optimizer, going = recorder(2)
    train(model, optimizer, going, 4)
    going.flush()
    assert [step for step, *_ in Recording.open(tmp_path).sketches()] == [0, 1, 2, 3]


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    one_step(tmp_path, spec=SketchSpec("sjlt", 8))
    shard = tmp_path / "sketches/step-00000000.safetensors"
    damaged = bytearray(shard.read_bytes())
    damaged[-1] ^= 1
    shard.write_bytes(damaged)
    with pytest.raises(InputError, match=r"step-00000000\.safetensors: damaged"):
        list(Recording.open(tmp_path).sketches())
    one_step(tmp_path / "none")
    with pytest.raises(InputError, match="holds no sketches"):
        list(Recording.open(tmp_path / "none").sketches())


class Normed(nn.Module):
    """A model with a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.BatchNorm1d(INPUTS), nn.Linear(INPUTS, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(x))


def test_bad_input_is_refused_in_one_line(tmp_path: Path) -> None:
    model = mlp()
    spec = SketchSpec("sjlt", 8)

    def recorder(optimizer: torch.optim.Optimizer, model: nn.Module = model, **options: Any) -> Recorder:
        return Recorder(model, optimizer, ROWS, tmp_path / "run", task=TASK, **options)

    with pytest.raises(InputError, match=r"RMSprop cannot be recorded; train with"):
        recorder(torch.optim.RMSprop(model.parameters()))
    with pytest.raises(InputError, match=r"Adam with amsgrad cannot be recorded"):
        recorder(torch.optim.Adam(model.parameters(), amsgrad=True))
    with pytest.raises(InputError, match="none of this Sequential's"):
        recorder(torch.optim.SGD(mlp().parameters()))
    with pytest.raises(InputError, match="of order 3 do not exist; choose 1 or 2"):
        recorder(torch.optim.SGD(model.parameters()), target=ROWS, order=3)
    with pytest.raises(InputError, match="2 group names for 12 targets"):
        recorder(torch.optim.SGD(model.parameters()), target=ROWS, groups=["a", "b"])
    fused = nn.Sequential(nn.TransformerEncoderLayer(8, 2))
    with pytest.raises(InputError, match=r"^layer 0.self_attn: the gradients of a fused MultiheadAttention"):
        recorder(torch.optim.SGD(fused.parameters()), fused, spec=spec)
    compiled = torch.nn.Sequential(nn.Linear(3, 3))
    compiled.compile()
    for one in (compiled, torch.compile(nn.Sequential(nn.Linear(3, 3)))):
        with pytest.raises(InputError, match="compiled model"):
            recorder(torch.optim.SGD(one.parameters()), one, spec=spec)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(InputError, match="steps on no batch"), recorder(optimizer):
        optimizer.step()
    with pytest.raises(InputError, match="row 12 of 12 examples"), recorder(optimizer) as one:
        one.batch([3, 12])
    with pytest.raises(InputError, match="no rows"), recorder(optimizer) as one:
        one.batch([])
    normed = Normed()
    with (
        pytest.raises(InputError, match=r"^layer norm: batch norm in training mode"),
        recorder(torch.optim.SGD(normed.parameters()), normed, spec=spec) as one,
    ):
        one.batch([0, 1])
    with recorder(optimizer, spec=spec) as one:
        one.batch([0, 1])
        with pytest.raises(InputError, match="depends on none of the tracked modules"):
            optimizer.step()
    assert not any(module._forward_hooks for module in model.modules())


def test_the_documentation_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code blocks of docs/training.md, one after the other, in a folder of their own."""
    page = Path(inspect.getfile(backcast)).parents[1] / "docs/training.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    assert len(blocks) >= 4
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, str(page), "exec"), names)
