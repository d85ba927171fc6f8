"""Classifiers: what is said of an example is what its own softmax says."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tasks_cases import SIZES, WORDS, llama, word_tokenizer
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from backcast.attribution import collect
from backcast.data import Examples, read_examples
from backcast.errors import InputError
from backcast.finetune.train import FinetuneConfig, finetune
from backcast.kernels import SketchSpec
from backcast.multimodal import check_same_kind, load_task
from backcast.tasks import (
    CausalLMTask,
    ImageClassificationTask,
    SequenceClassificationTask,
    load_image_classifier,
    load_sequence_classifier,
)

CLASSES = ["bad", "good", "ugly"]
SPEC = SketchSpec("sjlt", 256)
draw = np.random.default_rng(0)


def png(value: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(value.astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


TEXTS = Examples.from_fields(
    [
        {"text": " ".join(draw.choice(WORDS, draw.integers(1, 12))), "label": CLASSES[b % 3]}
        for b in range(11)
    ],
    "texts.jsonl",
)
PICTURES = Examples.from_fields(
    [{"image": png(draw.integers(0, 256, (8, 8, 3))), "label": b % 3} for b in range(9)], "pictures.jsonl"
)


def bert() -> nn.Module:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(word_tokenizer()),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        num_labels=3,
        initializer_range=0.3,
        id2label=dict(enumerate(CLASSES)),
        label2id={name: c for c, name in enumerate(CLASSES)},
    )
    return BertForSequenceClassification(config).eval()


def vit() -> nn.Module:
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        image_size=8,
        patch_size=4,
        num_labels=3,
        initializer_range=0.3,
    )
    return ViTForImageClassification(config).eval()


def pixels(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image, dtype=np.float64)).permute(2, 0, 1) / 255 - 0.5


def cnn() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 8), nn.Tanh())
    return nn.Sequential(layers, nn.Linear(8, 3)).double()


def check_by_softmax(task: Any, model: nn.Module, rows: Examples, logits: Tensor, labels: list[int]) -> None:
    """The four numbers of each example against its own row of logits, in float64."""
    batch = task.collate(rows)
    assert batch["labels"].tolist() == labels
    losses, outputs, errors = (f(model, batch) for f in (task.loss, task.output, task.errors))
    p = logits.double().softmax(1)
    onehot = torch.eye(3, dtype=torch.float64)[labels]
    own = (p * onehot).sum(1)
    close = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(losses.double(), -own.log(), **close)
    torch.testing.assert_close(outputs.double(), (own / (1 - own)).log(), **close)
    torch.testing.assert_close(errors.double(), (p - onehot).norm(dim=1), **close)
    assert losses.requires_grad
    assert outputs.requires_grad
    accuracy = (logits.argmax(1) == torch.tensor(labels)).double().mean().item()
    assert task.evaluate(model, rows) == pytest.approx(accuracy)
    assert (task.metric, task.higher_is_better) == ("accuracy", True)


def test_text_classes_by_their_definition():
    model, tokenizer = bert(), word_tokenizer()
    task = SequenceClassificationTask(tokenizer, CLASSES)
    alone = [tokenizer(e.fields["text"], return_tensors="pt") for e in TEXTS]  # nothing is padded
    with torch.no_grad():
        logits = torch.cat([model(**one).logits for one in alone])
    check_by_softmax(task, model, TEXTS, logits, [b % 3 for b in range(11)])
    assert [task.length(e) for e in TEXTS] == [one["input_ids"].shape[1] for one in alone]


def test_image_classes_by_their_definition():
    model, task = cnn(), ImageClassificationTask(pixels)
    with torch.no_grad():
        images = [pixels(Image.open(io.BytesIO(e.fields["image"]))) for e in PICTURES]
        logits = torch.cat([model(image[None]) for image in images])
    check_by_softmax(task, model, PICTURES, logits, [b % 3 for b in range(9)])


def test_a_transformers_image_classifier_gives_its_logits():
    model, task = vit(), ImageClassificationTask(lambda image: pixels(image).float())
    batch = task.collate(PICTURES)
    with torch.no_grad():
        logits = model(pixel_values=batch["images"]).logits
    check_by_softmax(task, model, PICTURES, logits, [b % 3 for b in range(9)])


def test_margins_of_sure_answers_are_those_of_float64():
    """1 − p is far below a float32's spacing at 1."""
    logits = torch.tensor([[30.0, 0.0, -1.0], [-40.0, 0.0, 1.0]])
    task = ImageClassificationTask(pixels)
    batch = {"images": logits, "labels": torch.tensor([0, 0])}
    others = logits[:, 1:].double().logsumexp(1)
    torch.testing.assert_close(
        task.output(nn.Identity(), batch).double(), logits[:, 0].double() - others, rtol=1e-6, atol=0
    )


