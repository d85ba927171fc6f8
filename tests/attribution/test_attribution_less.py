"""Adam's directions against real optimizer steps, and LESS against its definition."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from attribution_cases import (
    CLASSES,
    INPUTS,
    Classify,
    contents,
    exact_gradients,
    examples,
    llama,
    mlp,
    sketch_of,
    unit,
)
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from transformers import GPT2Config, GPT2LMHeadModel, MixtralConfig, MixtralForCausalLM

from backcast.attribution import Checkpoint, SketchStore, attribute, collect
from backcast.attribution.collect import tracked
from backcast.attribution.gradients.adam import AdamCapture, preconditioners
from backcast.attribution.gradients.capture import tracked_parts
from backcast.attribution.gradients.opened import opened
from backcast.attribution.gradients.parts import Conv1DPart, LinearPart
from backcast.data import Example, Examples
from backcast.errors import InputError
from backcast.kernels import KINDS, SketchSpec
from backcast.kernels.random import key
from backcast.kernels.sjlt import sjlt
from backcast.tasks import Batch, Task

VOCAB, STEPS, RATE = 13, 4, 0.01


class Small(Classify):
    """Biases and norms count too."""

    biases = True

    def modules(self, model: nn.Module) -> dict[str, nn.Module]:
        norms = {n: m for n, m in model.named_modules() if isinstance(m, nn.GroupNorm)}
        return super().modules(model) | norms


class Tokens(Task):
    """The loss of a causal model over whole rows of ids."""

    biases = True

    def collate(self, examples: Sequence[Example]) -> Batch:
        return {"ids": torch.stack([e.fields["x"] for e in examples])}

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        logits = model(input_ids=batch["ids"]).logits[:, :-1]
        return F.cross_entropy(logits.mT, batch["ids"][:, 1:], reduction="none").sum(1)


class Image(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, stride=2), nn.GroupNorm(2, 4)
        self.grouped, self.head = nn.Conv2d(4, 4, 2, groups=2), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.grouped(self.norm(self.conv(x))).tanh().flatten(2).mean(2))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fused = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.fused(x, x, x, need_weights=False)[0].tanh().sum(1))


def gpt2() -> nn.Module:
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, n_positions=16, n_embd=8, n_layer=1, n_head=2))


def mixtral() -> nn.Module:
    config = MixtralConfig(
        vocab_size=VOCAB, hidden_size=8, intermediate_size=6, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=4, num_experts_per_tok=1, num_local_experts=6, pad_token_id=None,
    )  # fmt: skip
    model = MixtralForCausalLM(config)
    model.set_experts_implementation("eager")  # the others know no float64
    return model


def adapted() -> nn.Module:
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(
        llama(VOCAB, width=8), peft.LoraConfig(r=3, target_modules=["q_proj", "up_proj"])
    )


class Blocks(Tokens):
    """Not the head, which shares the embedding's weight."""

    def modules(self, model: nn.Module) -> dict[str, nn.Module]:
        return {n: m for n, m in super().modules(model).items() if "lm_head" not in n}


def ids(n: int = 5, length: int = 4, seed: int = 2) -> Examples:
    tokens = torch.randint(VOCAB, (n, length), generator=torch.Generator().manual_seed(seed))
    return Examples.from_fields([{"text": str(row.tolist()), "x": row} for row in tokens])


MODELS: dict[str, tuple[Callable[[], nn.Module], Task, Examples]] = {
    "mlp": (mlp, Small(), examples(5, dtype=torch.float64)),
    "image": (Image, Small(), examples(5, (3, 8, 8), dtype=torch.float64)),
    "attention": (Attention, Small(), examples(5, (6, 8), dtype=torch.float64)),
    "gpt2": (gpt2, Blocks(), ids()),
    "mixtral": (mixtral, Blocks(), ids()),
    "adapters": (adapted, Blocks(), ids()),
}


def trained(name: str, path: Path) -> tuple[nn.Module, Task, Examples]:
    """A float64 model after some steps of a real AdamW, whose state lies at ``path``."""
    build, task, rows = MODELS[name]
    torch.manual_seed(0)
    model = build().double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    optimizer = adamw(model)
    for _ in range(STEPS):
        step(model, task, rows, optimizer)
    torch.save({"optimizer": optimizer.state_dict()}, path)
    return model, task, rows


