"""The split of a score against whole gradients: what is split is the score, and the parts are all of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy.stats import spearmanr
from torch import Tensor, nn

from backcast.attribution import Checkpoint, SketchStore, attribute, collect
from backcast.attribution.collect import tracked_weights
from backcast.attribution.gradients.opened import opened
from backcast.attribution.problem import Problem
from backcast.data import Example, Examples, Rows
from backcast.data.corpora import DigitsSizes, digits_corpus
from backcast.data.corpora.digits import CAPTIONS, encode
from backcast.errors import InputError
from backcast.kernels import SketchSpec
from backcast.multimodal import ClipTask, Parts, Split, load_clip, split
from backcast.multimodal.baselines import Baseline, Reference
from backcast.multimodal.directions import directions
from backcast.multimodal.mini_clip import write_mini_clip
from backcast.multimodal.shapley import coalitions
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

    def parts(self, **options: object) -> Parts:
        stores = {"train": self.train, "target": self.target, "checkpoints": self.checkpoints}
        if options.get("score", "tracin") == "tracin":
            options = {"cosine": True, **options}
        pool = options.pop("pool", self.examples)
        return split(self.model, self.task, pool, self.wanted, **{**stores, **options})

    def split(self, rows: Sequence[int] | None = None, **options: object) -> Split:
        """Against one baseline."""
        return self.parts(**{"rows": rows, "baselines": ["colour+mean"], **options}).first

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
    row = [0]
    few = case.split(row, tolerance=1)
    many = case.split(row, tolerance=few.gap.max() / 2)
    assert many.gap.max() <= few.gap.max() / 2
    assert case.split(row, tolerance=0, max_steps=16).gap.max() == few.gap.max()
    np.testing.assert_allclose(many.score, few.score, rtol=1e-9)


def at_contents(case, contents) -> np.ndarray:
    """Σ_c η_c ⟨w_c, ∇ℓ_c⟩ / ‖ĝ_c‖ of each example at ``contents(batch)``: one forward and one backward each."""
    found = np.zeros(len(case.examples))
    own = {name: value.clone() for name, value in case.model.state_dict().items()}
    for c, checkpoint in enumerate(case.checkpoints):
        case.model.load_state_dict(checkpoint.weights())
        case.task.prepare(case.model)
        with opened(case.model):
            weights = tracked_weights(case.model, case.task)
        target = case.gradients[c][1]
        w = np.mean(target / np.linalg.norm(case.target.sketches(c), axis=1)[:, None], axis=0)
        for i in range(len(case.examples)):
            example = case.examples[i : i + 1]
            batch = case.task.collate(example)
            with torch.no_grad():
                given = contents(example, batch)
            loss = case.task.loss_at(case.model, batch, given)[0]
            gradients = torch.autograd.grad(loss, weights, allow_unused=True)
            pairs = zip(gradients, weights, strict=True)
            g = torch.cat([(torch.zeros_like(x) if g is None else g).flatten() for g, x in pairs])
            found[i] += RATES[c] * g.numpy() @ w / np.linalg.norm(case.train.sketches(c)[i])
    case.model.load_state_dict(own)
    return found


def absent(case, name, *modalities):
    """Contents in which the ``modalities`` are at their baseline."""
    baseline = Baseline(name, Reference(case.task, case.examples))

    def contents(example, batch):
        own = case.task.contents(case.model, batch)
        baseline.prepare(case.model)
        return {**own, **{m: baseline.contents(example, batch, own)[m] for m in modalities}}

    return contents


def test_the_baseline_is_the_score_of_an_empty_example(case, whole):
    """s(b), by whole gradients at the substituted contents."""
    np.testing.assert_allclose(
        whole.baseline, at_contents(case, absent(case, "colour+mean", "image", "text")), rtol=2e-3
    )


def test_shapley_values_by_their_definition(case):
    """Each modality's marginal contributions, averaged over both orders, of scores from whole gradients."""
    for name in ("colour+mean", "blur+mask", "mean+mask"):
        found = case.parts(method="shapley", derivative="exact", baselines=[name]).first
        v = {
            players: at_contents(case, absent(case, name, *({"image", "text"} - set(players))))
            for players in [(), ("image",), ("text",), ("image", "text")]
        }
        orders = {
            "image": [v["image",] - v[()], v["image", "text"] - v["text",]],
            "text": [v["text",] - v[()], v["image", "text"] - v["image",]],
        }
        for modality, marginal in orders.items():
            np.testing.assert_allclose(found.parts[modality], np.mean(marginal, axis=0), rtol=1e-5)
        np.testing.assert_allclose(found.interaction, orders["image"][1] - orders["image"][0], rtol=1e-5)
        np.testing.assert_allclose(found.score, v["image", "text"], rtol=1e-6)
        np.testing.assert_allclose(found.baseline, v[()], rtol=1e-6)
        assert found.gap.max() < 1e-12
        assert found.maps is None