def test_a_prompt_and_its_response_are_two_sequences():
    task = SequenceClassificationTask(word_tokenizer())
    rows = Examples.from_fields(
        [{"prompt": "a b", "response": "c d", "label": 0}, {"prompt": "a", "label": 1}]
    )
    batch, expected = task.collate(rows), word_tokenizer()(["a b", "a"], ["c d", ""], padding=True)
    assert batch["input_ids"].tolist() == expected["input_ids"]
    assert batch["attention_mask"].tolist() == expected["attention_mask"]


def test_long_texts_are_cut():
    task = SequenceClassificationTask(word_tokenizer(), CLASSES, max_length=4)
    assert task.collate(TEXTS)["input_ids"].shape[1] == 4


# ------------------------------------------------------------------ features


def test_features_are_the_last_layers_input():
    model, task = bert(), SequenceClassificationTask(word_tokenizer(), CLASSES)
    batch = task.collate(TEXTS)
    torch.testing.assert_close(
        model.classifier(task.features(model, batch)), task.logits(model, batch), rtol=1e-5, atol=1e-6
    )
    pictures, network = ImageClassificationTask(pixels), cnn()
    images = pictures.collate(PICTURES)
    assert torch.equal(pictures.features(network, images), network[0](images["images"]))


def test_features_of_every_position_are_their_mean_without_padding():
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(word_tokenizer()), num_labels=3, initializer_range=0.3, **SIZES)
    model, task = LlamaForSequenceClassification(config).eval(), SequenceClassificationTask(word_tokenizer())
    rows = Examples.from_fields([{**e.fields, "label": 0} for e in TEXTS])
    got = task.features(model, task.collate(rows))
    for b in range(len(rows)):
        ids = task.collate(rows[b : b + 1])["input_ids"]
        torch.testing.assert_close(
            got[b], model.model(ids).last_hidden_state[0].mean(0), rtol=1e-4, atol=1e-5
        )


def test_a_model_without_linear_layers_has_no_features():
    task = ImageClassificationTask(pixels)
    model = nn.Sequential(nn.Conv2d(3, 3, 8), nn.Flatten()).double()
    with pytest.raises(InputError, match="defines no representation of a model without Linear layers"):
        task.features(model, task.collate(PICTURES))


# ------------------------------------------------------------------ in use


def test_a_gradient_does_not_depend_on_the_batch(tmp_path):
    for name, model, task, rows in (
        ("text", bert(), SequenceClassificationTask(word_tokenizer(), CLASSES), TEXTS),
        ("image", cnn(), ImageClassificationTask(pixels), PICTURES),
    ):
        one, many = (
            collect(model, task, rows, tmp_path / f"{name}{size}", spec=SPEC, batch_size=size).sketches()
            for size in (1, 16)
        )
        assert np.linalg.norm(many - one, axis=1).max() <= 1e-5 * np.linalg.norm(one, axis=1).max()


def test_a_fine_tune_learns_the_classes():
    model, task = cnn(), ImageClassificationTask(pixels)
    finetune(model, task, PICTURES, FinetuneConfig(steps=60, batch_size=9, learning_rate=1e-2), seed=0)
    assert task.evaluate(model, PICTURES) == 1.0


def test_labels_that_are_no_classes_are_told():
    rows = Examples.from_fields(
        [{"text": "a", "label": label} for label in ("good", 1.5, -1, 7)] + [{"text": "a"}], "pool.jsonl"
    )
    numbered, named = (SequenceClassificationTask(word_tokenizer(), c) for c in (None, CLASSES))
    for b, said in enumerate(("'good'", "1.5", "-1")):
        with pytest.raises(
            InputError, match=rf"row {b} of pool.jsonl: the label {said} is no class's number"
        ):
            numbered.collate(rows[b : b + 1])
    with pytest.raises(
        InputError, match=r"row 3 of pool.jsonl: the label 7 is none of .* \('bad', 'good', 'ugly'\)"
    ):
        named.collate(rows[3:4])
    for task in (numbered, named):
        with pytest.raises(InputError, match=r"row 4 of pool\.jsonl: no label"):
            task.collate(rows[4:])
    assert named.collate(rows[:1])["labels"].tolist() == [1]


def test_rows_of_another_kind_and_tokenizers_without_padding_are_told():
    task = SequenceClassificationTask(word_tokenizer())
    with pytest.raises(InputError, match=r"row 0 of pictures\.jsonl: no text to classify \(image, label\)"):
        task.collate(PICTURES)
    with pytest.raises(InputError, match=r"row 0 of texts\.jsonl: no image"):
        ImageClassificationTask(pixels, CLASSES).collate(TEXTS)
    with pytest.raises(InputError, match="has no padding token"):
        SequenceClassificationTask(word_tokenizer(pad_token=None))


def test_images_are_decoded_once_while_there_is_room(monkeypatch):
    calls = []
    task = ImageClassificationTask(lambda image: calls.append(image) or pixels(image))
    first = task.collate(PICTURES[:3])["images"]
    assert torch.equal(task.collate(PICTURES[:3])["images"], first)
    assert len(calls) == 3
    monkeypatch.setattr("backcast.tasks.classification.CACHE_BYTES", 3 * first[0].nbytes)
    for _ in range(2):
        assert torch.equal(task.collate(PICTURES[:5])["images"][:3], first)
    assert len(calls) == 3 + 2 + 2


