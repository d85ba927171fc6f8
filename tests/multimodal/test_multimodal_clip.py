"""CLIP: one example's loss depends on no other example, and says what its formula says."""

from __future__ import annotations

import json
import logging
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from backcast.attribution import collect
from backcast.attribution.gradients.capture import GradientCapture
from backcast.attribution.gradients.opened import opened
from backcast.data import Examples
from backcast.data.corpora import DigitsSizes, digits_corpus
from backcast.errors import InputError
from backcast.finetune.train import FinetuneConfig, finetune
from backcast.kernels import SketchSpec, sketcher
from backcast.multimodal.clip import ClipTask, embedding_modules, load_clip
from backcast.multimodal.mini_clip import write_mini_clip
from backcast.tasks import Batch

SPEC = SketchSpec("sjlt", 512)


@pytest.fixture(scope="module")
def corpus():
    return digits_corpus(0, DigitsSizes(warmup=60, target=20, pool=40, test=100))


@pytest.fixture(scope="module")
def folder(corpus, tmp_path_factory) -> Path:
    return write_mini_clip(
        tmp_path_factory.mktemp("clip") / "mini", [e.fields["caption"] for e in corpus.pool]
    )


@pytest.fixture(scope="module")
def loaded(folder):
    return load_clip(str(folder))


@pytest.fixture(scope="module")
def model(loaded) -> nn.Module:
    return loaded[0].eval()


@pytest.fixture
def task(loaded, model, corpus) -> ClipTask:
    _, preprocess, tokenizer = loaded
    task = ClipTask(preprocess, tokenizer, corpus.pool, bank_size=24, seed=3)
    task.prepare(model)
    return task


def embeddings(model: nn.Module, task: ClipTask, rows: Examples) -> tuple[Tensor, Tensor]:
    """Unit image and caption embeddings (n, d) in float64, each row encoded alone."""
    with torch.no_grad():
        batches = [task.collate(rows[b : b + 1]) for b in range(len(rows))]
        u = torch.cat([model.encode_image(b["images"]) for b in batches]).double()
        v = torch.cat([model.encode_text(b["tokens"]) for b in batches]).double()
    return u / u.norm(dim=1, keepdim=True), v / v.norm(dim=1, keepdim=True)


def captions(rows: Examples) -> list[str]:
    return [e.fields["caption"] for e in rows]


def test_the_loss_is_its_formula(model, task, corpus):
    rows = corpus.pool[:10]
    losses = task.loss(model, task.collate(rows))
    scale = model.logit_scale.exp().item()
    (u, v), (bank_u, bank_v) = embeddings(model, task, rows), embeddings(model, task, task.bank)
    for b, caption in enumerate(captions(rows)):
        others = [j for j, other in enumerate(captions(task.bank)) if other != caption]
        assert 0 < len(others) < 24
        own = math.exp(scale * u[b] @ v[b])
        by_text = -math.log(own / (own + sum(math.exp(scale * u[b] @ bank_v[j]) for j in others)))
        by_image = -math.log(own / (own + sum(math.exp(scale * v[b] @ bank_u[j]) for j in others)))
        assert losses[b].item() == pytest.approx((by_text + by_image) / 2, rel=1e-4)


def test_a_loss_does_not_depend_on_the_batch(model, task, corpus):
    rows = corpus.pool[:12]
    alone = torch.cat([task.loss(model, task.collate(rows[b : b + 1])) for b in range(12)])
    together = task.loss(model, task.collate(rows))
    among_equals = task.loss(model, task.collate(corpus.pool[[5] * 4]))
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(among_equals, alone[5].expand(4), rtol=1e-5, atol=1e-5)


def test_a_gradient_does_not_depend_on_the_batch(model, task, corpus, tmp_path):
    one, seven, many = (
        collect(model, task, corpus.pool, tmp_path / str(size), spec=SPEC, batch_size=size).sketches()
        for size in (1, 7, 32)
    )
    norms = np.linalg.norm(one, axis=1)
    assert np.linalg.norm(seven - one, axis=1).max() <= 1e-5 * norms.max()
    assert np.linalg.norm(many - one, axis=1).max() <= 1e-5 * norms.max()


def test_sketches_are_those_of_autograds_gradients(model, task, corpus):
    rows = corpus.pool[:3]
    with opened(model):
        modules = task.modules(model)
        with GradientCapture(model, modules, SPEC) as capture:
            got = capture.sketches(task.loss(model, task.collate(rows)))
        names = {name: module.weight for name, module in modules.items()}
    expected = torch.zeros(3, SPEC.dim)
    for b in range(3):
        loss = task.loss(model, task.collate(rows[b : b + 1]))[0]
        for (name, weight), G in zip(
            names.items(), torch.autograd.grad(loss, list(names.values())), strict=True
        ):
            layer = sketcher(SPEC, name, weight.shape[0], weight[0].numel())
            expected[b] += layer.sketch(layer.keep(G.flatten(1)[None]), torch.eye(len(weight))[None])[0]
    assert (got - expected).norm() <= 1e-5 * expected.norm()


