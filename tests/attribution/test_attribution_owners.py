"""Layers that see a batch's images along one axis: each row goes to its example's sketch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from attribution_cases import CLASSES, sketch_of
from torch import Tensor, nn

from backcast.attribution import attribute, collect
from backcast.attribution.gradients.capture import GradientCapture
from backcast.data import Example, Examples
from backcast.errors import InputError
from backcast.kernels import KINDS, SketchSpec
from backcast.tasks import Batch, Task
from backcast.tasks.owners import Owners, belong

WIDTH = 6


class Album(nn.Module):
    """An example's class, from its own vector and those of the patches of its images."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.embed = nn.Linear(WIDTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.merge = nn.Linear(4 * WIDTH, WIDTH, bias=False)
        self.own = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor, images: Tensor, owner: Tensor) -> Tensor:
        """x (B, WIDTH), images (N, 4, WIDTH) with owners (N,)."""
        h = self.own(x).tanh()
        if len(images):
            if self.form == "flat":  # all patches of all images in one axis; merging sees a fourth as many
                y = self.merge(self.norm(self.embed(images.flatten(0, 1)).tanh()).view(len(images), -1))
            else:
                y = self.merge(self.norm(self.embed(images).tanh()).flatten(1))
            h = h.index_add(0, owner, y.sin())
        return self.head(h)