def adamw(model: nn.Module, **settings: Any) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        [(n, p) for n, p in model.named_parameters() if p.requires_grad], lr=RATE, **settings
    )


def step(model: nn.Module, task: Task, rows: Examples, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    task.loss(model, task.collate(rows)).mean().backward()
    optimizer.step()


def moved(model: nn.Module, task: Task, row: Examples, path: Path) -> nn.Module:
    """A model whose parameters are −Δθ/η of the next step of the saved optimizer, taken on one row alone."""
    after = copy.deepcopy(model)
    optimizer = adamw(after)
    optimizer.load_state_dict(torch.load(path, weights_only=True)["optimizer"])
    for group in optimizer.param_groups:
        group["lr"], group["weight_decay"] = 1.0, 0.0
    step(after, task, row, optimizer)
    with torch.no_grad():
        for parameter, before in zip(after.parameters(), model.parameters(), strict=True):
            parameter.copy_(before - parameter)
    return after


def sketch_of_move(change: nn.Module, task: Task, spec: SketchSpec) -> Tensor:
    """(k,) the sum of the operators on the change of every tracked weight."""
    total: Any = 0
    with opened(change):
        for parts in tracked_parts(tracked(change, task), task.biases).values():
            for part in parts:
                values = [p.detach() for p in part.parameters]
                if isinstance(part, LinearPart):
                    matrix = values[0].T if isinstance(part, Conv1DPart) else values[0]
                    total = total + sketch_of({part.name: matrix[None]}, spec)[0]
                else:
                    flat = torch.cat([v.flatten() for v in values])[None]
                    total = total + sjlt(flat, spec.dim, key(spec, part.name, "vector"))[0]
    return total


def captured(model: nn.Module, task: Task, rows: Examples, spec: SketchSpec, path: Path) -> Tensor:
    with opened(model):
        parts = [
            part for found in tracked_parts(tracked(model, task), task.biases).values() for part in found
        ]
    found = preconditioners(path, model, parts)
    with opened(model), AdamCapture(model, tracked(model, task), spec, found, task.biases) as capture:
        return capture.sketches(task.loss(model, task.collate(rows)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MODELS)
def test_a_direction_is_the_move_of_a_real_step(name, kind, tmp_path):
    """Of AdamW on the row alone, by its learning rate; in batches of any size."""
    path, spec = tmp_path / "state.pt", SketchSpec(kind, 36)
    model, task, rows = trained(name, path)
    expected = torch.stack(
        [sketch_of_move(moved(model, task, rows[b : b + 1], path), task, spec) for b in range(len(rows))]
    )
    for part in (slice(0, 5), slice(0, 1), slice(1, 3)):
        got = captured(model, task, rows[part], spec, path)
        assert (got - expected[part]).norm() <= 1e-9 * expected[part].norm()


def test_experts_that_a_batch_does_not_use_move_by_their_momentum(tmp_path):
    """So that the test above covers them: one row of four tokens leaves some of six experts out."""
    model, task, rows = trained("mixtral", tmp_path / "state.pt")
    seen: set[str] = set()
    with opened(model):
        for name, module in model.named_modules():
            if ".up." in name:
                module.register_forward_hook(lambda *_, name=name: seen.add(name))
        task.loss(model, task.collate(rows[:1]))
    assert 0 < len(seen) <= 4


def test_chunks_of_examples_change_nothing(tmp_path, monkeypatch):
    model, task, rows = trained("mlp", tmp_path / "state.pt")
    spec = SketchSpec("kron", 36)
    whole = captured(model, task, rows, spec, tmp_path / "state.pt")
    monkeypatch.setattr("backcast.attribution.gradients.adam.MAX_GRADIENTS", 4 * 12 * 16 * 2)
    torch.testing.assert_close(captured(model, task, rows, spec, tmp_path / "state.pt"), whole)


# Stores and scores


class Run:
    """A linear model's checkpoints, on which a count-sketch of 64 numbers loses nothing of 60 weights."""

    spec = SketchSpec("sjlt", 64)
    rates = (0.1, 0.03)

    def __init__(self, folder: Path) -> None:
        self.folder, self.task = folder, Classify()
        self.train, self.wanted = examples(12, dtype=torch.float64), examples(6, seed=1, dtype=torch.float64)
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(INPUTS, CLASSES, bias=False)).double()
        optimizer = adamw(self.model)
        self.checkpoints, self.moments, self.weights = [], [], []
        for c, rate in enumerate(self.rates):
            for _ in range(STEPS):
                step(self.model, self.task, self.train, optimizer)
            save_file(self.model.state_dict(), folder / f"{c}.safetensors")
            torch.save(optimizer.state_dict(), folder / f"{c}.pt")
            self.checkpoints.append(
                Checkpoint(str(folder / f"{c}.safetensors"), rate, str(folder / f"{c}.pt"))
            )
            self.moments.append(copy.deepcopy(optimizer.state[self.model[0].weight]))
            self.weights.append(self.model[0].weight.detach().clone())

    def collect(self, name: str, rows: Examples, **options: Any) -> SketchStore:
        options = {"checkpoints": self.checkpoints, "spec": self.spec} | options
        return collect(self.model, self.task, rows, self.folder / name, **options)

    def gradients(self, c: int, rows: Examples) -> np.ndarray:
        """(n, 60) float64."""
        model = copy.deepcopy(self.model)
        with torch.no_grad():
            model[0].weight.copy_(self.weights[c])
        return exact_gradients(model, self.task, rows, {"w": model[0].weight})["w"].flatten(1).numpy()

    def directions(self, c: int, rows: Examples) -> np.ndarray:
        """(n, 60) float64: Kingma & Ba's algorithm 1, in letters."""
        g, state, t = self.gradients(c, rows), self.moments[c], STEPS * (c + 1) + 1
        m = 0.9 * state["exp_avg"].numpy().ravel() + 0.1 * g
        v = 0.999 * state["exp_avg_sq"].numpy().ravel() + 0.001 * g**2
        return m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)


