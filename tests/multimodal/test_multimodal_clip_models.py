"""open_clip's models: every tower's tracked gradients are autograd's, and names and configurations load."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import PreTrainedTokenizerFast, RobertaConfig

from backcast.attribution.collect import tracked
from backcast.attribution.gradients.capture import GradientCapture
from backcast.attribution.gradients.opened import opened
from backcast.data import Examples
from backcast.data.corpora import DigitsSizes, digits_corpus
from backcast.errors import InputError
from backcast.files import write_json
from backcast.kernels import SketchSpec, sketcher
from backcast.multimodal.clip import ClipTask, load_clip, trained_with
from backcast.multimodal.mini_clip import PREPROCESS, write_mini_clip

WIDTH = 32
VIT = {"image_size": 32, "layers": 2, "width": WIDTH, "patch_size": 8, "head_width": 16}
POOLED = {**VIT, "attentional_pool": True, "attn_pooler_queries": 4, "attn_pooler_heads": 2}
RESNET = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16}
SIGLIP = {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "map", "timm_proj": "none"}
TEXT = {"context_length": 8, "width": WIDTH, "heads": 2, "layers": 1, "hf_tokenizer_name": "words"}
SIGLIP_TEXT = {**TEXT, "no_causal_mask": True, "proj_bias": True, "pool_type": "last"}
ROBERTA = {
    "hf_model_name": "roberta",
    "hf_tokenizer_name": "words",
    "context_length": 8,
    "hf_proj_type": "mlp",
}
CAPTIONER = {**TEXT, "embed_cls": True, "output_tokens": True}

#: By name: the whole model's form, and whether its loss is the sigmoid's.
MODELS: dict[str, tuple[dict[str, Any], bool]] = {
    "vit": ({"vision_cfg": VIT, "text_cfg": TEXT}, False),
    "custom text": ({"custom_text": True, "vision_cfg": VIT, "text_cfg": TEXT}, False),
    "pooled by attention": ({"embed_dim": 48, "vision_cfg": POOLED, "text_cfg": TEXT}, False),
    "residual": ({"vision_cfg": RESNET, "text_cfg": TEXT}, False),
    "siglip": (
        {
            "embed_dim": 64,
            "init_logit_bias": -10,
            "custom_text": True,
            "vision_cfg": SIGLIP,
            "text_cfg": SIGLIP_TEXT,
        },
        True,
    ),
    "roberta": ({"vision_cfg": VIT, "text_cfg": ROBERTA}, False),
    "captioner": (
        {
            "embed_dim": 48,
            "custom_text": True,
            "vision_cfg": {**POOLED, "output_tokens": True},
            "text_cfg": CAPTIONER,
            "multimodal_cfg": {"context_length": 8, "width": 48, "heads": 2, "layers": 1},
        },
        False,
    ),
}
SPEC = SketchSpec("sjlt", 512)


@pytest.fixture(scope="module")
def pool() -> Examples:
    return digits_corpus(0, DigitsSizes(warmup=10, target=10, pool=12, test=10)).pool


@pytest.fixture(scope="module")
def folder(pool, tmp_path_factory) -> Path:
    """A mini model's folder, for its tokenizer and weights."""
    return write_mini_clip(tmp_path_factory.mktemp("clip") / "mini", [e.fields["caption"] for e in pool])


def configuration(folder: Path, name: str) -> Path:
    """The JSON file of one of `MODELS`, beside the tokenizer."""
    config = {"embed_dim": WIDTH, **MODELS[name][0]}
    vocabulary = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]["text_cfg"][
        "vocab_size"
    ]
    text = {"vocab_size": vocabulary, **config["text_cfg"]}
    if "multimodal_cfg" in config:
        config["multimodal_cfg"] = {"vocab_size": vocabulary, **config["multimodal_cfg"]}
    if "hf_model_name" in text:
        small = {
            "hidden_size": WIDTH,
            "num_attention_heads": 2,
            "num_hidden_layers": 1,
            "intermediate_size": 48,
        }
        RobertaConfig(vocab_size=vocabulary, pad_token_id=0, **small).save_pretrained(folder / "roberta")
        text["hf_model_name"] = str(folder / "roberta")
    path = folder / f"{name.replace(' ', '_')}.json"
    write_json(path, {"model_cfg": {**config, "text_cfg": text}, "preprocess_cfg": PREPROCESS})
    return path