@pytest.mark.parametrize("method", ["shapley", "integrated_gradients"])
def test_the_difference_is_the_double_backward(case, method):
    """A wrong step or a wrong second derivative would still give parts that add up."""
    near, exact = (
        case.parts(method=method, derivative=kind, rows=[0, 3], tolerance=1e-4)
        for kind in ("difference", "exact")
    )
    for a, b in zip(near.splits.values(), exact.splits.values(), strict=True):
        for modality, part in b.parts.items():
            np.testing.assert_allclose(a.parts[modality], part, atol=1e-3 * np.abs(part).max())
        np.testing.assert_allclose(a.score, b.score, rtol=1e-4)


def test_several_baselines_are_splits_of_one_score(case, whole):
    parts = case.parts(tolerance=1e-3, baselines=["colour+mean", "blur+mask", "mean+mean"])
    assert list(parts.splits) == ["colour+mean", "blur+mask", "mean+mean"]
    np.testing.assert_allclose(parts.first.parts["image"], whole.parts["image"], rtol=1e-9)
    for other in list(parts.splits.values())[1:]:
        np.testing.assert_array_equal(other.score, parts.first.score)
        assert (other.baseline != parts.first.baseline).all()
    told = parts.agreement()
    assert len(told) == 6
    a, b = parts.splits["colour+mean"], parts.splits["blur+mask"]
    first = next(
        t for t in told if t["baselines"] == ["colour+mean", "blur+mask"] and t["modality"] == "image"
    )
    assert first["rank"] == pytest.approx(spearmanr(a.parts["image"], b.parts["image"]).statistic)
    assert first["sign"] == np.mean(a.parts["image"] * b.parts["image"] > 0)


# ------------------------------------------------------------------ other scores


@pytest.fixture(scope="module")
def short(case, tmp_path_factory) -> tuple[SketchStore, SketchStore]:
    """Sketches of 1,024 numbers: `influence` factorises a matrix of as many rows."""
    place, run = tmp_path_factory.mktemp("short"), {"checkpoints": case.checkpoints}
    train = collect(case.model, case.task, case.examples, place / "x", spec=SketchSpec("sjlt", 1024), **run)
    return train, collect(case.model, case.task, case.wanted, place / "z", like=train, **run)


@pytest.mark.parametrize(
    ("score", "params"),
    [
        ("grad_dot", {}),
        ("grad_cos", {}),
        ("tracin", {"cosine": True}),
        ("influence", {"damping": 0.5}),
    ],
)
@pytest.mark.parametrize("grouped", [False, True])
def test_directions_give_the_stored_score(case, short, score, params, grouped):
    """In sketch space, where the stored score lives: factors · ⟨S w, S g⟩ is it."""
    train, target = short
    names = groups(case.wanted) if grouped else None
    problem = Problem(train, target, score, groups=names)
    found = np.zeros((len(train), len(problem.names)))
    for term in directions(problem, params):
        w = term.target @ target.sketches(term.checkpoint)
        if term.pool is not None:
            w = w + term.pool @ train.sketches(term.checkpoint)
        found += term.factors[:, None] * (train.sketches(term.checkpoint) @ w.T)
    stored = attribute(train, target, score, groups=names, **params).values
    np.testing.assert_allclose(found, stored, rtol=1e-4, atol=1e-5 * np.abs(stored).max())