@pytest.fixture
def run(tmp_path) -> Run:
    return Run(tmp_path)


def test_less_is_its_definition(run):
    """Groups of one, two and three, and the best of each example."""
    train, target = run.collect("train", run.train, direction="adam"), run.collect("target", run.wanted)
    groups = ["a", "b", "c", "b", "c", "c"]
    members = [[0], [1, 3], [2, 4, 5]]
    scores = attribute(train, target, "less", groups=groups)
    expected: Any = 0
    for c, rate in enumerate(run.rates):
        targets = run.gradients(c, run.wanted)
        means = np.stack([targets[rows].mean(0) for rows in members])
        expected = expected + rate * unit(run.directions(c, run.train)) @ unit(means).T
    np.testing.assert_allclose(scores.values, expected, atol=1e-6)
    assert scores.targets == ("a", "b", "c")
    np.testing.assert_allclose(scores.best(), expected.max(1), atol=1e-6)
    assert scores.origin["direction"] == "adam"


def test_targets_without_groups_are_a_group_each(run):
    train, target = run.collect("train", run.train, direction="adam"), run.collect("target", run.wanted)
    expected = sum(
        rate * unit(run.directions(c, run.train)) @ unit(run.gradients(c, run.wanted)).T
        for c, rate in enumerate(run.rates)
    )
    np.testing.assert_allclose(attribute(train, target, "less").values, expected, atol=1e-6)


def test_a_state_by_qualified_names_gives_the_same_store(run):
    """Nor does the file's form enter the header."""
    train = run.collect("train", run.train, direction="adam")
    again = []
    for c, checkpoint in enumerate(run.checkpoints):
        optimizer = adamw(run.model)
        optimizer.load_state_dict(torch.load(checkpoint.optimizer, weights_only=True))
        torch.save(get_optimizer_state_dict(run.model, optimizer), run.folder / f"names-{c}.pt")
        again.append(Checkpoint(checkpoint.path, checkpoint.learning_rate, str(run.folder / f"names-{c}.pt")))
    run.collect("again", run.train, direction="adam", checkpoints=again)
    assert contents(run.folder / "again") == contents(train.path)