@pytest.fixture(scope="module", params=MODELS)
def case(request, folder, pool) -> tuple[nn.Module, ClipTask]:
    model, preprocess, tokenizer = load_clip(str(configuration(folder, request.param)))
    assert trained_with(model) == ("sigmoid" if MODELS[request.param][1] else "contrastive")
    task = ClipTask(preprocess, tokenizer, pool, loss=trained_with(model))
    model.eval()
    task.prepare(model)
    return model, task


def test_sketches_are_those_of_autograds_gradients(case, pool):
    """Of every tracked weight: none is missed by the hooks, and the loss depends on each."""
    model, task = case
    rows = pool[:3]
    with opened(model):
        modules = tracked(model, task)
        with GradientCapture(model, modules, SPEC) as capture:
            got = capture.sketches(task.loss(model, task.collate(rows)))
        weights = {name: module.weight for name, module in modules.items()}
    expected = torch.zeros(3, SPEC.dim)
    for b in range(3):
        loss = task.loss(model, task.collate(rows[b : b + 1]))[0]
        for (name, weight), G in zip(
            weights.items(), torch.autograd.grad(loss, list(weights.values())), strict=True
        ):
            layer = sketcher(SPEC, name, weight.shape[0], weight[0].numel())
            expected[b] += layer.sketch(layer.keep(G.flatten(1)[None]), torch.eye(len(weight))[None])[0]
    assert expected.norm() > 0
    assert (got - expected).norm() <= 1e-4 * expected.norm()
    assert any(name.startswith("visual.") for name in weights)
    assert any(not name.startswith("visual.") for name in weights)


def test_the_loss_is_a_function_of_the_contents(case, pool):
    model, task = case
    batch = task.collate(pool[:3])
    own = {m: value.detach().requires_grad_() for m, value in task.contents(model, batch).items()}
    losses = task.loss_at(model, batch, own)
    torch.testing.assert_close(losses, task.loss(model, batch), rtol=1e-5, atol=1e-5)
    for gradient in torch.autograd.grad(losses.sum(), list(own.values())):
        assert (gradient.flatten(1).norm(dim=1) > 0).all()
    swapped = {m: value.flip(0) for m, value in own.items()}
    flipped = {k: v.flip(0) if isinstance(v, torch.Tensor) else v[::-1] for k, v in batch.items()}
    torch.testing.assert_close(task.loss_at(model, flipped, swapped), losses.flip(0), rtol=1e-5, atol=1e-5)


def test_players_are_the_captions_words(case, pool):
    _, task = case
    players = task.players(task.collate(pool[:3]))
    for example, row in zip(pool[:3], players, strict=True):
        assert task.words(example) == example.fields["caption"].split()
        assert int(row.sum()) == len(task.words(example))


def test_configurations_and_bare_architectures_are_untrained_and_seeded(folder, caplog):
    state = torch.random.get_rng_state()
    for name in (str(configuration(folder, "vit")), "ViT-S-32-alt"):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "backcast"):
            first, _, tokenizer = load_clip(name)
        assert caplog.messages == [
            f"{name}: no weights are named, so these are random (seed 0); the model is untrained"
        ]
        same, other = (load_clip(name, seed=seed)[0].visual.proj for seed in (0, 1))
        assert torch.equal(first.visual.proj, same)
        assert not torch.equal(first.visual.proj, other)
        assert first.encode_text(tokenizer(["seven"])).shape == (1, first.visual.output_dim)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_configurations_preprocessing_and_weights(folder):
    """Beside weights, a configuration that is named by itself does not load them."""
    _, trained_preprocess, _ = load_clip(str(folder))
    model, preprocess, _ = load_clip(str(folder / "open_clip_config.json"), seed=5)
    trained, _, _ = load_clip(str(folder))
    assert str(preprocess) == str(trained_preprocess)
    assert "mean=[0.3, 0.3, 0.3]" in str(preprocess)
    assert not torch.equal(model.visual.proj, trained.visual.proj)
    assert {n: p.shape for n, p in model.named_parameters()} == {
        n: p.shape for n, p in trained.named_parameters()
    }