def test_attention_and_mlp_are_tracked_and_the_patch_embedding_is_not(model, task, corpus, tmp_path):
    layers = collect(model, task, corpus.pool[:2], tmp_path / "s", spec=SPEC).header.layers
    parts = ("attn.in_proj", "attn.out_proj", "mlp.c_fc", "mlp.c_proj")
    blocks = [*(f"visual.transformer.resblocks.{i}" for i in range(3)), "transformer.resblocks.0"]
    assert set(layers) == {f"{block}.{part}" for block in blocks for part in parts}
    assert embedding_modules(model) == {"image": model.visual.conv1, "text": model.token_embedding}
    assert model.visual.conv1 not in task.modules(model).values()


def test_the_bank_is_a_seeded_draw_held_constant(loaded, model, task, corpus):
    _, preprocess, tokenizer = loaded

    def bank(**options: int) -> list[str]:
        return list(ClipTask(preprocess, tokenizer, corpus.pool, **options).bank.index.ids)

    assert bank(bank_size=24, seed=3) == list(task.bank.index.ids)
    assert len(set(bank(bank_size=24, seed=3))) == 24
    assert set(bank(bank_size=24, seed=3)) <= set(corpus.pool.index.ids)
    assert bank(bank_size=24, seed=4) != bank(bank_size=24, seed=3)
    assert bank(bank_size=999) == list(corpus.pool.index.ids)
    assert not any(embedding.requires_grad for embedding in task._bank_embeddings)


def test_pairs_of_an_equal_caption_are_no_negatives(loaded, model, corpus):
    _, preprocess, tokenizer = loaded
    caption = corpus.pool[0].fields["caption"]
    equal = Examples.from_fields([{**e.fields, "caption": caption} for e in corpus.pool[:8]])
    task = ClipTask(preprocess, tokenizer, equal)
    task.prepare(model)
    assert task.loss(model, task.collate(corpus.pool[:1])).tolist() == [0.0]
    assert task.objective(model, task.collate(equal)).abs() < 1e-6


def test_a_loss_without_its_bank_is_an_error(loaded, model, corpus):
    _, preprocess, tokenizer = loaded
    task = ClipTask(preprocess, tokenizer, corpus.pool)
    with pytest.raises(RuntimeError, match=r"ClipTask\.prepare\(model\) has not been called"):
        task.loss(model, task.collate(corpus.pool[:1]))


def test_another_bank_is_another_store(loaded, model, task, corpus, tmp_path):
    _, preprocess, tokenizer = loaded
    collect(model, task, corpus.pool[:2], tmp_path / "s", spec=SPEC)
    other = ClipTask(preprocess, tokenizer, corpus.pool, bank_size=24, seed=4)
    with pytest.raises(InputError, match="choose another folder"):
        collect(model, other, corpus.pool[:2], tmp_path / "s", spec=SPEC)


def test_the_objective_is_its_formula(model, task, corpus):
    """Every image with an equal caption is a positive; a caption is a candidate once, however often it occurs."""
    rows = corpus.pool[:16]
    names = list(dict.fromkeys(captions(rows)))
    assert len(names) < 16
    u, v = embeddings(model, task, rows)
    v = torch.stack([v[captions(rows).index(name)] for name in names])
    e = (model.logit_scale.exp().item() * u @ v.T).exp()
    by_text = [-math.log(e[b, names.index(c)] / e[b].sum()) for b, c in enumerate(captions(rows))]
    by_image = [
        -math.log(sum(e[b, i] for b, c in enumerate(captions(rows)) if c == name) / e[:, i].sum())
        for i, name in enumerate(names)
    ]
    expected = (np.mean(by_text) + np.mean(by_image)) / 2
    objective = task.objective(model, task.collate(rows))
    assert objective.item() == pytest.approx(expected, rel=1e-4)
    assert objective.requires_grad


def test_evaluation_is_retrieval_among_the_distinct_captions(model, task, corpus):
    rows = corpus.test[:70]
    names = list(dict.fromkeys(captions(rows)))
    u, v = embeddings(model, task, rows)
    v = torch.stack([v[captions(rows).index(name)] for name in names])
    right = [names[int((u[b] @ v.T).argmax())] == caption for b, caption in enumerate(captions(rows))]
    assert task.evaluate(model, rows) == pytest.approx(np.mean(right))
    assert (task.metric, task.higher_is_better) == ("retrieval@1", True)


