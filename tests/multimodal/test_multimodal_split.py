"""The split of a score against whole gradients: what is split is the score, and the parts are all of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from backcast.attribution import Checkpoint, SketchStore, attribute, collect
from backcast.attribution.collect import tracked_weights
from backcast.attribution.gradients.opened import opened
from backcast.data import Example, Examples
from backcast.data.corpora import DigitsSizes, digits_corpus
from backcast.data.corpora.digits import CAPTIONS, encode
from backcast.errors import InputError
from backcast.kernels import SketchSpec
from backcast.multimodal import ClipTask, Split, load_clip, split
from backcast.multimodal.mini_clip import write_mini_clip
from backcast.tasks import Batch

RATES = [0.5, 2.0]


class Wide(ClipTask):
    """In float64, for comparisons without rounding."""

    def collate(self, examples: Sequence[Example]) -> Batch:
        batch = super().collate(examples)
        return {**batch, "images": batch["images"].double()}


@dataclass
class Case:
    """A float64 model at two checkpoints, its stores, and the whole gradients that they are sketches of."""

    model: nn.Module
    task: ClipTask
    examples: Examples
    wanted: Examples
    checkpoints: list[Checkpoint]
    train: SketchStore
    target: SketchStore
    gradients: list[tuple[np.ndarray, np.ndarray]]

    def split(self, rows: Examples | None = None, **options: object) -> Split:
        return split(
            self.model,
            self.task,
            self.examples if rows is None else rows,
            self.wanted,
            **{"train": self.train, "target": self.target, "checkpoints": self.checkpoints, **options},
        )

    def scores(self, towards: Sequence[str] | None = None, cosine: bool = True) -> np.ndarray:
        """Σ_c η_c ⟨w_c, ∇ℓ_c⟩ / ‖ĝ_c‖ by its definition, on whole gradients with the stored sketches' norms."""
        total = np.zeros(len(self.examples))
        for c, (train, target) in enumerate(self.gradients):
            g, t = (np.linalg.norm(store.sketches(c), axis=1) for store in (self.train, self.target))
            if not cosine:
                g, t = np.ones_like(g), np.ones_like(t)
            if towards is None:
                w = np.mean(target / t[:, None], axis=0)
                total += RATES[c] * train @ w / g
            else:
                for i, name in enumerate(towards):
                    member = np.array([group == name for group in groups(self.wanted)])
                    length = np.linalg.norm(self.target.sketches(c)[member].mean(0)) if cosine else 1.0
                    total[i] += RATES[c] * train[i] @ target[member].mean(0) / length / g[i]
        return total


def groups(rows: Examples) -> list[str]:
    return [example.fields["caption"] for example in rows]


def whole_gradients(model: nn.Module, task: ClipTask, rows: Examples) -> np.ndarray:
    """(n, N) gradients of the tracked weights: one example, one forward, one backward."""
    with opened(model):
        weights = tracked_weights(model, task)
    flat = []
    for b in range(len(rows)):
        loss = task.loss(model, task.collate(rows[b : b + 1]))[0]
        gradients = torch.autograd.grad(loss, weights, allow_unused=True)
        flat.append(
            [torch.zeros_like(w) if g is None else g for g, w in zip(gradients, weights, strict=True)]
        )
    return np.stack([torch.cat([g.flatten() for g in row]).numpy() for row in flat])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_mini_clip(tmp_path_factory.mktemp("clip") / "mini", CAPTIONS)


@pytest.fixture(scope="module")
def corpus():
    return digits_corpus(0, DigitsSizes(warmup=10, target=20, pool=40, test=10))


@pytest.fixture(scope="module")
def case(folder, corpus, tmp_path_factory) -> Case:
    model, preprocess, tokenizer = load_clip(str(folder))
    model = model.double().eval()
    task = Wide(preprocess, tokenizer, corpus.pool, bank_size=24)
    examples, wanted = corpus.pool[:6], corpus.target[::3]
    place, generator = tmp_path_factory.mktemp("stores"), torch.Generator().manual_seed(0)
    checkpoints, gradients = [], []
    own = {name: value.clone() for name, value in model.state_dict().items()}
    for c, rate in enumerate(RATES):
        noise = {n: 0.02 * c * torch.randn(v.shape, generator=generator).double() for n, v in own.items()}
        weights = {name: value + noise[name] for name, value in own.items()}
        save_file(weights, place / f"{c}.safetensors")
        checkpoints.append(Checkpoint(str(place / f"{c}.safetensors"), rate))
        model.load_state_dict(weights)
        task.prepare(model)
        gradients.append((whole_gradients(model, task, examples), whole_gradients(model, task, wanted)))
    model.load_state_dict(own)
    run = {"checkpoints": checkpoints, "spec": SketchSpec("sjlt", 16384)}
    train = collect(model, task, examples, place / "train", **run)
    target = collect(model, task, wanted, place / "target", **run)
    return Case(model, task, examples, wanted, checkpoints, train, target, gradients)


