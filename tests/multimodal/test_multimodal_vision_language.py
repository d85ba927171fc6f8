"""Vision-language models: what a row's loss is, whatever it stands beside, and whose gradients are whose."""

from __future__ import annotations

import copy
import io
import json
import pickle
import shutil

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from tokenizers import processors
from torch import Tensor, nn
from vlm_cases import FAMILIES, QWEN_CHAT, folder_of, fresh, loaded, mixed, picture, said

from backcast.attribution import collect
from backcast.attribution.gradients.capture import GradientCapture
from backcast.data import Example, Examples
from backcast.errors import InputError
from backcast.finetune.train import FinetuneConfig, finetune
from backcast.kernels import SketchSpec, sketcher
from backcast.multimodal.mini_vlm import write_mini_vlm
from backcast.multimodal.task import take
from backcast.multimodal.vision_language import VisionLanguageTask, load_vision_language
from backcast.tasks.hashes import weights_hash
from backcast.tasks.head import IGNORE, whole_logits

SPEC = SketchSpec("sjlt", 256)
ANSWERS = [["the square , left"], ["it is red"], ["no"], ["a circle", "it is blue ."]]
WORDS = [
    "which shape is the big one ? and where ?",
    "what color is this ?",
    "is a square red ?",
    "you are brief . what is this ? and what color ?",
]


def task_of(family: str, **options) -> tuple[nn.Module, VisionLanguageTask]:
    model, processor = loaded(family)
    return model, VisionLanguageTask(processor, **options)


def each_alone(model: nn.Module, task: VisionLanguageTask, rows: Examples) -> Tensor:
    return torch.cat([task.loss(model, task.collate(rows[b : b + 1])) for b in range(len(rows))])


def tracked(model: nn.Module, task: VisionLanguageTask) -> dict[str, Tensor]:
    return {
        name: module.weight for name, module in task.modules(model).items() if module.weight.requires_grad
    }


def exact_sketches(model: nn.Module, task: VisionLanguageTask, rows: Examples) -> Tensor:
    """(B, k): one example, one forward, one backward by autograd, and the sketch of the whole gradients."""
    weights = tracked(model, task)
    sketches = []
    for b in range(len(rows)):
        loss = task.loss(model, task.collate(rows[b : b + 1]))[0]
        found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True, materialize_grads=True)
        total = torch.zeros(SPEC.dim)
        for name, G in zip(weights, found, strict=True):
            layer = sketcher(SPEC, name, *G.shape)
            total += layer.sketch(layer.keep(G[None]), torch.eye(len(G))[None])[0]
        sketches.append(total)
    return torch.stack(sketches)