def test_a_short_fine_tune_learns_digits(loaded, corpus, folder):
    model, preprocess, tokenizer = load_clip(str(folder))
    task = ClipTask(preprocess, tokenizer, corpus.warmup)
    finetune(model, task, corpus.warmup, FinetuneConfig(steps=40, batch_size=32), seed=0)
    assert task.evaluate(model, corpus.warmup) > 0.6
    assert task.evaluate(model, corpus.test) > 0.3


def test_images_are_decoded_once_while_there_is_room(task, corpus, monkeypatch):
    calls = []
    preprocess = task.preprocess
    task.preprocess = lambda image: calls.append(image) or preprocess(image)
    first = task.collate(corpus.test[:3])["images"]
    assert torch.equal(task.collate(corpus.test[:3])["images"], first)
    assert len(calls) == 3
    monkeypatch.setattr("backcast.multimodal.clip.CACHE_BYTES", 3 * first[0].numel() * 4)
    task._images.clear()
    for _ in range(2):
        assert torch.equal(task.collate(corpus.test[:5])["images"][:3], first)
    assert len(task._images) == 3
    assert len(calls) == 3 + 5 + 2


def test_the_same_captions_and_seed_give_the_same_model(corpus, folder, tmp_path):
    names = captions(corpus.pool)
    torch.manual_seed(99)
    again = write_mini_clip(tmp_path / "again", names)
    other = write_mini_clip(tmp_path / "other", names, seed=1)
    weights = "open_clip_model.safetensors"
    assert (again / weights).read_bytes() == (folder / weights).read_bytes() != (other / weights).read_bytes()


def test_loading_leaves_the_users_logging_alone(folder):
    root = logging.getLogger()
    level = root.level
    load_clip(str(folder))
    assert root.level == level
    assert logging.getLogger("anyone").isEnabledFor(logging.ERROR)
    assert root.manager.disable == logging.NOTSET


def copied(folder: Path, copy: Path) -> Path:
    return Path(shutil.copytree(folder, copy))


def test_folders_without_a_model_are_refused_in_one_line(folder, tmp_path):
    bare = copied(folder, tmp_path / "bare")
    (bare / "open_clip_config.json").unlink()
    with pytest.raises(InputError, match=r"bare: no open_clip_config\.json"):
        load_clip(str(bare))
    weightless = copied(folder, tmp_path / "weightless")
    (weightless / "open_clip_model.safetensors").unlink()
    with pytest.raises(InputError, match="weightless: a model folder without weights"):
        load_clip(str(weightless))
    cut = copied(folder, tmp_path / "cut")
    (cut / "open_clip_model.safetensors").write_bytes(b"\0" * 40)
    wide = copied(folder, tmp_path / "wide")
    config = json.loads((wide / "open_clip_config.json").read_text())
    config["model_cfg"]["embed_dim"] = 32
    (wide / "open_clip_config.json").write_text(json.dumps(config))
    for path in (cut, wide):
        with pytest.raises(InputError, match=rf"{path.name}: open_clip cannot load this model") as told:
            load_clip(str(path))
        assert "\n" not in str(told.value)


def test_names_that_are_no_model_are_refused():
    refused = {
        "ViT-B-23": "not a folder, and open_clip knows no architecture 'ViT-B-23'; is it .*'ViT-B-32'.*?",
        "vit-b-32/openai": "open_clip knows no architecture 'vit-b-32'; is it 'ViT-B-32' or .*?",
        "nowhere/digits": r"open_clip knows no architecture 'nowhere'; open_clip.list_models\(\) names them",
        "ViT-B-32/opena": "open_clip knows no weights 'opena' of ViT-B-32; is it 'openai'?",
        "ViT-B/32/nonsense": r"no weights 'nonsense' of ViT-B-32; open_clip.list_pretrained\(\) names them",
    }
    for name, reason in refused.items():
        with pytest.raises(InputError, match=f"^{name}: .*{reason}$".replace("?$", r"\?$")) as told:
            load_clip(name)
        assert "\n" not in str(told.value)


def test_an_architecture_without_patches_or_tokens_is_refused():
    class Towers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.visual, self.text = nn.Linear(2, 2), nn.Embedding(2, 2)

    with pytest.raises(InputError, match="Towers: its patch or token embedding cannot be found"):
        embedding_modules(Towers())


def test_a_batch_holds_what_it_says(task, corpus):
    batch: Batch = task.collate(corpus.pool[:4])
    assert batch["images"].shape == (4, 3, 32, 32)
    assert batch["tokens"].shape == (4, 8)
    assert batch["captions"] == captions(corpus.pool[:4])
