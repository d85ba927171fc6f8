"""The sigmoid loss: against its formula in float64, open_clip's own, and the gradients of a whole batch's."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from open_clip.loss import SigLipLoss
from torch import Tensor, nn

from backcast.attribution import collect
from backcast.attribution.collect import tracked_weights
from backcast.attribution.gradients.opened import opened
from backcast.data import Example, Examples
from backcast.data.corpora import DigitsSizes, digits_corpus
from backcast.errors import InputError
from backcast.files import write_json
from backcast.kernels import SketchSpec
from backcast.multimodal import load_task
from backcast.multimodal.clip import ClipTask, load_clip
from backcast.multimodal.line import Difference, Exact
from backcast.multimodal.mini_clip import write_mini_clip
from backcast.tasks import Batch

SPEC = SketchSpec("sjlt", 128)
#: Beyond 100, which bounds CLIP's scale and not SigLIP's.
SCALE, BIAS = 120.0, -10.0


class Wide(ClipTask):
    """In float64, for comparisons without rounding."""

    def collate(self, examples: Sequence[Example]) -> Batch:
        batch = super().collate(examples)
        return {**batch, "images": batch["images"].double()}


@pytest.fixture(scope="module")
def pool() -> Examples:
    return digits_corpus(0, DigitsSizes(warmup=10, target=10, pool=40, test=10)).pool


@pytest.fixture(scope="module")
def configuration(pool, tmp_path_factory) -> Path:
    """A mini model's, with a bias."""
    folder = write_mini_clip(tmp_path_factory.mktemp("clip") / "mini", captions(pool))
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"] |= {"init_logit_scale": math.log(SCALE), "init_logit_bias": BIAS}
    write_json(folder / "siglip.json", config)
    return folder / "siglip.json"


@pytest.fixture(scope="module")
def loaded(configuration):
    return load_clip(str(configuration))


@pytest.fixture(scope="module")
def model(loaded) -> nn.Module:
    return loaded[0].double().eval()


@pytest.fixture
def task(loaded, model, pool) -> Wide:
    return prepared(loaded, pool, bank_size=24, seed=3)


def prepared(loaded, bank: Examples, **options: int) -> Wide:
    model, preprocess, tokenizer = loaded
    task = Wide(preprocess, tokenizer, bank, loss="sigmoid", **options)
    task.prepare(model)
    return task


def captions(rows: Examples) -> list[str]:
    return [e.fields["caption"] for e in rows]


def logits(model: nn.Module, task: ClipTask, images: Examples, texts: Examples) -> np.ndarray:
    """s⟨u_i, v_j⟩ + β of each of the images with each of the texts."""
    with torch.no_grad():
        u = model.encode_image(task.collate(images)["images"])
        v = model.encode_text(task.collate(texts)["tokens"])
    u, v = u / u.norm(dim=1, keepdim=True), v / v.norm(dim=1, keepdim=True)
    scale = math.exp(model.logit_scale.item())
    assert scale == pytest.approx(SCALE)
    return (scale * u @ v.T + BIAS).numpy()


def positive(x: float) -> float:
    return math.log1p(math.exp(-x))


def negative(x: float) -> float:
    return math.log1p(math.exp(x))


def flat_gradient(model: nn.Module, task: ClipTask, scalar: Callable[[], Tensor]) -> Tensor:
    with opened(model):
        weights = tracked_weights(model, task)
        return torch.cat([g.flatten() for g in torch.autograd.grad(scalar(), weights)])


def test_the_loss_is_its_formula(model, task, pool):
    rows = pool[:10]
    losses = task.loss(model, task.collate(rows))
    own, texts, images = (
        logits(model, task, a, b) for a, b in ((rows, rows), (rows, task.bank), (task.bank, rows))
    )
    for b, caption in enumerate(captions(rows)):
        others = [j for j, other in enumerate(captions(task.bank)) if other != caption]
        assert 0 < len(others) < 24
        expected = positive(own[b, b]) + sum(negative(texts[b, j]) + negative(images[j, b]) for j in others)
        assert losses[b].item() == pytest.approx(expected, rel=1e-9)


def test_the_output_is_the_own_logit(model, task, pool):
    own = logits(model, task, pool[:6], pool[:6])
    np.testing.assert_allclose(
        task.output(model, task.collate(pool[:6])).detach().numpy(), np.diag(own), rtol=1e-9
    )