@pytest.fixture(scope="module")
def whole(case) -> Split:
    return case.split(tolerance=1e-3)


def test_what_is_split_is_the_score(case, whole):
    """The central difference along w is ⟨w, ∇ℓ⟩, from gradients that autograd made one at a time."""
    np.testing.assert_allclose(whole.score, case.scores(), rtol=1e-3)
    assert whole.ids == case.examples.index.ids


def test_the_parts_are_all_of_it(whole):
    change = whole.score - whole.baseline
    assert set(whole.parts) == {"image", "text"}
    assert whole.gap.max() <= 1e-3
    np.testing.assert_allclose(whole.parts["image"] + whole.parts["text"], change, rtol=1e-3)
    np.testing.assert_allclose(
        whole.gap, np.abs(sum(whole.parts.values()) - change) / np.abs(change), rtol=1e-9
    )
    assert not whole.flagged(1e-3).any()
    # Neither part is nothing, so that the sum has something to tell.
    assert all(np.abs(part).min() > 1e-4 for part in whole.parts.values())


def test_more_steps_close_the_gap(case):
    row = case.examples[:1]
    few = case.split(row, tolerance=1)
    many = case.split(row, tolerance=few.gap.max() / 2)
    assert many.gap.max() <= few.gap.max() / 2
    assert case.split(row, tolerance=0, max_steps=32).gap.max() == few.gap.max()
    np.testing.assert_allclose(many.score, few.score, rtol=1e-9)


def test_the_baseline_is_the_score_of_an_empty_example(case, whole):
    """s(b), by whole gradients at the substituted embeddings."""
    expected = np.zeros(len(case.examples))
    for c, checkpoint in enumerate(case.checkpoints):
        own = {name: value.clone() for name, value in case.model.state_dict().items()}
        case.model.load_state_dict(checkpoint.weights())
        case.task.prepare(case.model)
        batch = case.task.collate(case.examples)
        with opened(case.model):
            weights = tracked_weights(case.model, case.task)
        target = case.gradients[c][1]
        w = np.mean(target / np.linalg.norm(case.target.sketches(c), axis=1)[:, None], axis=0)
        modules = case.task.embeddings(case.model)
        with torch.no_grad():
            values = {"image": modules["image"](batch["images"]), "text": modules["text"](batch["tokens"])}
        baselines = case.task.baselines(case.model, batch, values)
        for i in range(len(case.examples)):
            handles = [
                modules[m].register_forward_hook(lambda _, __, ___, value=baselines[m][i : i + 1]: value)
                for m in modules
            ]
            loss = case.task.loss(case.model, case.task.collate(case.examples[i : i + 1]))[0]
            gradients = torch.autograd.grad(loss, weights)
            for handle in handles:
                handle.remove()
            g = torch.cat([g.flatten() for g in gradients]).numpy()
            expected[i] += RATES[c] * g @ w / np.linalg.norm(case.train.sketches(c)[i])
        case.model.load_state_dict(own)
    np.testing.assert_allclose(whole.baseline, expected, rtol=2e-3)


def test_the_stored_score_is_near(case, whole):
    stored = attribute(case.train, case.target, "tracin", cosine=True).total()
    # 16,384 numbers: each of the cosines is off by about 1/128 of its checkpoint's rate.
    np.testing.assert_allclose(whole.score, stored, atol=4 * sum(RATES) / np.sqrt(16384))
    assert np.ptp(stored) > 10 * np.abs(whole.score - stored).max()


def test_maps_are_the_parts_by_patch_and_by_token(case, whole):
    n = len(case.examples)
    assert whole.maps["image"].shape == (n, 4, 4)
    assert whole.maps["text"].shape == (n, 8)
    for modality, values in whole.maps.items():
        np.testing.assert_allclose(values.reshape(n, -1).sum(1), whole.parts[modality], rtol=1e-9)
    for row, example in zip(whole.maps["text"], case.examples, strict=True):
        words = case.task.words(example.fields["caption"])
        assert words == example.fields["caption"].split()
        # What is kept of the caption, its first and last token and the padding, has no part in it.
        assert row[0] == 0
        assert (row[len(words) + 1 :] == 0).all()
        assert (row[1 : len(words) + 1] != 0).any()


