"""The settings of `selection.py`: real pools, models small enough to be fine-tuned in a second, and how they train.

A seed draws the pool, what is spoilt in it, the target, and the model that every run of that seed starts from.
"""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import torch
import torch.nn.functional as F
from lds_settings import Training
from peers.models import llama
from PIL import Image
from tokenizers import ByteLevelBPETokenizer
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from backcast.data import Examples, read_examples
from backcast.data.corpora import DigitsSizes, digits_corpus, docstrings_corpus
from backcast.data.corpora.digits import CAPTIONS
from backcast.errors import InputError
from backcast.finetune import FinetuneConfig
from backcast.multimodal import ClipTask, load_clip
from backcast.multimodal.mini_clip import write_mini_clip
from backcast.tasks import CausalLMTask, Task
from backcast.tasks.classification import ImageClassificationTask

TARGET, PROBLEMS, END = "scipy", "gsm8k", "<|end|>"
VOCABULARY, TOKENS = 1024, 40
#: Of the pool: wrong labels of CIFAR-10, problems among the docstrings.
WRONG, MIXED = 0.3, 0.15


@dataclass(frozen=True)
class Draw:
    """What a seed makes of a setting.

    Attributes:
        model: fresh; a fine-tune on ``warmup`` makes the weights that every run starts from.
        task: what an example's loss is, and what a run is measured by.
        warmup: clean examples of which none is in the pool.
        pool: the n examples to select from, each with a source.
        target: examples of what is wanted.
        test: examples to measure on; they share none with the others.
        groups: the target group of each target, where there are several.
        wanted: (n,) bool, what one would choose from who knew how the pool was made; None where nobody knows.
    """

    model: nn.Module
    task: Task
    warmup: Examples
    pool: Examples
    target: Examples
    test: Examples
    groups: tuple[str, ...] | None
    wanted: np.ndarray | None


@dataclass(frozen=True)
class Setting:
    """A data set, a model, and how it trains.

    Attributes:
        name: of the setting.
        metric: in words, with the model.
        higher_is_better: the metric.
        oracle: in words, what ``Draw.wanted`` marks; empty where there is none.
        draw: what a seed makes of it.
        warmup: the fine-tune on the warm-up's examples.
        scoring: the fine-tune on the pool, at two points of which gradients are compared.
        runs: every fine-tune on a subset, and on the pool.
        less: LESS's warm-up, on a twentieth of the pool.
    """

    name: str
    metric: str
    higher_is_better: bool
    oracle: str
    draw: Callable[[int], Draw]
    warmup: FinetuneConfig
    scoring: FinetuneConfig
    runs: FinetuneConfig
    less: Training


