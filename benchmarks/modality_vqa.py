"""The setting of `modality.py`: easy-VQA, a vision-language model that learns it on one core, and one without images.

A row is an image, a question (``prompt``) and an answer of one word (``response``); its source is the question's kind.
No image is in two splits. The model starts from warm-up weights, as a user's model has seen images before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as parquet
import torch
from modality_plant import planted
from PIL import ImageOps
from torch import nn
from transformers import AutoConfig, AutoProcessor, LlavaForConditionalGeneration

from backcast.data import Example, Examples, open_image
from backcast.data.corpora.base import Corpus
from backcast.data.corpora.digits import encode
from backcast.errors import InputError
from backcast.finetune import FinetuneConfig, finetune
from backcast.multimodal import VisionLanguageTask, load_vision_language
from backcast.multimodal.mini_vlm import write_mini_vlm
from backcast.tasks import batches, on_device

FILE = "easy_vqa_train.parquet"
COLOURS = ("black", "gray", "red", "green", "blue", "teal", "yellow", "brown")
COLOUR, SHAPE, COLOUR_YES_NO, SHAPE_YES_NO = KINDS = (
    "colour",
    "shape",
    "colour, yes or no",
    "shape, yes or no",
)
OPEN = (COLOUR, SHAPE)
Ruin = Literal["noise", "scrambled", "blank", "swapped"]

#: From random weights: first what is the colour and the shape, then yes or no too. Asked everything at once it learns
#: how frequent yes and no are, from the words alone, and stays there for thousands of steps.
FIRST = FinetuneConfig(steps=400, learning_rate=3e-3, warmup_steps=50)
SECOND = FinetuneConfig(steps=150, learning_rate=1.5e-3, warmup_steps=20)
#: From there, on the pool or a part of it.
RUN = FinetuneConfig(steps=250, learning_rate=2e-3, warmup_steps=20)
TEXT_ONLY = FinetuneConfig(steps=300, learning_rate=2e-3, warmup_steps=20)


@dataclass(frozen=True)
class VqaSizes:
    """Images of each split, and rows drawn from their questions for the two large ones."""

    warmup_images: int = 1500
    pool_images: int = 1500
    target_images: int = 300
    test_images: int = 700
    warmup_rows: int = 5000
    pool_rows: int = 4000


def easy_vqa(data: Path, seed: int = 0, sizes: VqaSizes | None = None) -> Corpus:
    """The splits, of other images each. Questions are as they come, three quarters of them yes or no; of the warm-up
    rows 70 % are open, about half of these on mirrored images: no question asks for left or right.

    Raises:
        InputError: no such file, or fewer images than the sizes ask for.
    """
    sizes = sizes or VqaSizes()
    file = data / FILE
    if not file.is_file():
        raise InputError(f"{file} is missing; the README of the benchmarks says where to get it")
    table = parquet.read_table(file).to_pylist()
    counts = (sizes.warmup_images, sizes.pool_images, sizes.target_images, sizes.test_images)
    if sum(counts) > len(table):
        raise InputError(f"{file}: {len(table)} images are too few for {sum(counts)}; ask for fewer")
    rng = np.random.default_rng(seed)
    warmup, pool, target, test = (
        Examples.from_fields([fields for i in own for fields in _questions(table[i])])
        for own in np.split(rng.permutation(len(table)), np.cumsum(counts))[:4]
    )
    asked = [dict(example.fields) for example in warmup if example.source in OPEN]
    drawn = [
        *_drawn(asked + _mirrored(asked), round(0.7 * sizes.warmup_rows), rng),
        *_drawn([e.fields for e in warmup if e.source not in OPEN], round(0.3 * sizes.warmup_rows), rng),
    ]
    return Corpus(
        warmup=Examples.from_fields(drawn),
        pool=Examples.from_fields(_drawn([example.fields for example in pool], sizes.pool_rows, rng)),
        target=target,
        test=test,
    )


def open_questions(examples: Examples) -> Examples:
    """Those that ask what shape or colour it is: nothing but the image tells."""
    return examples[[i for i, example in enumerate(examples) if example.source in OPEN]]


def _drawn(rows: Sequence[Mapping[str, Any]], n: int, rng: np.random.Generator) -> list[Mapping[str, Any]]:
    return [rows[i] for i in rng.permutation(len(rows))[:n]]


def kind(question: str, answer: str) -> str:
    """Which of `KINDS`."""
    if answer in ("yes", "no"):
        return COLOUR_YES_NO if any(colour in question for colour in COLOURS) else SHAPE_YES_NO
    return COLOUR if answer in COLOURS else SHAPE


def _questions(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    image = row["image"]["bytes"]
    return [
        {"image": image, "prompt": question, "response": answer, "source": kind(question, answer)}
        for question, answer in zip(row["questions"], row["answers"], strict=True)
    ]


def _mirrored(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    mirror = {
        image: encode(np.asarray(ImageOps.mirror(open_image(image)))) for image in {r["image"] for r in rows}
    }
    return [{**row, "image": mirror[row["image"]]} for row in rows]


# ------------------------------------------------------------------ spoilt rows


def plant(pool: Examples, ruin: Ruin, share: float = 0.2, seed: int = 0) -> tuple[Examples, np.ndarray]:
    """The pool with ``share`` of its rows' images ruined and the questions of another ``share``; answers are kept.

    Args:
        ruin: uniform ``noise``; the image's own pixels ``scrambled``; ``blank``, its mean colour under a sensor's faint
            noise; or ``swapped`` for another row's, whole but of another shape or colour in 23 of 24.
        share: of each; at most a half.

    Returns:
        The rows, and for each (n,) ``clean``, ``ruined image`` or ``ruined text``.
    """
    words = sorted({word for example in pool for word in _words(example.fields["prompt"])})

    def ruined_text(fields: Mapping[str, Any], rng: np.random.Generator) -> Mapping[str, Any]:
        return {"prompt": " ".join(rng.choice(words, len(_words(fields["prompt"])))) + "?"}

    def ruined_image(fields: Mapping[str, Any], rng: np.random.Generator) -> Mapping[str, Any]:
        if ruin == "swapped":
            return {"image": pool[int(rng.integers(len(pool)))].fields["image"]}
        return {"image": encode(_ruined(np.asarray(open_image(fields["image"])), ruin, rng))}

    return planted(pool, ruined_image, ruined_text, share, seed)


def _words(question: str) -> list[str]:
    return question.rstrip("?").split()


def _ruined(image: np.ndarray, ruin: Ruin, rng: np.random.Generator) -> np.ndarray:
    """(H, W, 3) levels."""
    if ruin == "noise":
        return rng.uniform(0, 255, image.shape)
    if ruin == "blank":
        return image.mean((0, 1)) + rng.normal(0, 2, image.shape)
    return rng.permutation(image.reshape(-1, 3)).reshape(image.shape)


# ------------------------------------------------------------------ models


def write_model(folder: Path, examples: Examples, seed: int = 0) -> Path:
    """A fresh LLaVA of two blocks a tower over 8×8 patches, for the words of ``examples``.

    Initialised wider than transformers' 0.02, which at this width leaves the image unseen for thousands of steps;
    pixels are centred near the backgrounds' level.
    """
    texts = sorted({e.fields["prompt"] for e in examples} | {e.fields["response"] for e in examples})
    write_mini_vlm(folder, texts, seed)
    config, processor = AutoConfig.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    config.text_config.initializer_range, config.vision_config.initializer_range = 0.1, 0.05
    processor.image_processor.image_mean = [0.7] * 3
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        LlavaForConditionalGeneration(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def warm_up(model: nn.Module, task: VisionLanguageTask, warmup: Examples, seed: int = 0) -> None:
    """Train from random weights, in place, until the model looks at the image where it is asked what is there."""
    finetune(model, task, open_questions(warmup), FIRST, seed)
    finetune(model, task, warmup, SECOND, seed)


def write_warm_model(folder: Path, corpus: Corpus, quick: bool = False) -> None:
    """A model with the weights of `warm_up`, for the words of all splits; ``quick``: with those of a few steps."""
    write_model(folder, Examples([*corpus.warmup, *corpus.pool, *corpus.target, *corpus.test]))
    model, processor = load_vision_language(str(folder))
    if quick:
        finetune(model, VisionLanguageTask(processor), corpus.warmup, FinetuneConfig(steps=20), 0)
    else:
        warm_up(model, VisionLanguageTask(processor), corpus.warmup)
    model.save_pretrained(folder)  # type: ignore[operator]
    (folder / "warm").touch()


@torch.no_grad()
def probabilities(model: nn.Module, task: VisionLanguageTask, examples: Examples) -> np.ndarray:
    """(n,) the probability of each response. The task's loss is the sum over its tokens."""
    return np.concatenate(
        [
            (-task.loss(model, on_device(task.collate(some), model))).exp().cpu().numpy()
            for some in batches(examples, 64)
        ]
    )