def test_directions_of_stores_of_outputs(case, tmp_path):
    run = {"checkpoints": case.checkpoints, "of": "output"}
    train = collect(case.model, case.task, case.examples, tmp_path / "f", spec=SketchSpec("sjlt", 512), **run)
    target = collect(case.model, case.task, case.wanted, tmp_path / "t", like=train, **run)
    for score in ("grad_cos", "influence"):
        problem = Problem(train, target, score)
        found = np.zeros((len(train), len(target)))
        for term in directions(problem, {}):
            g, z = (
                store.slopes(term.checkpoint)[:, None] * store.sketches(term.checkpoint)
                for store in (train, target)
            )
            w = term.target @ z + (0 if term.pool is None else term.pool @ g)
            found += term.factors[:, None] * (g @ w.T)
        stored = attribute(train, target, score).values
        np.testing.assert_allclose(found, stored, rtol=1e-3, atol=1e-4 * np.abs(stored).max())


def test_what_influence_splits_is_near_the_stored_score(case, short):
    train, target = short
    found = case.parts(method="shapley", score="influence", damping=0.5, train=train, target=target)
    stored = attribute(train, target, "influence", damping=0.5).total()
    np.testing.assert_allclose(found.first.score, stored, atol=0.1 * np.abs(stored).max())


def test_the_stored_score_is_near(case, whole):
    stored = attribute(case.train, case.target, "tracin", cosine=True).total()
    # 16,384 numbers: each of the cosines is off by about 1/128 of its checkpoint's rate.
    np.testing.assert_allclose(whole.score, stored, atol=4 * sum(RATES) / np.sqrt(16384))
    assert np.ptp(stored) > 10 * np.abs(whole.score - stored).max()


def test_maps_are_the_parts_by_patch_and_by_word(case, whole):
    for i, example in enumerate(case.examples):
        assert whole.maps["image"][i].shape == (4, 4)
        assert len(whole.maps["text"][i]) == len(case.task.words(example))
        assert case.task.words(example) == example.fields["caption"].split()
        for modality, maps in whole.maps.items():
            assert maps[i].sum() == pytest.approx(whole.parts[modality][i], rel=1e-6)
            assert (maps[i] != 0).any()


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

    one_row = [0]
    each = [case.split(one_row, groups=names, towards=[name], tolerance=1e-4) for name in distinct]
    mean = case.split(one_row, groups=names, tolerance=1e-4)
    assert mean.score[0] == pytest.approx(np.mean([s.score[0] for s in each]), rel=1e-4)
    for modality in ("image", "text"):
        parts = [s.parts[modality][0] for s in each]
        assert mean.parts[modality][0] == pytest.approx(np.mean(parts), rel=1e-2, abs=1e-4)


def test_the_order_of_rows_changes_nothing(case, whole):
    order = np.array([4, 0, 4, 2])
    found = case.split(order, tolerance=1e-3)
    np.testing.assert_allclose(found.score, whole.score[order], rtol=1e-9)
    np.testing.assert_allclose(found.parts["image"], whole.parts["image"][order], rtol=1e-2)


# ------------------------------------------------------------------ what has nothing to split


def plain(image) -> Tensor:
    """Grey levels from 0 to 1."""
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
    return split(model, task, rows, wanted, train=train, target=target, cosine=True).first


def test_an_image_that_is_the_baseline_has_no_part(folder, tmp_path):
    levels = [90, 60, 90, 120]  # whose mean is 90
    rows = Examples.from_fields([grey(level, CAPTIONS[i + 1]) for i, level in enumerate(levels)])
    bank = Examples.from_fields([grey(90 + 9 * i, CAPTIONS[i]) for i in range(10)])
    found = made(load_clip(str(folder)), bank, rows, bank[3:7], tmp_path)
    assert found.parts["image"][[0, 2]].tolist() == [0, 0]
    assert (found.parts["image"][[1, 3]] != 0).all()
    assert (found.parts["text"] != 0).all()
    assert (found.gap <= 0.01).all()


def test_a_caption_that_is_the_baseline_has_no_part(dogs, tmp_path):
    captions = ["dog", "dog dog", "dog dog dog"]
    rows = Examples.from_fields([grey(40 + 30 * i**2, caption) for i, caption in enumerate(captions)])
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
        case.examples,
        wanted,
        train=case.train,
        target=target,
        rows=[0, 1],
        checkpoints=case.checkpoints,
        cosine=True,
        method="shapley",
    ).first
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

    found = split(model, task, rows, wanted, train=train, target=target).first
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
        (r"nothing to split", {"rows": []}),
        (r"its rows are not the training examples", {"pool": corpus.pool[10:16]}),
        (r"scores of method 'ekfac' cannot be split: choose one of grad_cos", {"score": "ekfac"}),
        (r"method 'tracin' has no parameter 'damping'", {"damping": 1.0}),
        (r"method 'gradcam' does not exist; choose integrated_gradients or shapley", {"method": "gradcam"}),
        (r"baseline 'black\+mean' does not exist: write IMAGE\+TEXT", {"baselines": ["black+mean"]}),
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


