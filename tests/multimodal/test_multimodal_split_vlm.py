"""The split of vision-language models' scores: the default derivative against the exact one, on every family."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from vlm_cases import FAMILIES, fresh, mixed

from backcast.attribution import collect
from backcast.attribution.collect import tracked_weights
from backcast.attribution.gradients.opened import opened
from backcast.kernels import SketchSpec
from backcast.multimodal import Parts, split
from backcast.multimodal.vision_language import VisionLanguageTask
from backcast.tasks.twice import twice_differentiable


class Wide(VisionLanguageTask):
    """In float64, for comparisons without rounding."""

    def collate(self, examples):
        batch = super().collate(examples)
        return {**batch, "pixel_values": batch["pixel_values"].double()}


@pytest.fixture(scope="module", params=FAMILIES)
def case(request, tmp_path_factory):
    model, processor = fresh(request.param)
    model, task, rows = model.double(), Wide(processor), mixed()
    place = tmp_path_factory.mktemp("stores")
    train = collect(model, task, rows, place / "train", spec=SketchSpec("sjlt", 2048))
    target = collect(model, task, rows[[3, 0]], place / "target", like=train)
    return model, task, rows, train, target


def parts(case, **options) -> Parts:
    model, task, rows, train, target = case
    wanted = rows[[3, 0]]
    return split(model, task, rows, wanted, train=train, target=target, score="grad_dot", **options)


@pytest.fixture(scope="module")
def exact(case) -> Parts:
    return parts(case, derivative="exact", tolerance=np.inf)


def scores_by_autograd(case) -> np.ndarray:
    """⟨mean_z ∇ℓ(z), ∇ℓ(x)⟩ of whole gradients, one example at a time."""
    model, task, rows, *_ = case
    gradients = []
    with opened(model), twice_differentiable():
        weights = tracked_weights(model, task)
        for weight in weights:
            weight.requires_grad_(True)
        for i in range(len(rows)):
            loss = task.loss(model, task.collate(rows[i : i + 1]))[0]
            found = torch.autograd.grad(loss, weights, allow_unused=True)
            pairs = zip(found, weights, strict=True)
            gradients.append(
                torch.cat([(torch.zeros_like(w) if g is None else g).flatten() for g, w in pairs])
            )
    stacked = torch.stack(gradients)
    return (stacked @ stacked[[3, 0]].mean(0)).numpy()


def test_the_exact_score_is_that_of_whole_gradients(case, exact):
    np.testing.assert_allclose(exact.first.score, scores_by_autograd(case), rtol=1e-6)


@pytest.mark.parametrize("method", ["integrated_gradients", "shapley"])
def test_the_difference_is_the_double_backward(case, exact, method):
    """A wrong step or a wrong second derivative would still give parts that add up. Both with as many steps."""
    found = parts(case, method=method, tolerance=np.inf)
    reference = exact if method == "integrated_gradients" else parts(case, method=method, derivative="exact")
    for name, one in reference.splits.items():
        near = found.splits[name]
        scale = np.abs(one.score - one.baseline).max()
        for values, wanted in ((near.score, one.score), (near.interaction, one.interaction)):
            np.testing.assert_allclose(values, wanted, atol=1e-3 * scale)
        for modality, part in one.parts.items():
            np.testing.assert_allclose(near.parts[modality], part, atol=1e-3 * scale)


def test_the_parts_are_all_of_the_score(case):
    one = parts(case, baselines=["colour+mean"]).first
    assert not one.flagged().any()
    np.testing.assert_allclose(one.parts["image"] + one.parts["text"], one.score - one.baseline, rtol=0.01)


def test_a_row_without_an_image_has_no_part_of_one(exact):
    for one in exact.splits.values():
        assert one.parts["image"][2] == 0
        assert (np.abs(np.delete(one.parts["image"], 2)) > 0).all()
        assert (one.parts["text"] != 0).all()


def test_maps_cover_every_image_and_every_word(case, exact):
    _, task, rows, *_ = case
    for i, example in enumerate(rows):
        one = exact.first
        assert len(one.maps["text"][i]) == len(task.words(example))
        for modality, maps in one.maps.items():
            assert maps[i].sum() == pytest.approx(one.parts[modality][i], rel=1e-6, abs=1e-12)
    assert one.maps["image"][2].size == 0
    assert one.maps["image"][0].shape[1] > one.maps["image"][1].shape[1]  # two images side by side


def test_in_float32_it_is_the_same_split(case, exact, tmp_path):
    """As users run it."""
    model, task, rows, *_ = case
    narrow, own = model.float(), VisionLanguageTask(task.processor)
    try:
        train = collect(narrow, own, rows, tmp_path / "train", spec=SketchSpec("sjlt", 256))
        target = collect(narrow, own, rows[[3, 0]], tmp_path / "target", like=train)
        found = parts((narrow, own, rows, train, target), tolerance=np.inf)
    finally:
        model.double()
    for name, one in exact.splits.items():
        scale = np.abs(one.score - one.baseline).max()
        for modality, part in one.parts.items():
            np.testing.assert_allclose(found.splits[name].parts[modality], part, atol=1e-2 * scale)