def accuracies(model: nn.Module, task: VisionLanguageTask, examples: Examples) -> dict[str, float]:
    """Of each kind of question, and of ``all``."""
    own = {kind: [i for i, e in enumerate(examples) if e.source == kind] for kind in KINDS}
    return {
        kind: task.evaluate(model, examples[rows])
        for kind, rows in {**own, "all": list(range(len(examples)))}.items()
        if rows
    }


# ------------------------------------------------------------------ without the image


def without_images(examples: Examples) -> Examples:
    """The same questions and answers alone."""
    return Examples(
        [Example({k: v for k, v in e.fields.items() if k != "image"}, e.row, e.source) for e in examples]
    )


@dataclass(frozen=True)
class TextOnly:
    """What a model says that has read other images' questions and answers, and sees no image.

    Attributes:
        right: (n,) the probability of each row's answer.
        most: (n,) that of its most probable answer.
    """

    right: np.ndarray
    most: np.ndarray

    @property
    def answers(self) -> np.ndarray:
        """(n,) bool: rows that can be answered without the image, rightly and with at least 0.8."""
        return self.right >= 0.8

    @property
    def leaves_open(self) -> np.ndarray:
        """(n,) bool: rows that need the image, as no answer has more than 1/2.

        Rows of neither kind are half known, or their answer is the rare one, which the question does not tell.
        """
        return self.most <= 0.5