def test_shares_are_magnitudes(whole):
    shares = whole.shares()
    np.testing.assert_allclose(shares["image"] + shares["text"], 1)
    np.testing.assert_allclose(
        shares["image"] / shares["text"], np.abs(whole.parts["image"] / whole.parts["text"])
    )


def test_without_the_cosine_there_are_no_norms(case):
    found = case.split(cosine=False)
    np.testing.assert_allclose(found.score, case.scores(cosine=False), rtol=1e-3)
    stored = attribute(case.train, case.target, "tracin", cosine=False).total()
    np.testing.assert_allclose(found.score, stored, atol=0.1 * np.abs(stored).max())


# ------------------------------------------------------------------ groups


def test_groups(case):
    """Towards a group: its unit mean gradient; without: the mean over all groups, part by part."""
    names = groups(case.wanted)
    distinct = list(dict.fromkeys(names))
    assert len(distinct) >= 3
    rows = np.arange(len(case.examples))
    towards = [distinct[i % 3] for i in rows]
    found = case.split(groups=names, towards=towards)
    np.testing.assert_allclose(found.score, case.scores(towards), rtol=1e-3)

    one_row = case.examples[:1]
    each = [case.split(one_row, groups=names, towards=[name], tolerance=1e-4) for name in distinct]
    mean = case.split(one_row, groups=names, tolerance=1e-4)
    assert mean.score[0] == pytest.approx(np.mean([s.score[0] for s in each]), rel=1e-4)
    for modality in ("image", "text"):
        parts = [s.parts[modality][0] for s in each]
        assert mean.parts[modality][0] == pytest.approx(np.mean(parts), rel=1e-2, abs=1e-4)


def test_the_order_of_rows_changes_nothing(case, whole):
    order = np.array([4, 0, 4, 2])
    found = case.split(case.examples[order], tolerance=1e-3)
    np.testing.assert_allclose(found.score, whole.score[order], rtol=1e-9)
    np.testing.assert_allclose(found.parts["image"], whole.parts["image"][order], rtol=1e-2)


# ------------------------------------------------------------------ what has nothing to split


def plain(image) -> Tensor:
    """Grey levels from 0 to 1, so that a black image is zero: the baseline."""
    return torch.tensor(np.asarray(image), dtype=torch.float32).permute(2, 0, 1) / 255


@pytest.fixture(scope="module")
def dogs(tmp_path_factory):
    """A model whose captions are of one word, so that the mean word is that word: each caption is the baseline."""
    folder = write_mini_clip(tmp_path_factory.mktemp("dogs") / "mini", ["dog"])
    return load_clip(str(folder))


def grey(level: int, caption: str) -> dict[str, object]:
    return {"image": encode(np.full((32, 32), level)), "caption": caption}


def made(loaded, bank: Examples, rows: Examples, wanted: Examples, folder: Path) -> Split:
    model, _, tokenizer = loaded
    task = Wide(plain, tokenizer, bank)
    model = model.double()
    train = collect(model, task, rows, folder / "train", spec=SketchSpec("sjlt", 2048))
    target = collect(model, task, wanted, folder / "target", like=train)
    return split(model, task, rows, wanted, train=train, target=target)


def test_an_image_that_is_the_baseline_has_no_part(folder, tmp_path):
    rows = Examples.from_fields([grey(0, CAPTIONS[1]), grey(200, CAPTIONS[2]), grey(0, CAPTIONS[3])])
    bank = Examples.from_fields([grey(90 + 9 * i, CAPTIONS[i]) for i in range(10)])
    found = made(load_clip(str(folder)), bank, rows, bank[3:7], tmp_path)
    assert found.parts["image"][[0, 2]].tolist() == [0, 0]
    assert found.parts["image"][1] != 0
    assert (found.parts["text"] != 0).all()
    assert (found.gap <= 0.01).all()


def test_a_caption_that_is_the_baseline_has_no_part(dogs, tmp_path):
    captions = ["dog", "dog dog", "dog dog dog"]
    rows = Examples.from_fields([grey(40 + 50 * i, caption) for i, caption in enumerate(captions)])
    found = made(dogs, rows, rows, rows, tmp_path)
    np.testing.assert_allclose(found.parts["text"], 0, atol=1e-9)
    assert np.abs(found.parts["image"]).min() > 1e-6