class Albums(Task):
    """Tells whose images are whose."""

    def __init__(
        self, modules: Sequence[str] = ("embed", "norm", "merge", "own", "head"), biases: bool = False
    ) -> None:
        self.names, self.biases = modules, biases

    def modules(self, model: nn.Module) -> dict[str, nn.Module]:
        return {name: model.get_submodule(name) for name in self.names}

    def collate(self, examples: Sequence[Example]) -> Batch:
        rows = [e.fields["x"] for e in examples]
        counts = torch.tensor([len(x) // 4 for x in rows])
        return {
            "x": torch.stack([x[-1] for x in rows]),
            "images": torch.cat([x[:-1].view(-1, 4, WIDTH) for x in rows]),
            "owner": torch.arange(len(rows)).repeat_interleave(counts),
            "y": torch.tensor([e.fields["label"] for e in examples]),
        }

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        owner = batch["owner"]
        rows = owner.repeat_interleave(4) if model.form == "flat" else owner
        belong([model.embed, model.norm, model.merge], Owners(rows, len(batch["y"])))
        logits = model(batch["x"], batch["images"], owner)
        return F.cross_entropy(logits, batch["y"], reduction="none")


def albums(counts: Sequence[int], seed: int = 0) -> Examples:
    """An example with as many images as each count says."""
    torch.manual_seed(seed)
    return Examples.from_fields(
        [
            {"text": f"{seed}/{i}", "x": torch.randn(4 * n + 1, WIDTH), "label": i % CLASSES}
            for i, n in enumerate(counts)
        ]
    )


def exact(model: nn.Module, task: Task, rows: Examples, names: Sequence[str]) -> dict[str, Tensor]:
    """(B, O, I) by autograd, an example at a time; zeros where a weight had no part."""
    weights = [model.get_submodule(name).weight for name in names]
    loop = []
    for b in range(len(rows)):
        loss = task.loss(model, task.collate(rows[b : b + 1]))[0]
        loop.append(torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True))
    return {name: torch.stack(found) for name, found in zip(names, zip(*loop, strict=True), strict=True)}


def close(left: Tensor, right: Tensor) -> None:
    assert (left - right).norm(dim=1).max() <= 1e-5 * right.norm(dim=1).max()


#: Of each example how many images; the second has as many in all as there are examples, by chance.
COUNTS = [(1, 0, 3, 2), (2, 0, 1, 1), (0, 0, 1, 0), (1, 1, 1, 1)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["flat", "by image"])
@pytest.mark.parametrize("counts", COUNTS)
def test_each_row_goes_to_its_example(counts, form, kind):
    torch.manual_seed(1)
    model, rows, spec = Album(form), albums(counts), SketchSpec(kind, 64)
    names = ["embed", "merge", "own", "head"]
    task = Albums(names)
    expected = sketch_of(exact(model, task, rows, names), spec)
    with GradientCapture(model, task.modules(model), spec) as capture:
        close(capture.sketches(task.loss(model, task.collate(rows))), expected)


@pytest.mark.parametrize("form", ["flat", "by image"])
def test_norms_and_biases_too(form):
    """A row in a batch against the row alone, which no owners are needed for."""
    torch.manual_seed(1)
    model, rows, task = Album(form), albums((2, 0, 1, 1)), Albums(biases=True)
    with GradientCapture(model, task.modules(model), SketchSpec("sjlt", 64), task.biases) as capture:
        together = capture.sketches(task.loss(model, task.collate(rows)))
        for b in range(len(rows)):
            alone = capture.sketches(task.loss(model, task.collate(rows[b : b + 1])))
            close(together[b : b + 1], alone)
        names = [part.name for parts in capture.parts.values() for part in parts]
    assert {"embed.bias", "norm"} <= set(names)


def test_a_batch_without_images_has_zero_gradients_in_their_layers():
    model, rows, task = Album("flat"), albums((0, 0, 0)), Albums(["embed", "merge"])
    with GradientCapture(model, task.modules(model), SketchSpec("kron", 64)) as capture:
        sketches = capture.sketches(task.loss(model, task.collate(rows)))
    assert sketches.shape == (3, 64)
    assert not sketches.any()


def test_a_loss_that_no_layer_enters_is_refused_still():
    model, rows, task = Album("flat"), albums((0, 0, 0)), Albums(["embed", "own"])
    with GradientCapture(model, task.modules(model), SketchSpec("kron", 64)) as capture:
        task.loss(model, task.collate(rows))
        with pytest.raises(InputError, match="none of the tracked modules"):
            capture.sketches(torch.zeros(3))


def test_collect_and_curvature_hold_in_any_batches(tmp_path):
    torch.manual_seed(1)
    model, task = Album("flat"), Albums(["embed", "merge", "own", "head"])
    rows, wanted = albums((1, 0, 3, 2, 0, 1, 1)), albums((0, 2, 1), seed=1)
    stores = [
        collect(model, task, rows, tmp_path / f"{size}", spec=SketchSpec("sjlt", 64), batch_size=size)
        for size in (1, 5)
    ]
    np.testing.assert_allclose(stores[0].sketches(), stores[1].sketches(), rtol=1e-4, atol=1e-6)
    scores = [
        attribute(rows, wanted, "ekfac", model=model, task=task, fisher="empirical", batch_size=size)
        for size in (1, 4)
    ]
    np.testing.assert_allclose(scores[0].values, scores[1].values, rtol=1e-2)


@pytest.mark.parametrize(
    ("owner", "alike", "count"),
    [([0, 0, 1], True, 2), ([0, 1, 1, 2], True, 2), ([0, 1], False, 4), ([], True, 3)],
    ids=["no whole factor", "merged across examples", "split unevenly", "none expected"],
)
def test_rows_that_cannot_be_told_apart_are_refused(owner, alike, count):
    with pytest.raises(ValueError, match="rows"):
        Owners(torch.tensor(owner, dtype=torch.int64), 3, alike).gather(torch.ones(count, 2))


def test_a_layer_is_named_whose_rows_cannot_be_told_apart():
    class Odd(Albums):
        def loss(self, model: nn.Module, batch: Batch) -> Tensor:
            belong([model.own], Owners(torch.tensor([0, 0, 1]), 2))
            return super().loss(model, batch)

    model, rows, task = Album("flat"), albums((1, 1)), Odd(["own"])
    with (
        GradientCapture(model, task.modules(model), SketchSpec("kron", 64)) as capture,
        pytest.raises(InputError, match="layer own sees 2 rows for 2 examples"),
    ):
        capture.sketches(task.loss(model, task.collate(rows)))


def test_what_was_said_holds_for_one_batch():
    """A forward past the task, as a trainer's own, says nothing."""
    model, rows, task = Album("flat"), albums((2, 0, 1)), Albums()
    batch = task.collate(rows)
    with GradientCapture(model, task.modules(model), SketchSpec("kron", 64)) as capture:
        capture.sketches(task.loss(model, batch))
        logits = model(batch["x"], batch["images"], batch["owner"])
        with pytest.raises(
            InputError, match="was not said for this batch of 3 examples; take the losses from the task"
        ):
            capture.sketches(F.cross_entropy(logits, batch["y"], reduction="none"))
    task.loss(model, batch)
    with GradientCapture(model, task.modules(model), SketchSpec("kron", 64)) as capture:
        logits = model(batch["x"], batch["images"], batch["owner"])
        with pytest.raises(InputError, match="was not said for this batch"):
            capture.sketches(F.cross_entropy(logits, batch["y"], reduction="none"))


def test_an_example_alone_owns_every_row():
    rows = torch.arange(10.0).view(5, 2)
    assert torch.equal(Owners(torch.tensor([0, 0, 0]), 1).gather(rows), rows[None])


def test_rows_are_split_and_merged_by_whole_factors():
    owners = Owners(torch.tensor([0, 0, 2, 2, 2, 2]), 3)
    merged = owners.gather(torch.tensor([1.0, 2.0, 3.0]))
    assert merged.tolist() == [[1, 0], [0, 0], [2, 3]]
    split = owners.gather(torch.arange(12.0))
    assert split.tolist() == [[0, 1, 2, 3, 0, 0, 0, 0], [0] * 8, [4, 5, 6, 7, 8, 9, 10, 11]]