def test_half_precision_is_refused(folder, corpus, tmp_path):
    model, preprocess, tokenizer = load_clip(str(folder))
    task = ClipTask(preprocess, tokenizer, corpus.pool, bank_size=16)
    model = model.bfloat16()
    task.collate = lambda rows: {
        **ClipTask.collate(task, rows),
        "images": ClipTask.collate(task, rows)["images"].bfloat16(),
    }
    train = collect(model, task, corpus.pool[:2], tmp_path / "train", spec=SketchSpec("sjlt", 64))
    with pytest.raises(InputError, match="too coarse to split scores; load the model in float32"):
        split(model, task, corpus.pool[:2], corpus.pool[:2], train=train, target=train)


# ------------------------------------------------------------------ long work


def test_a_killed_split_resumes(case, tmp_path, monkeypatch):
    """What is kept is not computed again, and the end is the same bit for bit."""
    module = import_module("backcast.multimodal.split")
    monkeypatch.setattr(module, "batches_of", lambda _, __, rows, ___: [[i] for i in range(len(rows))])
    options = {"method": "shapley", "baselines": ["colour+mean"]}
    expected = case.parts(**options)
    calls = []

    def dying(*args):
        calls.append(1)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return coalitions(*args)

    monkeypatch.setattr(module, "coalitions", dying)
    with pytest.raises(KeyboardInterrupt):
        case.parts(**options, keep=tmp_path)
    found = case.parts(**options, keep=tmp_path)
    assert len(calls) == 8 + 2 * 6 - 7
    assert case.parts(**options, keep=tmp_path).first.score.tolist() == found.first.score.tolist()
    assert len(calls) == 13
    for name, values in expected.first.parts.items():
        np.testing.assert_array_equal(found.first.parts[name], values)
    case.parts(**{**options, "baselines": ["mean+mean"]}, keep=tmp_path)
    assert len(calls) == 13 + 12  # another baseline is another split


def test_parts_are_read_as_they_were_written(case, tmp_path):
    parts = case.parts(method="shapley", rows=[3, 1])
    parts.save(tmp_path / "parts.parquet")
    found = Parts.load(tmp_path / "parts.parquet")
    assert found.rows.to_json() == parts.rows.to_json()
    assert found.rows.ids == (case.examples[3].id, case.examples[1].id)
    assert list(found.splits) == list(parts.splits)
    assert found.made == json.loads(json.dumps(parts.made))
    for name, split_ in parts.splits.items():
        for field in ("score", "baseline", "interaction", "gap"):
            np.testing.assert_array_equal(getattr(found.splits[name], field), getattr(split_, field))
        for modality, values in split_.parts.items():
            np.testing.assert_array_equal(found.splits[name].parts[modality], values)
    first = (tmp_path / "parts.parquet").read_bytes()
    parts.save(tmp_path / "again.parquet")
    assert (tmp_path / "again.parquet").read_bytes() == first
    (tmp_path / "other.parquet").write_bytes(b"PAR1 no")
    for name in ("other", "missing"):
        with pytest.raises(InputError, match="backcast split"):
            Parts.load(tmp_path / f"{name}.parquet")
    with pytest.raises(InputError, match=r"name that ends in \.parquet"):
        parts.save(tmp_path / "parts.json")


def test_flagged_rows_have_no_parts():
    values = np.array([1.0, 2.0])
    split_ = Split(values, 0 * values, {"image": values, "text": values}, values, np.array([0.0, 0.5]))
    parts = Parts(Rows(("a", "b"), np.arange(2), ("s", "s")), {"colour+mean": split_})
    assert parts.parts["image"][0] == 1
    assert np.isnan([parts.parts[name][1] for name in ("image", "text", "interaction")]).all()