def close(left: Tensor, right: Tensor) -> None:
    assert (left - right).norm(dim=1).max() <= 1e-5 * right.norm(dim=1).max()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_row_has_the_same_loss_in_any_batch(family, reduction):
    """Two images, one, none and several turns; of different lengths, and of different sizes where it may be."""
    model, task = task_of(family, reduction=reduction)
    rows = mixed()
    together = task.loss(model, task.collate(rows))
    torch.testing.assert_close(together, each_alone(model, task, rows), atol=1e-5, rtol=1e-5)
    turned = task.loss(model, take(task.collate(rows), torch.tensor([2, 2, 0])))
    torch.testing.assert_close(turned, together[[2, 2, 0]], atol=1e-5, rtol=1e-5)
    texts = rows[[2, 2]]
    torch.testing.assert_close(task.loss(model, task.collate(texts)), together[[2, 2]], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_is_the_cross_entropy_of_what_the_assistant_says(family):
    """Against the model called by hand with what the processor itself makes of the conversation."""
    model, task = task_of(family)
    processor = task.processor
    rows = mixed()
    for b, answers in enumerate(ANSWERS):
        labels = task.collate(rows[b : b + 1])["labels"][0]
        end = processor.tokenizer.eos_token
        said = "".join(f"{answer} {end}" for answer in answers)
        assert (
            processor.tokenizer.decode(labels[labels != IGNORE]).split()
            == said.replace(end, f"{end} ").split()
        )
        fields = rows[b].fields
        images = [
            Image.open(io.BytesIO(x))
            for x in fields.get("images", [fields["image"]] if "image" in fields else [])
        ]
        text = task._written(rows[b], _messages(rows[b]))
        inputs = processor(
            text=[text], images=[images] if images else None, return_tensors="pt", add_special_tokens=False
        )
        logprobs = model(**inputs).logits[0].double().log_softmax(-1)
        assert len(labels) == len(logprobs)
        each = [-logprobs[t - 1, label] for t, label in enumerate(labels) if label != IGNORE]
        loss = task.loss(model, task.collate(rows[b : b + 1]))[0]
        assert loss.item() == pytest.approx((sum(each) / len(each)).item(), rel=1e-5)


def _messages(example: Example) -> list[dict]:
    fields = example.fields
    if "messages" not in fields:
        return [said("user", "<image>", fields["prompt"]), said("assistant", fields["response"])]
    return [said(m["role"], m["content"]) if isinstance(m["content"], str) else m for m in fields["messages"]]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_at_the_own_contents_is_the_loss(family):
    model, task = task_of(family)
    batch = task.collate(mixed())
    contents = task.contents(model, batch)
    torch.testing.assert_close(
        task.loss_at(model, batch, contents), task.loss(model, batch), rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_changes_with_the_contents_of_its_own_row_alone(family):
    """Gradients by pixels and by words: of every image that is there, of no padding, of no other row."""
    model, task = task_of(family)
    batch = task.collate(mixed())
    contents = {name: x.detach().requires_grad_() for name, x in task.contents(model, batch).items()}
    losses = task.loss_at(model, batch, contents)
    there = torch.arange(contents["image"].shape[1]) < batch["pixel_values_count"][:, None]
    for b in range(len(losses)):
        image, text = torch.autograd.grad(losses[b], list(contents.values()), retain_graph=True)
        felt = image.flatten(2).abs().amax(2) > 0
        assert torch.equal(felt[b], there[b])
        assert not felt[torch.arange(len(felt)) != b].any()
        assert not text[torch.arange(len(text)) != b].any()
        assert (text[b][batch["players"][b]].abs().amax(1) > 0).all()
        assert not text[b][batch["input_ids"][b] == task.processor.image_token_id].any()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_without_images_still_has_a_gradient_by_them(family):
    model, task = task_of(family)
    batch = task.collate(mixed()[[2]])
    contents = {name: x.detach().requires_grad_() for name, x in task.contents(model, batch).items()}
    image, text = torch.autograd.grad(task.loss_at(model, batch, contents).sum(), list(contents.values()))
    assert not image.any()
    assert text.any()


def test_an_image_of_zeros_is_no_padding():
    """Idefics3 and SmolVLM take an image that is zero everywhere for padding, and then miss one."""
    model, task = task_of("smol")
    batch = task.collate(mixed())
    contents = task.contents(model, batch)
    zeros, small = (
        task.loss_at(model, batch, contents | {"image": torch.full_like(contents["image"], value)})
        for value in (0, 1e-7)
    )
    torch.testing.assert_close(zeros, small, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_players_are_the_words_of_user_and_system(family):
    _, task = task_of(family)
    rows = mixed()
    batch = task.collate(rows)
    players, ids = task.players(batch), task.token_ids(batch)
    for b, words in enumerate(WORDS):
        assert task.words(rows[b]) == words.split()
        assert task.tokenizer.decode(ids[b][players[b]]).split() == words.split()
    assert not (players & (batch["labels"] != IGNORE)).any()
    assert not (players & (batch["attention_mask"] == 0)).any()
    assert task.filler() == task.tokenizer.pad_token_id


def test_a_word_of_the_template_is_no_player_where_the_template_says_it():
    _, task = task_of("smol")
    rows = Examples.from_fields([{"prompt": "Assistant : User", "response": "Assistant"}])
    ids = task.collate(rows)["input_ids"][0]
    end = "<end_of_utterance>"
    assert (
        task.tokenizer.decode(ids)
        == f"<|im_start|> User : Assistant : User {end} Assistant : Assistant {end}"
    )
    assert task.collate(rows)["players"][0].nonzero()[:, 0].tolist() == [3, 4, 5]


def test_a_begin_token_comes_once():
    """Whether the chat template writes it, or the tokenizer puts it before every text."""
    processor = copy.deepcopy(loaded("llava")[1])
    own = VisionLanguageTask(processor).collate(mixed())
    processor.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", processor.tokenizer.bos_token_id)]
    )
    templates = [processor.chat_template, processor.chat_template.removeprefix("{{ bos_token }}")]
    assert templates[0] != templates[1]
    for template in templates:
        processor.chat_template = template
        batch = VisionLanguageTask(processor).collate(mixed())
        assert all(torch.equal(batch[name], own[name]) for name in ("input_ids", "labels", "players"))


@pytest.mark.parametrize("family", FAMILIES)
def test_altered_pixels_are_those_of_altered_images(family):
    _, task = task_of(family)
    rows = mixed()[[0, 1, 2]]
    own = task.collate(rows)["pixel_values"]
    assert torch.equal(task.pixels(rows, lambda image: image), own)

    def altered(b: bytes) -> bytes:
        buffer = io.BytesIO()
        ImageOps.invert(Image.open(io.BytesIO(b))).save(buffer, "PNG")
        return buffer.getvalue()

    inverted = Examples.from_fields(
        [
            {**row.fields, **({"images": [altered(x) for x in row.fields["images"]]} if "images" in row.fields else {}),
             **({"image": altered(row.fields["image"])} if "image" in row.fields else {})}
            for row in rows
        ]
    )  # fmt: skip
    pixels = task.pixels(rows, ImageOps.invert)
    assert torch.equal(pixels, task.collate(inverted)["pixel_values"])
    assert not torch.equal(pixels, own)


#: Of each family what the four rows' maps are.
SHAPES = {
    "llava": [(4, 8), (4, 4), (0, 0), (4, 4)],
    "qwen": [(4, 8), (4, 2), (0, 0), (4, 4)],
    "smol": [(2, 4), (2, 2), (0, 0), (2, 2)],
    "smol split": [(2, 16), (2, 6), (0, 0), (2, 10)],
}


@pytest.mark.parametrize("family", FAMILIES)
def test_patches_lie_side_by_side_and_add_up(family):
    _, task = task_of(family)
    batch = task.collate(mixed())
    values = torch.rand(batch["pixel_values"].shape, generator=torch.Generator().manual_seed(0)).numpy()
    maps = task.patches(values, batch)
    assert [m.shape for m in maps] == SHAPES[family]
    for own, m, count in zip(values, maps, batch["pixel_values_count"], strict=True):
        assert m.sum() == pytest.approx(own[:count].sum(), rel=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_bright_corner_is_bright_on_the_map(family):
    """White in the upper right eighth of an image's width, black elsewhere."""
    _, task = task_of(family)
    image = np.zeros((32, 32, 3), np.uint8)
    image[:8, 24:] = 255
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    rows = Examples.from_fields([{"image": buffer.getvalue(), "prompt": "what ?", "response": "red"}])
    (patches,) = task.patches(task.collate(rows)["pixel_values"].numpy(), task.collate(rows))
    whole = patches[:, -patches.shape[0] :]  # of tiles the last is the whole image
    assert np.unravel_index(whole.argmax(), whole.shape) == (0, whole.shape[1] - 1)
    assert (
        whole > whole.min() + 1e-3 * np.ptp(whole)
    ).sum() <= 2  # bicubic and Lanczos filters spill a little


@pytest.mark.parametrize("family", FAMILIES)
def test_sketches_of_a_mixed_batch_are_those_of_rows_alone(family, tmp_path):
    model, task = task_of(family)
    rows = mixed()[[2, 0, 1, 3]]  # as many images as rows, but not one each
    expected = exact_sketches(model, task, rows)
    with GradientCapture(model, task.modules(model), SPEC) as capture:
        close(capture.sketches(task.loss(model, task.collate(rows))), expected)
        close(capture.sketches(task.loss(model, task.collate(rows[:1]))), expected[:1])
    stored = collect(model, task, rows, tmp_path / "s", spec=SPEC, batch_size=4).sketches()
    close(torch.from_numpy(stored.astype(np.float32)), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_linear_layer_but_the_head_is_tracked_and_no_patch_embedding(family):
    model, task = task_of(family)
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert set(task.modules(model)) == linear - {"lm_head"}
    assert any("vision" in name or "visual" in name for name in linear)


@pytest.mark.parametrize("family", FAMILIES)
def test_of_a_model_with_adapters_they_alone_are_sketched(family, tmp_path):
    peft = pytest.importorskip("peft")
    model, processor = fresh(family)
    names = ["q_proj", "v_proj", "qkv", "fc1"]
    model = peft.get_peft_model(
        model, peft.LoraConfig(r=2, target_modules=names, init_lora_weights=False)
    ).eval()
    task, rows = VisionLanguageTask(processor), mixed()
    store = collect(model, task, rows, tmp_path / "s", spec=SPEC, batch_size=4)
    assert all("lora_" in name for name in store.header.layers)
    assert any("vision" in name or "visual" in name for name in store.header.layers)
    assert any("language_model" in name or "text_model" in name for name in store.header.layers)
    close(torch.from_numpy(store.sketches().astype(np.float32)), exact_sketches(model, task, rows))


def test_a_tower_alone_has_zero_gradients_where_no_row_has_an_image(tmp_path):
    model, processor = fresh("llava")
    model.requires_grad_(False)
    model.model.multi_modal_projector.requires_grad_(True)
    rows = mixed()
    store = collect(model, VisionLanguageTask(processor), rows, tmp_path / "s", spec=SPEC, batch_size=1)
    assert set(store.header.layers) == {f"model.multi_modal_projector.linear_{i}" for i in (1, 2)}
    norms = np.linalg.norm(store.sketches().astype(np.float64), axis=1)
    assert norms[2] == 0
    assert (norms[[0, 1, 3]] > 0).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_frozen_head_is_fused_and_changes_nothing(family):
    model, processor = fresh(family)
    model.requires_grad_(False)
    task = VisionLanguageTask(processor)
    batch = task.collate(mixed())
    fused = task.loss(model, batch)
    with whole_logits():
        torch.testing.assert_close(fused, task.loss(model, batch), rtol=1e-5, atol=1e-5)


def test_what_a_causal_model_gives_besides_does_not_depend_on_the_batch():
    model, task = task_of("qwen")
    rows = mixed()
    together = task.collate(rows)
    for function in (task.output, task.errors, task.perplexity, task.features):
        alone = torch.cat([function(model, task.collate(rows[b : b + 1])) for b in range(4)])
        torch.testing.assert_close(function(model, together), alone, rtol=1e-4, atol=1e-4)
    drawn = task.sampled(model, together, torch.Generator().manual_seed(0))
    assert torch.equal(drawn["labels"] == IGNORE, together["labels"] == IGNORE)
    assert not torch.equal(drawn["labels"], together["labels"])
    lengths = together["attention_mask"].sum(1).tolist()
    assert [task.length(row) for row in rows] == lengths


def test_a_task_travels_to_another_process_once_it_has_run():
    model, task = task_of("qwen")
    losses = task.loss(model, task.collate(mixed()))
    copied = pickle.loads(pickle.dumps(task))
    assert torch.equal(copied.loss(model, copied.collate(mixed())), losses)


def test_fine_tuning_learns_what_an_image_shows(tmp_path):
    """The answer is in the image alone, so that a model that is blind to it cannot be right."""
    colors = {"red": (220, 30, 30), "green": (30, 220, 30), "blue": (30, 30, 220)}

    def rows(n: int, seed: int) -> Examples:
        random = np.random.default_rng(seed)
        fields = []
        for i in range(n):
            name = list(colors)[i % 3]
            noise = random.integers(-30, 30, (16, 16, 3))
            buffer = io.BytesIO()
            Image.fromarray(np.clip(noise + colors[name], 0, 255).astype(np.uint8)).save(buffer, "PNG")
            fields.append(
                {"image": buffer.getvalue(), "prompt": "what color is this ?", "response": f"it is {name}"}
            )
        return Examples.from_fields(fields)

    folder = write_mini_vlm(tmp_path, ["what color is this ? it is red green blue"], width=32, image_size=16)
    model, processor = load_vision_language(str(folder))
    task, train, wanted = VisionLanguageTask(processor), rows(24, 0), rows(12, 1)
    assert task.metric == "answer accuracy"
    assert task.higher_is_better
    assert task.evaluate(model, wanted) < 0.5
    finetune(model, task, train, FinetuneConfig(steps=60, batch_size=12, learning_rate=3e-3), seed=0)
    assert task.evaluate(model, wanted) == 1.0


def test_an_answer_is_right_when_all_of_its_tokens_are():
    model, task = task_of("smol")
    rows = mixed()
    batch = task.collate(rows)
    with torch.no_grad():
        best = model(**task._inputs(model, batch)).logits.argmax(-1)[:, :-1]
    counted = batch["labels"][:, 1:] != IGNORE
    batch["labels"][:, 1:][counted] = best[counted]
    task.collate = lambda some: take(batch, torch.tensor([e.row for e in some]))
    assert task.evaluate(model, rows) == 1.0
    last = counted[1].nonzero()[-1, 0] + 1
    batch["labels"][1, last] = (batch["labels"][1, last] + 1) % 5
    assert task.evaluate(model, rows) == 0.75


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_model_loads_in_float32(family):
    model, processor = fresh(family)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert weights_hash(model) == weights_hash(loaded(family)[0])
    assert processor.tokenizer.is_fast


def test_the_mini_model_depends_on_texts_sizes_and_seed_alone(tmp_path):
    models = [
        load_vision_language(
            str(write_mini_vlm(tmp_path / str(i), texts, seed=seed, width=32, image_size=16))
        )[0]
        for i, (texts, seed) in enumerate([(["red blue"], 0), (["blue", "red"], 0), (["red blue"], 1)])
    ]
    hashes = [weights_hash(model) for model in models]
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize("family", ["llava", "qwen"])
def test_gradient_checkpointing_changes_no_sketch(family):
    model, processor = fresh(family)
    task, rows = VisionLanguageTask(processor), mixed()
    sketches = []
    for _ in range(2):
        with GradientCapture(model, task.modules(model), SPEC) as capture:
            sketches.append(capture.sketches(task.loss(model, task.collate(rows))))
        model.gradient_checkpointing_enable()
        model.train()
    close(sketches[1], sketches[0])


# ------------------------------------------------------------------ bad input


def one(**fields) -> Examples:
    return Examples.from_fields([fields], "pool.jsonl")


def test_a_folder_without_a_model_says_so(tmp_path):
    with pytest.raises(
        InputError, match=r"no vision-language model in this folder .*it needs config\.json, .*processor"
    ):
        load_vision_language(str(tmp_path))


def test_a_text_model_is_no_vision_language_model(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    _, processor = loaded("llava")
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    LlamaForCausalLM(LlamaConfig(vocab_size=8, **sizes)).save_pretrained(tmp_path)
    processor.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="no vision-language model in this folder"):
        load_vision_language(str(tmp_path))
    with pytest.raises(InputError, match="reads no images; take the model's own AutoProcessor"):
        VisionLanguageTask(processor.tokenizer)


def test_missing_weights_are_named(tmp_path):
    shutil.copytree(folder_of("llava"), tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] += 1
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="of the model's weights are missing"):
        load_vision_language(str(tmp_path))


def test_a_processor_needs_a_chat_template():
    processor = copy.copy(loaded("llava")[1])
    processor.chat_template = processor.tokenizer.chat_template = None
    with pytest.raises(
        InputError, match=r"LlavaProcessor has no chat template; set processor\.chat_template"
    ):
        VisionLanguageTask(processor)


def test_an_images_tokens_are_never_cut():
    model, task = task_of("llava", max_length=20)
    row = one(image=picture(0), prompt="what color is this ?", response="it is red")
    with pytest.raises(InputError, match=r"row 0 of pool\.jsonl: no response token is left within 20 tokens"):
        task.collate(row)
    with pytest.raises(InputError, match=r"row 0 of pool\.jsonl: its images end at token 36 of at most 20"):
        task.collate(
            one(messages=[said("user", "<image>", "what ?", "<image>"), said("assistant", "red")],
                images=[picture(0), picture(1)])
        )  # fmt: skip
    longer = VisionLanguageTask(task.processor, max_length=27)
    labels = longer.collate(row)["labels"][0]
    assert longer.tokenizer.decode(labels[labels != IGNORE]).split() == ["it", "is"]
    assert torch.isfinite(longer.loss(model, longer.collate(row))).all()


def test_a_mark_in_the_text_is_told():
    _, task = task_of("llava")
    row = one(messages=[said("user", "what is <image> ?"), said("assistant", "red")])
    with pytest.raises(
        InputError, match=r"row 0 of pool.jsonl: the chat template writes 1 image marks for 0 images"
    ):
        task.collate(row)


def test_rows_without_a_conversation_are_told():
    _, task = task_of("llava")
    with pytest.raises(InputError, match=r"row 0 of pool\.jsonl: no conversation"):
        task.collate(one(text="what color"))


def test_an_image_that_the_processor_refuses_is_told():
    _, task = task_of("qwen")
    with pytest.raises(
        InputError, match=r"row 0 of pool\.jsonl: Qwen2VLProcessor refuses them .*aspect ratio"
    ):
        task.collate(one(image=picture(0, (300, 1)), prompt="what ?", response="red"))


def test_a_template_that_rewrites_earlier_turns_is_told():
    processor = copy.copy(loaded("qwen")[1])
    last = "{{ message['role'] }}{% if loop.last %} last {% endif %}"
    processor.chat_template = QWEN_CHAT.replace("{{ message['role'] }}", last)
    with pytest.raises(InputError, match="the chat template rewrites earlier turns"):
        VisionLanguageTask(processor).collate(mixed()[[3]])


def test_a_template_that_changes_what_is_said_is_told():
    processor = copy.copy(loaded("qwen")[1])
    processor.chat_template = QWEN_CHAT.replace("{{ part['text'] }}", "{{ part['text'] | upper }}")
    with pytest.raises(InputError, match="the chat template changes what its turns say"):
        VisionLanguageTask(processor).collate(mixed()[[2]])