def test_an_example_without_a_gradient_has_no_score(dogs, tmp_path):
    """Its caption is everyone's, so that it has no negatives and its loss is always 0."""
    bank = Examples.from_fields([grey(40 + 20 * i, "dog") for i in range(6)])
    rows = Examples.from_fields([grey(99, "dog"), grey(150, "dog dog")])
    wanted = Examples.from_fields([grey(77, "dog"), grey(180, "dog dog")])
    found = made(dogs, bank, rows, wanted, tmp_path)
    assert (found.score[0], found.baseline[0], found.gap[0]) == (0, 0, 0)
    assert found.score[1] != 0
    assert np.isfinite(found.parts["image"]).all()
    # A target without a gradient points nowhere: the other counts for half of the mean.
    alone = made(dogs, bank, rows, wanted[1:], tmp_path / "alone")
    assert found.score[1] == pytest.approx(alone.score[1] / 2, rel=1e-6)


def test_targets_that_are_alike_count_each(case, tmp_path):
    """65 copies and one other, so that the copies lie in two batches."""
    wanted = case.wanted[[0] * 65 + [1]]
    target = collect(
        case.model, case.task, wanted, tmp_path / "t", checkpoints=case.checkpoints, like=case.train
    )
    copies = split(
        case.model,
        case.task,
        case.examples[:2],
        wanted,
        train=case.train,
        target=target,
        checkpoints=case.checkpoints,
    )
    expected = np.zeros(2)
    for c, (g, t) in enumerate(case.gradients):
        units = t[:2] / np.linalg.norm(case.target.sketches(c)[:2], axis=1)[:, None]
        norms = np.linalg.norm(case.train.sketches(c)[:2], axis=1)
        expected += RATES[c] * g[:2] @ (65 * units[0] + units[1]) / 66 / norms
    np.testing.assert_allclose(copies.score, expected, rtol=1e-3)


# ------------------------------------------------------------------ the model is left as it was


def test_the_model_is_left_as_it_was(folder, corpus, tmp_path):
    """In float32, where θ + εu − εu is not θ."""
    model, preprocess, tokenizer = load_clip(str(folder))
    task = ClipTask(preprocess, tokenizer, corpus.pool, bank_size=16)
    rows, wanted = corpus.pool[:2], corpus.target[:3]
    train = collect(model, task, rows, tmp_path / "train", spec=SketchSpec("sjlt", 2048))
    target = collect(model, task, wanted, tmp_path / "target", like=train)
    next(model.parameters()).requires_grad_(False)
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    flags = [p.requires_grad for p in model.parameters()]
    kinds = [type(module) for module in model.modules()]

    found = split(model, task, rows, wanted, train=train, target=target)
    assert (found.gap <= 0.01).all()
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert [p.requires_grad for p in model.parameters()] == flags
    assert [type(module) for module in model.modules()] == kinds
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())


# ------------------------------------------------------------------ errors


def test_what_does_not_fit_is_refused(case, corpus):
    other, names = case.checkpoints[::-1], groups(case.wanted)
    cases = [
        (r"nothing to split", {"rows": case.examples[:0]}),
        (r"holds no sketch of example", {"rows": corpus.pool[10:12]}),
        (r"its rows are not the target examples", {"target": case.train}),
        (r"was collected at other weights \(checkpoint 1, 0\.safetensors\)", {"checkpoints": other}),
        (r"was collected at other weights", {"checkpoints": None}),
        (r"no target group is named 'eleven'", {"groups": names, "towards": ["eleven"] * 6}),
        (r"no target group is named", {"towards": ["a handwritten one"] * 6}),
        (r"2 group names for 7 targets", {"groups": names[:2]}),
        (r"1 group names for 6 examples", {"groups": names, "towards": names[:1]}),
    ]
    before = {name: value.clone() for name, value in case.model.state_dict().items()}
    for message, options in cases:
        with pytest.raises(InputError, match=message):
            case.split(**options)
    assert all(torch.equal(before[name], value) for name, value in case.model.state_dict().items())


def test_another_bank_is_refused(case, corpus):
    task = Wide(case.task.preprocess, case.task.tokenizer, corpus.target, bank_size=24)
    with pytest.raises(InputError, match=r"was collected with another loss"):
        split(
            case.model,
            task,
            case.examples,
            case.wanted,
            train=case.train,
            target=case.target,
            checkpoints=case.checkpoints,
        )


def test_shares_are_the_parts_without_their_signs(whole):
    shares, parts = whole.shares(), whole.parts
    np.testing.assert_allclose(shares["image"] + shares["text"], 1, rtol=1e-12)
    np.testing.assert_allclose(
        shares["image"] * abs(parts["text"]), shares["text"] * abs(parts["image"]), rtol=1e-9
    )