def text_only(folder: Path, examples: Examples, folds: int = 2, seed: int = 0) -> TextOnly:
    """Cross-fitted by image: no row's image is among those that its model has read of.

    Args:
        folder: the model's, as `write_model` wrote it; every fold starts from its weights.
        examples: with their images, which tell what belongs together.
        folds: how many.
    """
    images = {image: k for k, image in enumerate(dict.fromkeys(e.fields["image"] for e in examples))}
    fold_of = np.random.default_rng(seed).permutation(len(images)) % folds
    fold = fold_of[[images[e.fields["image"]] for e in examples]]
    texts, answers = without_images(examples), sorted({e.fields["response"] for e in examples})
    right, most = np.zeros(len(examples)), np.zeros(len(examples))
    for held_out in range(folds):
        model, processor = load_vision_language(str(folder))
        task = VisionLanguageTask(processor, reduction="sum")
        finetune(model, task, texts[np.flatnonzero(fold != held_out)], TEXT_ONLY, seed)
        rows = np.flatnonzero(fold == held_out)
        asked = sorted({texts[int(i)].fields["prompt"] for i in rows})
        each = Examples.from_fields([{"prompt": q, "response": a} for q in asked for a in answers])
        said = dict(zip(asked, probabilities(model, task, each).reshape(len(asked), -1), strict=True))
        for i in rows:
            own = said[texts[int(i)].fields["prompt"]]
            right[i], most[i] = own[answers.index(texts[int(i)].fields["response"])], own.max()
    return TextOnly(right, most)