def test_a_gradient_does_not_depend_on_the_batch(model, task, pool, tmp_path):
    one, many = (
        collect(model, task, pool[:12], tmp_path / str(size), spec=SPEC, batch_size=size).sketches()
        for size in (1, 12)
    )
    norms = np.linalg.norm(one, axis=1)
    assert np.linalg.norm(many - one, axis=1).max() <= 1e-5 * norms.min()


def test_the_gradients_beside_the_rest_of_a_batch_are_the_batchs(model, loaded, pool):
    """With the batch itself as the bank: what flows through the bank's embeddings is the other pairs' own part."""
    rows = pool[:16]
    assert len(set(captions(rows))) < 16
    task = prepared(loaded, rows)
    batch = task.collate(rows)
    each = flat_gradient(model, task, lambda: task.loss(model, batch).mean())
    whole = flat_gradient(model, task, lambda: task.objective(model, batch))
    torch.testing.assert_close(each, whole, rtol=1e-9, atol=1e-9 * whole.abs().max().item())


def test_the_objective_of_distinct_captions_is_open_clips(model, task, pool):
    first = {caption: b for b, caption in reversed(list(enumerate(captions(pool))))}
    rows = pool[sorted(first.values())]
    assert len(rows) > 5
    batch = task.collate(rows)
    peer = SigLipLoss()(*model(batch["images"], batch["tokens"]))
    torch.testing.assert_close(task.objective(model, batch), peer, rtol=1e-9, atol=0)


def test_training_losses_are_each_examples_share_of_the_objective(model, task, pool):
    rows = pool[:16]
    x = logits(model, task, rows, rows)
    losses = task.training_losses(model, task.collate(rows)).detach().numpy()
    for b, caption in enumerate(captions(rows)):
        others = [j for j, other in enumerate(captions(rows)) if other != caption]
        expected = positive(x[b, b]) + sum(negative(x[b, j]) + negative(x[j, b]) for j in others) / 2
        assert losses[b] == pytest.approx(expected, rel=1e-9)
    assert task.objective(model, task.collate(rows)).item() == pytest.approx(losses.mean(), rel=1e-9)


def test_pairs_of_an_equal_caption_are_no_negatives(model, loaded, pool):
    caption = captions(pool)[0]
    equal = Examples.from_fields([{**e.fields, "caption": caption} for e in pool[:8]])
    task = prepared(loaded, equal)
    own = [positive(x) for x in np.diag(logits(model, task, equal, equal))]
    for losses in (task.loss, task.training_losses):
        np.testing.assert_allclose(losses(model, task.collate(equal)).detach().numpy(), own, rtol=1e-9)


def test_the_central_difference_agrees_with_the_double_backward(model, task, pool):
    batch = task.collate(pool[:4])
    with opened(model):
        weights = tracked_weights(model, task)
        generator = torch.Generator().manual_seed(0)
        w = [torch.randn(v.shape, generator=generator, dtype=v.dtype) for v in weights]
        own = {m: value.detach() for m, value in task.contents(model, batch).items()}
        fast, exact = (kind(model, task, weights, w).scores(batch, [own])[0] for kind in (Difference, Exact))
    torch.testing.assert_close(fast, exact, rtol=1e-3, atol=1e-3 * exact.abs().max().item())


def test_the_models_bias_chooses_the_loss(configuration, pool):
    _, by_bias = load_task(str(configuration), pool)
    _, by_default = load_task(str(configuration.parent), pool)
    bank = pool[:256].index.fingerprint
    assert by_bias.settings() == {"bank": bank, "loss": "sigmoid"}
    assert by_default.settings() == {"bank": bank}


def test_another_loss_is_another_store(loaded, model, task, pool, tmp_path):
    _, preprocess, tokenizer = loaded
    collect(model, task, pool[:2], tmp_path / "s", spec=SPEC)
    contrastive = Wide(preprocess, tokenizer, pool, bank_size=24, seed=3)
    with pytest.raises(InputError, match="choose another folder"):
        collect(model, contrastive, pool[:2], tmp_path / "s", spec=SPEC)
    with pytest.raises(InputError, match="loss 'siglip' does not exist; choose one of contrastive, sigmoid"):
        ClipTask(preprocess, tokenizer, pool, loss="siglip")