def test_a_store_of_another_state_is_not_resumed(run):
    first, second = run.checkpoints
    run.collect("train", run.train, direction="adam")
    swapped = Checkpoint(second.path, second.learning_rate, first.optimizer)
    with pytest.raises(InputError, match="of other data, weights or settings"):
        run.collect("train", run.train, direction="adam", checkpoints=[first, swapped])


def test_only_less_compares_directions_with_gradients(run):
    adam, plain = run.collect("adam", run.train, direction="adam"), run.collect("plain", run.wanted)
    for method in ("grad_dot", "grad_cos", "tracin"):
        with pytest.raises(InputError, match=r"of direction 'adam', .*'gradient'; only method 'less'"):
            attribute(adam, plain, method)
        attribute(adam, adam, method)  # likeness of steps
    with pytest.raises(InputError, match=r"plain: method 'less' needs .*direction=\"adam\"\) of the train"):
        attribute(plain, plain, "less")
    with pytest.raises(
        InputError, match=r"adam: method 'less' needs .*direction=\"gradient\"\) of the target"
    ):
        attribute(adam, adam, "less")


def test_less_needs_the_same_checkpoints(run):
    adam = run.collect("adam", run.train, direction="adam")
    with pytest.raises(InputError, match="collected at other checkpoints"):
        attribute(adam, run.collect("one", run.wanted, checkpoints=run.checkpoints[:1]), "less")
    other = run.collect("other", run.wanted, autocast="bfloat16")
    with pytest.raises(InputError, match="collected with another loss"):
        attribute(adam, other, "less")


# What is refused


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"direction": "sgd"}, "direction 'sgd' does not exist; choose gradient or adam"),
        ({"direction": "adam", "checkpoints": None}, "give checkpoints, each with optimizer="),
        ({"direction": "adam", "autocast": "float16"}, "cannot be taken of scaled gradients"),
        ({"direction": "adam", "of": "output"}, "so of the loss; not of 'output'"),
    ],
)
def test_what_has_no_direction_is_refused(run, options, line):
    with pytest.raises(InputError) as told:
        run.collect("train", run.train, **options)
    assert line in str(told.value)
    assert not (run.folder / "train").exists()


def test_a_checkpoint_without_its_state_is_refused(run):
    checkpoints = [run.checkpoints[0], Checkpoint(run.checkpoints[1].path)]
    with pytest.raises(InputError, match="give checkpoints, each with optimizer="):
        run.collect("train", run.train, direction="adam", checkpoints=checkpoints)


def test_a_tracked_weight_without_a_state_is_named(tmp_path):
    model, task, rows = trained("mlp", tmp_path / "state.pt")
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    del saved["optimizer"]["state"][2]
    torch.save(saved, tmp_path / "state.pt")
    with pytest.raises(InputError, match=r"state\.pt: no Adam state of 2\.weight, which is tracked"):
        captured(model, task, rows, SketchSpec("sjlt", 36), tmp_path / "state.pt")


class Twice(nn.Module):
    """A layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.again, self.head = nn.Linear(INPUTS, INPUTS), nn.Linear(INPUTS, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.again(self.again(x).tanh()))


class Shared(Twice):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(INPUTS, INPUTS)
        self.other.weight = self.again.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.other(self.again(x).tanh()))


@pytest.mark.parametrize("build", [Twice, Shared])
def test_a_weight_of_several_uses_is_refused(build, tmp_path):
    model, task, rows = build(), Classify(), examples(4)
    optimizer = adamw(model)
    step(model, task, rows, optimizer)
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    with pytest.raises(InputError, match=r"layer again: its weight is used several times"):
        captured(model, task, rows, SketchSpec("sjlt", 36), tmp_path / "state.pt")


def test_an_embedding_is_refused(tmp_path):
    model, _, rows = trained("gpt2", tmp_path / "state.pt")
    whole = Tokens()  # its head shares the table's weight
    with pytest.raises(InputError, match=r"layer transformer\.wte: an embedding's Adam direction"):
        captured(model, whole, rows, SketchSpec("sjlt", 36), tmp_path / "state.pt")