def test_files_that_are_no_configuration_are_refused_in_one_line(folder, tmp_path):
    refused = {
        "missing": (None, "not a JSON file that can be read"),
        "cut": ('{"model_cfg"', "not a JSON file that can be read"),
        "list": (
            "[]",
            "not a configuration of open_clip; its model_cfg lacks embed_dim, vision_cfg, text_cfg",
        ),
        "towerless": ('{"model_cfg": {"embed_dim": 8, "text_cfg": {}}}', "its model_cfg lacks vision_cfg$"),
        "odd": (
            '{"embed_dim": 8, "vision_cfg": {"no_such": 1}, "text_cfg": {}}',
            "open_clip cannot load this model .*no_such",
        ),
    }
    for name, (text, reason) in refused.items():
        path = tmp_path / f"{name}.json"
        if text is not None:
            path.write_text(text)
        with pytest.raises(InputError, match=rf"{name}\.json: .*{reason}") as told:
            load_clip(str(path))
        assert "\n" not in str(told.value)


def test_a_folders_own_code_is_not_run(folder, tmp_path):
    """A configuration may ask open_clip to trust a tokenizer's code; loading must not."""
    place = Path(shutil.copytree(folder, tmp_path / "foreign"))
    config = json.loads((place / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = {"trust_remote_code": True}
    write_json(place / "open_clip_config.json", config)
    (place / "theirs.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass T: ...\n")
    tokenizer = json.loads((place / "tokenizer_config.json").read_text())
    tokenizer |= {"auto_map": {"AutoTokenizer": ["theirs.T", "theirs.T"]}, "tokenizer_class": "T"}
    write_json(place / "tokenizer_config.json", tokenizer)
    for name in (place, place / "open_clip_config.json"):
        with contextlib.suppress(InputError):
            load_clip(str(name))
    assert not (tmp_path / "ran").exists()


def test_pickled_code_is_not_run(folder, tmp_path):
    class Harm:
        def __reduce__(self) -> tuple[Any, ...]:
            return open, (str(tmp_path / "ran"), "w")

    place = Path(shutil.copytree(folder, tmp_path / "pickled"))
    weights = load_file(place / "open_clip_model.safetensors")
    (place / "open_clip_model.safetensors").unlink()
    torch.save(weights, place / "open_clip_pytorch_model.bin")
    same = load_clip(str(place))[0].state_dict()
    assert all(torch.equal(same[name], value) for name, value in weights.items())
    torch.save({**weights, "logit_scale": Harm()}, place / "open_clip_pytorch_model.bin")
    with pytest.raises(InputError, match="pickled: open_clip cannot load this model"):
        load_clip(str(place))
    assert not (tmp_path / "ran").exists()


def test_clips_own_tokenizer_pads_with_a_words_id(pool):
    """Of "!": so the words end at the end mark, and not at the first token of id 0."""
    tokenizer = open_clip.tokenizer.SimpleTokenizer(context_length=12)
    task = ClipTask(lambda image: image, tokenizer, pool)
    tokens = tokenizer(["Stop! a red bus", "!"])
    assert (tokens == 0).any(1).all()
    assert task.players({"tokens": tokens}).sum(1).tolist() == [5, 1]
    example = Examples.from_fields([{"image": pool[0].fields["image"], "caption": "Stop! a red bus"}])[0]
    assert task.words(example) == ["stop", "!", "a", "red", "bus"]
    assert task.filler() == 0


def test_a_tokenizer_without_a_start_mark_loses_no_word(pool):
    """SigLIP's, whose end mark is also its padding."""
    words = {"</s>": 0, "<unk>": 1, "a": 2, "red": 3, "bus": 4}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 0)])
    marks = {"eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=inner, **marks)

    def tokenizer(captions: list[str]) -> torch.Tensor:
        return fast(captions, return_tensors="pt", padding="max_length", max_length=6).input_ids

    tokenizer.tokenizer = fast
    task = ClipTask(lambda image: image, tokenizer, pool)
    tokens = tokenizer(["a red bus", "a green bus"])
    assert task.players({"tokens": tokens}).tolist() == [[True] * 3 + [False] * 3] * 2
    assert task.filler() == 0
