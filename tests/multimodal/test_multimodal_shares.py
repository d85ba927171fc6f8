"""MM-SHAP and the perceptual score against games whose Shapley values and drops are known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain, combinations
from math import factorial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from vlm_cases import loaded, mixed

from backcast.data import Example, Examples, conversation
from backcast.data.corpora import DigitsSizes, digits_corpus
from backcast.data.corpora.digits import CAPTIONS, encode
from backcast.errors import InputError
from backcast.multimodal import ClipTask, MultimodalTask, VisionLanguageTask, load_clip
from backcast.multimodal.baselines import Baseline, Reference, images
from backcast.multimodal.mini_clip import write_mini_clip
from backcast.multimodal.shares import exchange, mm_shap, perceptual_score, shares
from backcast.tasks import Batch

PAD, BEGIN = 0, 1


class Game(MultimodalTask):
    """A loss that is a given function of the grey levels (B, N) and the words' values (B, L).

    ``layout`` makes (B, ...) of each example's list of images (h, w). A caption is numbers, each a word's value.
    """

    def __init__(
        self,
        formula: Callable[[Tensor, Tensor], Tensor],
        layout: Callable[[list[list[np.ndarray]]], Tensor] = lambda shown: torch.tensor(np.stack(shown)),
    ) -> None:
        self.formula, self.layout = formula, layout

    def collate(self, examples: Sequence[Example]) -> Batch:
        tokens = [torch.tensor([BEGIN, *map(int, e.fields["caption"].split())]) for e in examples]
        return {"image": self.pixels(examples, lambda image: image), "tokens": pad_sequence(tokens, True)}

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return self.loss_at(model, batch, self.contents(model, batch))

    def contents(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        return {"image": batch["image"], "text": model(batch["tokens"])}

    def loss_at(self, model: nn.Module, batch: Batch, contents: Any) -> Tensor:
        return self.formula(contents["image"].flatten(1), contents["text"][..., 0])

    def pixels(self, examples: Sequence[Example], alter: Callable[..., Any]) -> Tensor:
        return self.layout([[np.asarray(alter(i))[..., 0] / 255 for i in images(e)] for e in examples])

    def players(self, batch: Batch) -> Tensor:
        return batch["tokens"] > BEGIN

    def token_embeddings(self, model: nn.Module) -> nn.Module:
        return model

    def filler(self) -> int:
        return PAD

    def token_ids(self, batch: Batch) -> Tensor:
        return batch["tokens"]

    def patches(self, pixels: np.ndarray, batch: Batch) -> list[np.ndarray]:
        raise AssertionError("no maps are asked for")

    def words(self, example: Example) -> list[str]:
        raise AssertionError("no words are asked for")


@pytest.fixture(scope="module")
def values() -> nn.Module:
    """A token's value is a tenth of its id, the padding's 0."""
    return nn.Embedding.from_pretrained(torch.arange(20, dtype=torch.float64)[:, None] / 10)


def row(caption: str, *levels: object) -> dict[str, object]:
    """With an image (h, w) of these levels of grey, from 0 to 255."""
    return {"image": encode(np.array(levels)), "caption": caption}


SQUARES = Examples.from_fields(
    [
        row("3 9 4", [10, 200], [120, 60]),
        row("12", [250, 30], [90, 10]),
        row("7 2", [80, 180], [140, 255]),
    ]
)


def additive(x: Tensor, t: Tensor) -> Tensor:
    return x @ torch.tensor([1.0, -2.0, 0.5, 3.0]).double() + t.sum(1)


def entangled(x: Tensor, t: Tensor) -> Tensor:
    """With products of two and three players, and the begin token, which is none."""
    return torch.tanh(additive(x, t) / 3) + t[:, 0] * x[:, 0] * t[:, 1] * 20 - x[:, 1] * x[:, 2] * x[:, 3]


def brute_force(task: Game, model: nn.Module, example: Examples, absence: Baseline) -> dict[str, float]:
    """MM-SHAP by the definition of Shapley values, over all coalitions of 2 × 2 pixels and the words."""
    batch = task.collate(example)
    own = task.contents(model, batch)
    absent = absence.contents(example, batch, own)
    words = task.players(batch)[0].nonzero().flatten().tolist()
    everyone = [("image", (0, 0, y, x)) for y in (0, 1) for x in (0, 1)] + [("text", (0, w)) for w in words]

    def value(present: frozenset[int]) -> float:
        shown = {m: c.clone() for m, c in absent.items()}
        for modality, place in (everyone[k] for k in present):
            shown[modality][place] = own[modality][place]
        return -task.loss_at(model, batch, shown).item()

    n, found = len(everyone), {"image": 0.0, "text": 0.0}
    for k, (modality, _) in enumerate(everyone):
        others = [j for j in range(n) if j != k]
        coalitions = chain.from_iterable(combinations(others, size) for size in range(n))
        phi = sum(
            factorial(len(s)) * factorial(n - 1 - len(s)) / factorial(n)
            * (value(frozenset({*s, k})) - value(frozenset(s)))
            for s in coalitions
        )  # fmt: skip
        found[modality] += abs(phi)
    return found


@pytest.mark.parametrize(("formula", "samples", "atol"), [(additive, 1, 1e-6), (entangled, 400, 0.01)])
def test_mm_shap_is_the_shares_of_all_coalitions(values, formula, samples, atol):
    """Of what is additive one order is enough."""
    task = Game(formula)
    found = mm_shap(values, task, SQUARES, SQUARES, samples=samples)
    absence = Baseline("colour+mean", Reference(task, SQUARES))
    absence.prepare(values)
    wanted = [brute_force(task, values, SQUARES[i : i + 1], absence) for i in range(3)]
    expected = shares({m: np.array([own[m] for own in wanted]) for m in ("image", "text")})
    assert expected["image"].min() > 0.05
    assert np.ptp(expected["image"]) > 0.1
    for modality in ("image", "text"):
        np.testing.assert_allclose(found[modality], expected[modality], atol=atol)


def test_baselines_are_told_apart(values):
    task = Game(additive)
    one, other = (mm_shap(values, task, SQUARES, SQUARES, baseline=b) for b in ("colour+mean", "blur+mask"))
    assert np.abs(one["image"] - other["image"]).min() > 0.01


def test_each_of_several_images_has_its_own_players(values):
    """One picture twice, with opposite weights: were the places shared, each player would be worth nothing."""
    picture, weights = encode(np.array([[0, 255], [255, 0]])), torch.tensor([1.0] * 4 + [-1.0] * 4).double()
    rows = Examples.from_fields([{"images": [picture] * 2, "caption": caption} for caption in ("2 4", "9 3")])
    task = Game(
        lambda x, t: x @ weights + t.sum(1),
        lambda shown: torch.tensor(np.stack([[[i] for i in own] for own in shown])),
    )
    found = mm_shap(values, task, rows, rows, samples=1)
    absent = round(255 / 2) / 255
    pixels = 4 * (1 - absent) + 4 * absent
    mean = np.mean([0.2, 0.4, 0.9, 0.3])
    words = np.array([abs(0.2 - mean) + abs(0.4 - mean), abs(0.9 - mean) + abs(0.3 - mean)])
    np.testing.assert_allclose(found["image"], pixels / (pixels + words), rtol=1e-6)


@pytest.mark.parametrize(
    ("patches", "period", "cancels"), [(32, 1, True), (32, 2, False), (16, 1, False), (48, 3, False)]
)
def test_patches_in_a_list_are_16_runs(values, patches, period, cancels):
    """Of the example's own patches, whatever it is padded to; all are worth as much, with alternating signs."""
    bright = np.full((patches // 4, 4), 255)
    rows = Examples.from_fields([row("2 5", *bright), row("3", *np.zeros((12, 4)))])
    signs = torch.tensor([(-1.0) ** (k // period) for k in range(48)]).double()
    task = Game(
        lambda x, t: (x * signs).sum(1) + t.sum(1),
        lambda shown: pad_sequence([torch.tensor(own[0]).reshape(-1, 1) for own in shown], True),
    )
    # A longer image stands beside the example, and pads it to 48 patches.
    found = mm_shap(values, task, rows, rows, samples=1)
    worth = 0 if cancels else patches * (255 - round(255 / 2)) / 255
    mean = np.mean([0.2, 0.5, 0.3])
    words = abs(0.2 - mean) + abs(0.5 - mean)
    np.testing.assert_allclose(found["image"][0], worth / (worth + words), rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------ perceptual score


def test_of_two_examples_each_has_the_others(values):
    task, two = Game(entangled), SQUARES[:2]
    a, b = (example.fields for example in two)
    own = task.loss(values, task.collate(two))
    found = perceptual_score(values, task, two, permutations=3)
    for modality, field in (("image", "image"), ("text", "caption")):
        others = Examples.from_fields([{**a, field: b[field]}, {**b, field: a[field]}])
        drop = task.loss(values, task.collate(others)) - own
        np.testing.assert_allclose(found[modality], drop, rtol=1e-12)
        assert np.abs(found[modality]).min() > 0.01


def test_of_an_additive_loss_the_drops_are_known(values):
    """Over a permutation they add up to 0; the mean of one is the mean of the others' terms minus its own."""
    task = Game(additive)
    pictures = np.random.default_rng(0).integers(0, 256, (6, 2, 2))
    rows = Examples.from_fields([row(str(2 + 3 * i), *levels) for i, levels in enumerate(pictures)])
    batch = task.collate(rows)
    terms = {"image": additive(batch["image"].flatten(1), torch.zeros(6, 1)).numpy()}
    terms["text"] = task.contents(values, batch)["text"][:, 1, 0].numpy()
    few = perceptual_score(values, task, rows, permutations=2)
    many = perceptual_score(values, task, rows, permutations=200)
    for modality, term in terms.items():
        assert few[modality].sum() == pytest.approx(0, abs=1e-9)
        expected = (term.sum() - term) / 5 - term
        np.testing.assert_allclose(many[modality], expected, atol=4 * term.std() / np.sqrt(200))
        assert np.abs(few[modality] - expected).max() > np.abs(many[modality] - expected).max()


def said(example: Example, role: str) -> list[str]:
    """All texts of a role's turns, and how its turns look without them."""
    contents = [m["content"] for m in conversation(example)[0] if m["role"] == role]
    parts = [[{"type": "text", "text": c}] if isinstance(c, str) else c for c in contents]
    return [part.get("text", "<image>") for content in parts for part in content]


def test_conversations_exchange_images_or_questions_and_keep_the_answers():
    rows, generator = mixed(), np.random.default_rng(0)
    for _ in range(4):
        seen, asked = (exchange(rows, modality, generator) for modality in ("image", "text"))
        for own, other_image, other_text in zip(rows, seen, asked, strict=True):
            for role in ("assistant", "system"):
                assert said(other_image, role) == said(other_text, role) == said(own, role)
            assert said(other_image, "user") == said(own, "user")
            assert conversation(other_text)[1] == conversation(own)[1]
            before, after = conversation(own)[1], conversation(other_image)[1]
            assert len(after) == len(before)
            assert not set(after) & set(before)
            before, after = said(own, "user"), said(other_text, "user")
            marks = [[part == "<image>" for part in parts] for parts in (before, after)]
            assert marks[0] == marks[1]
            assert not (set(after) & set(before)) - {"<image>"}
            assert other_text.id != own.id
            assert (other_image.id != own.id) == bool(conversation(own)[1])
        assert seen[2] is rows[2]


def test_an_exchange_is_one_cycle_and_all_are_as_likely():
    rows = Examples.from_fields([{"image": bytes([i]), "caption": str(i)} for i in range(4)])
    generator, counts = np.random.default_rng(0), np.zeros((4, 4))
    for _ in range(600):
        found = [int(e.fields["caption"]) for e in exchange(rows, "text", generator)]
        assert sorted(found) == [0, 1, 2, 3]
        assert [e.fields["image"] for e in rows] == [bytes([i]) for i in range(4)]
        counts[range(4), found] += 1
    assert np.diag(counts).tolist() == [0, 0, 0, 0]
    np.testing.assert_allclose(counts + 200 * np.eye(4), 200, atol=4 * np.sqrt(600 * 2 / 9))


# ------------------------------------------------------------------ models


@pytest.mark.parametrize("family", ["llava", "qwen"])
def test_vision_language_models(family):
    """A row without an image owes nothing to it."""
    model, processor = loaded(family)
    task, rows = VisionLanguageTask(processor), mixed()
    found = mm_shap(model, task, rows, rows, samples=1)
    np.testing.assert_allclose(found["image"] + found["text"], 1)
    assert found["image"][2] == 0
    assert (found["image"][[0, 1, 3]] > 0.001).all()
    drops = perceptual_score(model, task, rows, permutations=1)
    assert drops["image"][2] == 0
    assert (drops["image"][[0, 1, 3]] != 0).all()
    assert (drops["text"] != 0).all()


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    corpus = digits_corpus(0, DigitsSizes(warmup=10, target=10, pool=20, test=10))
    folder = write_mini_clip(tmp_path_factory.mktemp("clip") / "mini", CAPTIONS)
    model, preprocess, tokenizer = load_clip(str(folder))
    return model, ClipTask(preprocess, tokenizer, corpus.pool, bank_size=16), corpus.pool


def test_clip_is_measured_with_its_seed_and_left_as_it_was(clip):
    model, task, pool = clip
    model.train()
    state = torch.get_rng_state()
    for measure in (
        lambda seed: mm_shap(model, task, pool[:5], pool, samples=2, seed=seed),
        lambda seed: shares(perceptual_score(model, task, pool[:5], permutations=2, seed=seed)),
    ):
        one, again, other = measure(0), measure(0), measure(1)
        np.testing.assert_allclose(one["image"] + one["text"], 1, rtol=1e-12)
        assert ((one["image"] > 0) & (one["text"] > 0)).all()
        assert one["image"].tolist() == again["image"].tolist()
        assert (one["image"] != other["image"]).all()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())


def test_an_image_that_is_the_baseline_has_no_share(clip):
    model, task, _ = clip
    rows = Examples.from_fields(
        [row(CAPTIONS[i], *np.full((32, 32), level)) for i, level in enumerate((90, 60, 120))]
    )
    found = mm_shap(model, task, rows, rows, samples=1)
    assert found["image"][0] == 0
    assert found["text"][0] == 1
    assert (found["image"][1:] > 0).all()


def test_shares_of_nothing_are_zero():
    found = shares({"image": np.array([0.0, -3.0]), "text": np.array([0.0, 1.0])})
    assert {m: own.tolist() for m, own in found.items()} == {"image": [0, 0.75], "text": [0, 0.25]}


def test_what_cannot_be_measured_is_refused(values):
    task = Game(additive)
    lone = Examples.from_fields(
        [{"prompt": "a", "response": "b"}, {"prompt": "c", "response": "d", "image": b""}]
    )
    for message, call in [
        ("no examples to measure", lambda: mm_shap(values, task, SQUARES[:0], SQUARES)),
        ("samples must be at least 1, not 0", lambda: mm_shap(values, task, SQUARES, SQUARES, samples=0)),
        ("permutations must be at least 1", lambda: perceptual_score(values, task, SQUARES, permutations=0)),
        ("a single example has text", lambda: exchange(lone[:1], "text", np.random.default_rng())),
        ("a single example has image", lambda: exchange(lone, "image", np.random.default_rng())),
        (r"baseline 'black\+mean'", lambda: mm_shap(values, task, SQUARES, SQUARES, baseline="black+mean")),
    ]:
        with pytest.raises(InputError, match=message):
            call()