def test_the_order_of_the_classes_is_a_setting():
    settings = [
        ImageClassificationTask(pixels, c).settings() for c in (None, CLASSES, CLASSES[::-1], range(3))
    ]
    assert json.loads(json.dumps(settings)) == settings
    assert settings[1:] == [{"classes": c} for c in (CLASSES, CLASSES[::-1], [0, 1, 2])]


# ------------------------------------------------------------------ from files


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """Models and data as a user has them."""
    folder = tmp_path_factory.mktemp("files")
    for name, model in (("bert", bert()), ("vit", vit()), ("llama", llama())):
        model.save_pretrained(folder / name)
        if name == "vit":
            ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(folder / name)
        else:
            word_tokenizer().save_pretrained(folder / name)
    for b, e in enumerate(PICTURES):
        (folder / f"{b}.png").write_bytes(e.fields["image"])
    write_rows(folder / "pictures.jsonl", [{"image": f"{b}.png", "label": b % 3} for b in range(9)])
    write_rows(folder / "texts.jsonl", [dict(e.fields) for e in TEXTS])
    return folder


def test_a_saved_text_classifier_loads_with_its_classes_by_name(files):
    model, task = load_task(str(files / "bert"), read_examples(files / "texts.jsonl"))
    assert isinstance(task, SequenceClassificationTask)
    assert task.classes == CLASSES
    by_hand = SequenceClassificationTask(word_tokenizer(), CLASSES)
    expected = by_hand.loss(bert(), by_hand.collate(TEXTS))
    device = next(model.parameters()).device
    batch = {name: value.to(device) for name, value in task.collate(TEXTS).items()}
    torch.testing.assert_close(task.loss(model, batch).cpu(), expected, rtol=1e-4, atol=1e-5)


def test_a_saved_image_classifier_loads_with_its_preprocessing(files):
    pool = read_examples(files / "pictures.jsonl")
    assert pool.columns == {"image": "image", "label": "label"}
    assert pool.index.ids == PICTURES.index.ids
    _, task = load_task(str(files / "vit"), pool)
    assert isinstance(task, ImageClassificationTask)
    assert task.classes == [0, 1, 2]
    # ViT's own processor: to the model's size, and from 0 ... 255 to -1 ... 1.
    images = torch.stack([2 * pixels(Image.open(io.BytesIO(e.fields["image"]))).float() for e in PICTURES])
    torch.testing.assert_close(task.collate(pool)["images"], images, rtol=0, atol=1e-5)


def test_labelled_text_and_a_language_model_stay_a_causal_lm(files):
    _, task = load_task(str(files / "llama"), read_examples(files / "texts.jsonl"))
    assert type(task) is CausalLMTask


def test_a_tokenizer_without_padding_gets_its_end_token(files):
    folder = files / "unpadded"
    bert().save_pretrained(folder)
    word_tokenizer(pad_token=None).save_pretrained(folder)
    model, tokenizer = load_sequence_classifier(str(folder))
    assert (tokenizer.pad_token, model.config.pad_token_id) == ("</s>", tokenizer.eos_token_id)


def test_folders_without_a_classifier_are_refused_in_one_line(files, tmp_path):
    for load, kind in (
        (load_sequence_classifier, "text classifier"),
        (load_image_classifier, "image classifier"),
    ):
        with pytest.raises(InputError, match=f"no {kind} in this folder") as told:
            load(str(tmp_path))
        assert "\n" not in str(told.value)
    with pytest.raises(InputError, match=r"llama: 1 of the model's weights are missing, score\.weight"):
        load_sequence_classifier(str(files / "llama"))


def test_a_caption_makes_a_labelled_image_a_captioned_one(tmp_path):
    (tmp_path / "0.png").write_bytes(PICTURES[0].fields["image"])
    rows = [{"image": "0.png", "caption": "a cat", "label": 3}]
    captioned = read_examples(write_rows(tmp_path / "captioned.jsonl", rows))
    assert captioned.columns == {"image": "image", "caption": "caption", "label": "label"}
    labelled = read_examples(
        write_rows(tmp_path / "labelled.jsonl", [{"img": "0.png", "fine": 3}]), {"label": "fine"}
    )
    assert labelled.columns == {"image": "img", "label": "fine"}
    assert labelled[0].fields["label"] == 3
    with pytest.raises(
        InputError, match=r"has labelled images, .* has captioned images: both must be of one kind"
    ):
        check_same_kind(captioned, labelled)


def test_questions_about_images_ask_for_a_vision_language_model():
    rows = Examples.from_fields([{"image": PICTURES[0].fields["image"], "prompt": "a", "response": "b"}])
    with pytest.raises(InputError, match="nowhere: no vision-language model"):
        load_task("nowhere", rows)