def settings(data: Path | None, work: Path, quick: bool) -> dict[str, Setting]:
    """By name; those of other people's data only with ``data``, the folder that holds them.

    Args:
        work: a folder in which the docstrings are kept, once they have been read.
        quick: pools of a quarter, runs of a third.
    """
    share, pace = (4, 3) if quick else (1, 1)

    def steps(n: int, rate: float, batch_size: int) -> FinetuneConfig:
        return FinetuneConfig(steps=n // pace, learning_rate=rate, batch_size=batch_size)

    found = [
        Setting(
            "digits",
            "zero-shot accuracy of a small CLIP",
            True,
            "clean only",
            partial(_digits, n=1200 // share),
            warmup=steps(60, 1e-3, 64),
            scoring=steps(100, 2e-3, 32),
            runs=steps(100, 2e-3, 32),
            less=_published(2e-3),
        ),
        Setting(
            "docstrings",
            f"nats a token on {TARGET}'s docstrings, of a small GPT (less is better)",
            False,
            "",
            partial(_docstrings, work, n=2000 // share),
            warmup=steps(150, 3e-3, 16),
            scoring=steps(60, 2e-3, 16),
            runs=steps(80, 2e-3, 16),
            less=_published(2e-3),
        ),
    ]
    if data is not None:
        found += [
            Setting(
                "problems",
                "nats a token on grade-school problems, of a small GPT (less is better)",
                False,
                "problems only",
                partial(_problems, data, work, n=2000 // share),
                warmup=steps(150, 3e-3, 16),
                scoring=steps(60, 2e-3, 16),
                runs=steps(80, 2e-3, 16),
                less=_published(2e-3),
            ),
            Setting(
                "cifar",
                "accuracy of a perceptron on features of patches",
                True,
                "clean only",
                partial(_cifar, data, n=2000 // share),
                warmup=steps(100, 1e-3, 64),
                scoring=steps(100, 3e-3, 64),
                runs=steps(400, 3e-3, 64),
                less=_published(3e-3),
            ),
        ]
    return {setting.name: setting for setting in found}


def _published(rate: float) -> Training:
    """LESS's warm-up: four epochs with Adam, at the rate of the runs (Xia et al. 2024, section 5.1, appendix B)."""
    adam = {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}
    return Training("adamw", adam, epochs=4, batch_size=8, rate=rate, warmup=0.03)


def _seeded(seed: int, make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


# ------------------------------------------------------------------ digits with captions


def _digits(seed: int, n: int) -> Draw:
    """The demo's: 20 % wrong captions, 10 % ruined images, 10 % near-duplicates. A row's caption is its source."""
    corpus = digits_corpus(seed, DigitsSizes(pool=n))
    pool = Examples.from_fields([{**e.fields, "source": e.fields["caption"]} for e in corpus.pool])
    with TemporaryDirectory() as folder:
        model, preprocess, tokenizer = load_clip(str(write_mini_clip(folder, CAPTIONS, seed)))
    return Draw(
        model,
        ClipTask(preprocess, tokenizer, pool),
        corpus.warmup,
        pool,
        corpus.target,
        corpus.test,
        tuple(example.fields["caption"] for example in corpus.target),
        ~corpus.truth.spoilt,
    )


# ------------------------------------------------------------------ docstrings, and problems among them


def _docstrings(work: Path, seed: int, n: int) -> Draw:
    """Other packages' docstrings, towards one package's; its sentences are nowhere in the pool."""
    corpus = _corpus(work)
    rng = np.random.default_rng(seed)
    warmup, pool = _texts(corpus["pool"], rng, 500, n)
    (target,) = _texts(corpus["target"], rng, 100)
    (test,) = _texts(corpus["test"], rng, 300)
    model, task = _small_gpt(seed, _tokenizer(work))
    return Draw(model, task, warmup, pool, target, test, None, None)


def _problems(data: Path, work: Path, seed: int, n: int) -> Draw:
    """Docstrings, and among them a few grade-school problems with their answers, towards other problems."""
    rng = np.random.default_rng(seed)
    mixed = round(MIXED * n)
    warmup, others = _texts(_corpus(work)["pool"], rng, 500, n - mixed)
    problems, target, test = _texts(_gsm8k(data), rng, mixed, 100, 300)
    rows = [*others, *problems]
    pool = Examples.from_fields([rows[i].fields for i in rng.permutation(n)])
    wanted = np.array([example.source == PROBLEMS for example in pool])
    model, task = _small_gpt(seed, _tokenizer(work, data))
    return Draw(model, task, warmup, pool, target, test, None, wanted)


@cache
def _corpus(work: Path) -> dict[str, list[dict[str, str]]]:
    """Every docstring of the installed packages, split once; reading them takes half a minute."""
    folder = work / "docstrings-read"
    if not (folder / "done").is_file():
        docstrings_corpus(TARGET, target_size=600, test_size=1000).write(folder)
        (folder / "done").touch()
    rows = {name: read_examples(str(folder / f"{name}.jsonl")) for name in ("pool", "target", "test")}
    return {
        name: [
            {"text": f"{e.fields['prompt']}\n{e.fields['response']}", "source": e.source} for e in examples
        ]
        for name, examples in rows.items()
    }


@cache
def _gsm8k(data: Path) -> list[dict[str, str]]:
    lines = gzip.decompress(_there(data / "gsm8k_train.jsonl.gz").read_bytes()).splitlines()
    return [
        {"text": f"{row['question']}\n{row['answer']}", "source": PROBLEMS} for row in map(json.loads, lines)
    ]


def _texts(rows: Sequence[Mapping[str, str]], rng: np.random.Generator, *sizes: int) -> list[Examples]:
    """Disjoint random draws."""
    parts = np.split(rng.permutation(len(rows))[: sum(sizes)], np.cumsum(sizes)[:-1])
    return [Examples.from_fields([rows[i] for i in part]) for part in parts]


@cache
def _tokenizer(work: Path, data: Path | None = None) -> PreTrainedTokenizerFast:
    """Of the setting's texts; the same for all seeds."""
    texts = [
        row["text"] for rows in (_corpus(work)["pool"], _gsm8k(data) if data else ()) for row in rows[:7000]
    ]
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(texts, VOCABULARY, special_tokens=[END], show_progress=False)
    return PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, eos_token=END, pad_token=END)


def _small_gpt(seed: int, tokenizer: PreTrainedTokenizerFast) -> tuple[nn.Module, Task]:
    """Two layers of a Llama; of each text its first tokens."""
    config = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": TOKENS,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return _seeded(seed, partial(llama, **config)), CausalLMTask(tokenizer, max_length=TOKENS)


# ------------------------------------------------------------------ CIFAR-10 with wrong labels


def _cifar(data: Path, seed: int, n: int) -> Draw:
    """CIFAR-10 with 30 % wrong labels. A row's label, as it stands, is its source."""
    train, test = (_images(data / f"cifar10_{part}.parquet") for part in ("train", "test"))
    rng = np.random.default_rng(seed)
    order, held_out = rng.permutation(len(train)), rng.permutation(len(test))
    wrong = np.arange(n) < round(WRONG * n)
    rng.shuffle(wrong)
    shifts = np.where(wrong, rng.integers(1, 10, n), 0).tolist()
    pool = _labelled([train[i] for i in order[:n]], shifts)
    target = _labelled([test[i] for i in held_out[:200]])
    features = _patches(data)
    layers = partial(_perceptron, features.size, 128, 10)
    return Draw(
        _seeded(seed, layers),
        ImageClassificationTask(features),
        _labelled([train[i] for i in order[n : n + 500]]),
        pool,
        target,
        _labelled([test[i] for i in held_out[200:]]),
        tuple(example.source for example in target),
        ~wrong,
    )


def _perceptron(inputs: int, hidden: int, classes: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, classes))


def _labelled(rows: Sequence[Mapping[str, Any]], shifts: Sequence[int] | None = None) -> Examples:
    labels = [(row["label"] + shift) % 10 for row, shift in zip(rows, shifts or [0] * len(rows), strict=True)]
    return Examples.from_fields(
        [
            {"image": row["image"]["bytes"], "label": label, "source": f"class {label}"}
            for row, label in zip(rows, labels, strict=True)
        ]
    )


@cache
def _images(file: Path) -> list[dict[str, Any]]:
    return parquet.read_table(_there(file)).to_pylist()


@cache
def _patches(data: Path) -> Patches:
    rows = _images(data / "cifar10_train.parquet")
    chosen = np.random.default_rng(0).permutation(len(rows))[:500]
    return Patches([Image.open(io.BytesIO(rows[i]["image"]["bytes"])) for i in chosen])


class Patches:
    """Features of an image that no label had a part in: how much its quarters are like each of some random patches.

    The activation of a patch p by a filter f, a random patch, both of unit contrast and whitened, f of unit length, is
    max(0, ±⟨f, p⟩ − ½); the features are the means over the four quarters, each standardised over the images.

    Args:
        images: from which the filters, the whitening and the standardisation are taken.

    Source: Coates & Ng 2011, The importance of encoding versus training with sparse coding and vector quantization,
    whose random patches with a soft threshold come near learnt filters.
    """

    SIDE, STRIDE, FILTERS, EPSILON = 6, 2, 64, 0.1

    def __init__(self, images: Sequence[Image.Image]) -> None:
        patches = torch.cat([self._cut(image, 3) for image in images])
        values, vectors = torch.linalg.eigh(patches.T.cov())
        whiten = vectors @ torch.diag((values + self.EPSILON).rsqrt()) @ vectors.T
        chosen = torch.randperm(len(patches), generator=torch.Generator().manual_seed(0))[: self.FILTERS]
        self.filters = whiten @ F.normalize(patches[chosen] @ whiten, dim=1).T
        self.size, self.shift, self.scale = 8 * self.FILTERS, torch.tensor(0.0), torch.tensor(1.0)
        seen = torch.stack([self(image) for image in images])
        self.shift, self.scale = seen.mean(0), seen.std(0)

    def __call__(self, image: Image.Image) -> Tensor:
        """(size,)"""
        found = self._cut(image, self.STRIDE) @ self.filters
        side = round(len(found) ** 0.5)
        active = F.relu(torch.cat([found, -found], 1) - 0.5).T.reshape(-1, side, side)
        return (F.adaptive_avg_pool2d(active, 2).flatten() - self.shift) / self.scale

    def _cut(self, image: Image.Image, stride: int) -> Tensor:
        """(patches, 3·SIDE²) of zero mean and unit contrast."""
        levels = torch.from_numpy(np.asarray(image.convert("RGB"), dtype=np.float32)).permute(2, 0, 1) / 64
        rows = F.unfold(levels[None], self.SIDE, stride=stride)[0].T
        rows = rows - rows.mean(1, keepdim=True)
        return rows / (rows.std(1, keepdim=True) + self.EPSILON)


def _there(file: Path) -> Path:
    if not file.is_file():
        raise InputError(f"{file}: no such file; name the folder that holds it with --data")
    return file
