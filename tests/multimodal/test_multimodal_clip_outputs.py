"""CLIP's training losses, output and features, each against its formula."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from backcast.attribution import collect
from backcast.data import Examples
from backcast.data.corpora import DigitsSizes, digits_corpus
from backcast.kernels import SketchSpec
from backcast.multimodal.clip import ClipTask, load_clip
from backcast.multimodal.mini_clip import write_mini_clip


@pytest.fixture(scope="module")
def corpus():
    return digits_corpus(0, DigitsSizes(warmup=10, target=10, pool=40, test=10))


@pytest.fixture(scope="module")
def clip(corpus, tmp_path_factory) -> tuple[nn.Module, ClipTask]:
    names = [e.fields["caption"] for e in corpus.pool]
    folder = write_mini_clip(tmp_path_factory.mktemp("clip") / "mini", names)
    model, preprocess, tokenizer = load_clip(str(folder))
    task = ClipTask(preprocess, tokenizer, corpus.pool, bank_size=24)
    task.prepare(model.eval())
    return model, task


def embeddings(model: nn.Module, task: ClipTask, rows: Examples) -> tuple[Tensor, Tensor]:
    """Unit image and caption embeddings (n, d) in float64."""
    batch = task.collate(rows)
    with torch.no_grad():
        u, v = model.encode_image(batch["images"]).double(), model.encode_text(batch["tokens"]).double()
    return u / u.norm(dim=1, keepdim=True), v / v.norm(dim=1, keepdim=True)


def captions(rows: Examples) -> list[str]:
    return [e.fields["caption"] for e in rows]


def test_training_losses_are_each_examples_share_of_the_objective(clip, corpus):
    model, task = clip
    rows = corpus.pool[:16]
    names = list(dict.fromkeys(captions(rows)))
    assert len(names) < 16
    u, v = embeddings(model, task, rows)
    e = (model.logit_scale.exp().item() * u @ v[[captions(rows).index(n) for n in names]].T).exp()
    losses = task.training_losses(model, task.collate(rows))
    for b, caption in enumerate(captions(rows)):
        i, equal = names.index(caption), [a for a, other in enumerate(captions(rows)) if other == caption]
        by_text = -math.log(e[b, i] / e[b].sum())
        by_image = -math.log(e[equal, i].sum() / e[:, i].sum())
        share = 16 / (len(names) * len(equal))
        assert losses[b].item() == pytest.approx((by_text + share * by_image) / 2, rel=1e-4)
    assert task.objective(model, task.collate(rows)).item() == pytest.approx(losses.mean().item())


def test_the_output_is_the_mean_log_odds_of_both_directions(clip, corpus):
    model, task = clip
    rows = corpus.pool[:10]
    outputs = task.output(model, task.collate(rows))
    scale = model.logit_scale.exp().item()
    (u, v), (bank_u, bank_v) = embeddings(model, task, rows), embeddings(model, task, task.bank)
    for b, caption in enumerate(captions(rows)):
        others = [j for j, other in enumerate(captions(task.bank)) if other != caption]
        odds = []
        for x, bank in ((u, bank_v), (v, bank_u)):
            e = math.exp(scale * u[b] @ v[b])
            p = e / (e + sum(math.exp(scale * x[b] @ bank[j]) for j in others))
            odds.append(math.log(p / (1 - p)))
        assert outputs[b].item() == pytest.approx(sum(odds) / 2, rel=1e-4, abs=1e-4)


def test_the_outputs_gradients_can_be_collected(clip, corpus, tmp_path):
    model, task = clip
    spec = SketchSpec("sjlt", 64)
    one, many = (
        collect(model, task, corpus.pool[:8], tmp_path / str(size), of="output", spec=spec, batch_size=size)
        for size in (1, 8)
    )
    norms = np.linalg.norm(one.sketches(), axis=1)
    assert np.linalg.norm(many.sketches() - one.sketches(), axis=1).max() <= 1e-4 * norms.max()
    assert norms.min() > 0


def test_features_are_both_unit_embeddings(clip, corpus):
    model, task = clip
    features = task.features(model, task.collate(corpus.pool[:5]))
    expected = torch.cat(embeddings(model, task, corpus.pool[:5]), 1).float()
    torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-6)
