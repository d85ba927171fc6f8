"""The settings of `lds.py`: real data, models small enough to be trained hundreds of times, and how they train.

Everything is a function of the seeds: the data's split is fixed, a run's seed decides its initial weights and the order
of its batches. A model is described by its builder's kind and configuration (`peers.models`), so that a peer in another
environment can build it too.
"""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as parquet
import torch
import torch.nn.functional as F
from peers.models import build, with_lora
from PIL import Image
from tokenizers import ByteLevelBPETokenizer
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from backcast.data import Example, Examples
from backcast.data.corpora import digits_corpus
from backcast.data.corpora.digits import CAPTIONS, CLEAN, encode
from backcast.data.corpora.docstrings import installed_packages, read_docstrings
from backcast.errors import InputError
from backcast.files import read_json
from backcast.multimodal import ClipTask, load_clip
from backcast.multimodal.mini_clip import write_mini_clip
from backcast.tasks import Batch, CausalLMTask, Task, on_device
from backcast.tasks.head import IGNORE

PACKAGE, NEW_PACKAGE = "sympy", "networkx"
TOKENS, VOCABULARY, END = 40, 1024, "<|end|>"


@dataclass(frozen=True)
class Training:
    """How every run of a setting trains.

    Attributes:
        optimizer: ``sgd`` or ``adamw``, of torch.optim.
        options: of the optimizer, beside its learning rate.
        epochs: passes over the examples, whatever their number, each in an order of its own.
        batch_size: the last batch of an epoch is smaller where it must be.
        rate: the highest learning rate.
        warmup: the share of the steps over which the rate rises to it; then it falls along half a cosine to zero.
    """

    optimizer: Literal["sgd", "adamw"]
    options: Mapping[str, Any]
    epochs: int
    batch_size: int
    rate: float
    warmup: float = 0.1

    def rates(self, n: int) -> list[float]:
        """The learning rate of each step of a run on n examples; as many as the run has steps."""
        steps = self.epochs * math.ceil(n / self.batch_size)
        rising = max(1, round(self.warmup * steps))
        return [
            self.rate
            * min((s + 1) / rising, 0.5 * (1 + math.cos(math.pi * max(0, s - rising) / (steps - rising))))
            for s in range(steps)
        ]

    def batches(self, n: int, seed: int) -> list[list[int]]:
        """The positions of each step's examples in a run on n examples."""
        generator = torch.Generator().manual_seed(seed)
        orders = (torch.randperm(n, generator=generator) for _ in range(self.epochs))
        return [batch.tolist() for order in orders for batch in order.split(self.batch_size)]

    def start(self, model: nn.Module) -> torch.optim.Optimizer:
        """A fresh optimizer of the model's trainable parameters, all in one group."""
        kinds: dict[str, Callable[..., torch.optim.Optimizer]] = {
            "sgd": torch.optim.SGD,
            "adamw": torch.optim.AdamW,
        }
        trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]  # named in its state
        return kinds[self.optimizer](trained, lr=self.rate, **self.options)


@dataclass(frozen=True)
class Setting:
    """One data set, one model, and how it trains.

    Attributes:
        name: of the setting.
        train: the n examples whose influence is asked for.
        target: the m held-out examples that it is asked on.
        test: held-out examples to state the model's quality on; none of them a target.
        task: what an example's loss is.
        kind, config: the model's builder in `peers.models`, and its arguments.
        training: how it trains.
        fixed: weights that every run starts from, by name; the others are drawn from the seed.
        quality: the metric's name, a model → its value on ``test``, and what to compare it with, in words.
    """

    name: str
    train: Examples
    target: Examples
    test: Examples
    task: Task
    kind: str
    config: Mapping[str, Any]
    training: Training
    quality: tuple[str, Callable[[nn.Module], float], str]
    fixed: Mapping[str, Tensor] = field(default_factory=dict)

    def model(self, seed: int) -> nn.Module:
        """Initialised from the seed, in evaluation mode: there is no dropout in any setting."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = build(self.kind, self.config)
        model.load_state_dict(self.fixed, strict=False)
        return model.eval()


def train(setting: Setting, seed: int, examples: Examples | None = None) -> nn.Module:
    """A model of the setting, trained on these examples, all of ``setting.train`` by default."""
    examples = setting.train if examples is None else examples
    model, how = setting.model(seed), setting.training
    optimizer = how.start(model)
    for rows, rate in zip(how.batches(len(examples), seed), how.rates(len(examples)), strict=True):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        setting.task.objective(model, on_device(setting.task.collate(examples[rows]), model)).backward()
        optimizer.step()
    return model


# ------------------------------------------------------------------ classification of images


class Classification(Task):
    """Cross-entropy of images (encoded bytes) and labels.

    Args:
        pixels: image → what the model takes, (...) float32.
    """

    metric = "accuracy"
    higher_is_better = True

    def __init__(self, pixels: Callable[[Image.Image], Tensor]) -> None:
        self.pixels = pixels
        self._decoded: dict[str, Tensor] = {}

    def collate(self, examples: Sequence[Example]) -> Batch:
        """``x`` (B, ...) float32 and ``y`` (B,) int64."""
        return {
            "x": torch.stack([self._input(example) for example in examples]),
            "y": torch.tensor([example.fields["label"] for example in examples]),
        }

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return F.cross_entropy(model(batch["x"]), batch["y"], reduction="none")

    def output(self, model: nn.Module, batch: Batch) -> Tensor:
        """log p/(1 − p): the right class's logit less the others' logsumexp."""
        logits, right = model(batch["x"]), batch["y"][:, None]
        return (logits.gather(1, right) - logits.scatter(1, right, -torch.inf).logsumexp(1, keepdim=True))[
            :, 0
        ]

    def errors(self, model: nn.Module, batch: Batch) -> Tensor:
        logits = model(batch["x"])
        return (logits.softmax(1) - F.one_hot(batch["y"], logits.shape[1])).norm(dim=1)

    @torch.no_grad()
    def sampled(self, model: nn.Module, batch: Batch, generator: torch.Generator) -> Batch:
        return {**batch, "y": torch.multinomial(model(batch["x"]).softmax(1), 1, generator=generator)[:, 0]}

    def features(self, model: nn.Module, batch: Batch) -> Tensor:
        """What the last layer is given."""
        return model[:-1](batch["x"])  # type: ignore[index]

    @torch.no_grad()
    def evaluate(self, model: nn.Module, examples: Sequence[Example]) -> float:
        batch = self.collate(examples)
        return (model(batch["x"]).argmax(1) == batch["y"]).float().mean().item()

    def _input(self, example: Example) -> Tensor:
        if example.id not in self._decoded:
            self._decoded[example.id] = self.pixels(Image.open(io.BytesIO(example.fields["image"])))
        return self._decoded[example.id]


def scan_levels(image: Image.Image) -> Tensor:
    """(65,): the 64 levels of a scan in [0, 1], and a one for the bias."""
    levels = torch.from_numpy(np.asarray(image, dtype=np.float32)).flatten() / 255
    return torch.cat([levels, torch.ones(1)])


def normalised_colours(image: Image.Image) -> Tensor:
    """(3, 32, 32), about zero mean and unit variance over the data set."""
    colours = torch.from_numpy(np.asarray(image.convert("RGB"), dtype=np.float32)).permute(2, 0, 1)
    return (colours / 255 - 0.47) / 0.25


def digits_logistic(quick: bool = False) -> Setting:
    """Multinomial logistic regression on scikit-learn's digits, trained to convergence: a strictly convex problem."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.images))
    rows = Examples.from_fields(
        [{"image": encode(data.images[i] * 255 / 16), "label": int(data.target[i])} for i in order], "digits"
    )
    n, m = (300, 30) if quick else (1000, 50)
    task, test = Classification(scan_levels), rows[1100:]
    return Setting(
        name="digits-logistic",
        train=rows[:n],
        target=rows[1000 : 1000 + m],
        test=test,
        task=task,
        kind="logistic",
        config={"inputs": 65, "classes": 10},
        training=Training(
            "sgd", {"momentum": 0.9, "weight_decay": 3e-3}, epochs=30, batch_size=100, rate=0.5
        ),
        quality=("accuracy", lambda model: task.evaluate(model, test), "chance 0.1"),
    )


def cifar_cnn(data: Path, quick: bool = False) -> Setting:
    """A small convolutional network on CIFAR-10; ``data`` holds cifar10_train.parquet and cifar10_test.parquet."""
    n, m = (500, 30) if quick else (2000, 30)
    held_out = _cifar(data / "cifar10_test.parquet")
    task, test = Classification(normalised_colours), held_out[m:]
    return Setting(
        name="cifar-cnn",
        train=_cifar(data / "cifar10_train.parquet")[:n],
        target=held_out[:m],
        test=test,
        task=task,
        kind="cnn",
        config={"channels": (24, 48, 64), "groups": 4, "classes": 10},
        training=Training("sgd", {"momentum": 0.9, "weight_decay": 5e-3}, epochs=7, batch_size=50, rate=0.05),
        quality=("accuracy", lambda model: task.evaluate(model, test), "chance 0.1"),
    )


def _cifar(file: Path) -> Examples:
    """The rows in an order of their own: the file's may be sorted."""
    if not file.is_file():
        raise InputError(
            f"{file}: no such file; name the folder that holds CIFAR-10's parquet files with --data"
        )
    rows = parquet.read_table(file).to_pylist()
    order = np.random.default_rng(0).permutation(len(rows))
    return Examples.from_fields(
        [{"image": rows[i]["image"]["bytes"], "label": rows[i]["label"]} for i in order], "cifar10"
    )


# ------------------------------------------------------------------ language models of docstrings


def docstrings_gpt(quick: bool = False) -> Setting:
    """A small Llama from scratch on one package's signatures and first sentences.

    It learns more slowly than `docstrings_base`, with a longer warm-up and a larger ε of Adam: at that one's rates
    the end of the run hangs on its batches so steeply that no derivative tells what a left-out tenth does.
    """
    gentle = Training(
        "adamw",
        {"betas": (0.9, 0.99), "eps": 1e-5, "weight_decay": 0.01},
        epochs=6,
        batch_size=25,
        rate=1.5e-3,
        warmup=0.4,
    )
    return replace(docstrings_base(quick), name="docstrings-gpt", training=gentle)


def docstrings_base(quick: bool = False) -> Setting:
    """What `docstrings_lora` starts from: the same model on the same data, at higher rates."""
    n, m = (300, 30) if quick else (1000, 30)
    train, target, test = _docstrings(PACKAGE, (n, m, 300))
    tokenizer = _tokenizer([example.fields["text"] for example in train])
    return _language_setting(
        "docstrings-base",
        (train, target, test),
        tokenizer,
        kind="llama",
        config={
            "vocab_size": len(tokenizer),
            "hidden_size": 64,
            "intermediate_size": 160,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 2048,  # no weights; bergson's batches hold no more tokens
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        training=Training(
            "adamw",
            {"betas": (0.9, 0.99), "eps": 1e-6, "weight_decay": 0.01},
            epochs=5,
            batch_size=16,
            rate=3e-3,
        ),
    )


def docstrings_lora(base: Setting, trained: nn.Module, quick: bool = False) -> Setting:
    """LoRA on the trained model of `docstrings_gpt`, which stays as it is, towards another package's docstrings."""
    n, m = (150, 30) if quick else (500, 30)
    lora = {"rank": 8, "alpha": 16}
    weights = with_lora(copy.deepcopy(trained), **lora).state_dict()
    return _language_setting(
        "docstrings-lora",
        _docstrings(NEW_PACKAGE, (n, m, 300)),
        base.task.tokenizer,  # type: ignore[attr-defined]
        kind="llama_lora",
        config={"llama_config": base.config, **lora},
        training=Training(
            "adamw",
            {"betas": (0.9, 0.99), "eps": 3e-4, "weight_decay": 0.0},
            epochs=6,
            batch_size=25,
            rate=6e-3,
        ),
        fixed={name: value for name, value in weights.items() if "lora_" not in name},
    )


def _language_setting(
    name: str, splits: tuple[Examples, Examples, Examples], tokenizer: Any, **how: Any
) -> Setting:
    train, target, test = splits
    task = CausalLMTask(tokenizer, max_length=TOKENS)
    beside = f"a unigram's {unigram_perplexity(task, train, test):.0f}"
    quality = ("perplexity", partial(perplexity, task, test), beside)
    return Setting(name, train, target, test, task, quality=quality, **how)


def _docstrings(package: str, sizes: Sequence[int]) -> tuple[Examples, ...]:
    """Disjoint random splits of a package's docstrings; no two of them share a sentence."""
    pairs = read_docstrings({package: installed_packages()[package]})
    order = np.random.default_rng(0).permutation(len(pairs))
    rows = Examples.from_fields(
        [{"text": f"{pairs[i].prompt}\n{pairs[i].response}", "source": package} for i in order]
    )
    if sum(sizes) > len(rows):
        raise InputError(
            f"{package}: {len(rows)} docstrings, too few for {sum(sizes)}; install another version"
        )
    ends = np.cumsum([0, *sizes])
    return tuple(rows[start:end] for start, end in pairwise(ends.tolist()))


def _tokenizer(texts: Sequence[str]) -> Any:
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(texts, VOCABULARY, special_tokens=[END], show_progress=False)
    return PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, eos_token=END, pad_token=END)


@torch.no_grad()
def perplexity(task: CausalLMTask, examples: Examples, model: nn.Module) -> float:
    """exp of the mean nats a token."""
    batch = on_device(task.collate(examples), model)
    tokens = (batch["labels"][:, 1:] != IGNORE).sum(1)
    return math.exp((task.loss(model, batch) * tokens).sum().item() / tokens.sum().item())


def unigram_perplexity(task: CausalLMTask, train: Examples, test: Examples) -> float:
    """Of the training tokens' frequencies, each token counted once more."""
    seen, asked = (task.collate(rows)["labels"][:, 1:].flatten() for rows in (train, test))
    counts = torch.bincount(seen[seen != IGNORE], minlength=len(task.tokenizer)) + 1
    return math.exp(-(counts / counts.sum()).log()[asked[asked != IGNORE]].mean().item())


# ------------------------------------------------------------------ image and text


def digits_clip(quick: bool = False) -> Setting:
    """The demo's small CLIP on clean scans of digits with their captions, under the contrastive loss of its batches."""
    n, m = (200, 30) if quick else (600, 30)
    corpus = digits_corpus()
    clean = [i for i, kind in enumerate(corpus.truth.kinds) if kind == CLEAN]
    train, test = corpus.pool[clean[:n]], corpus.test
    with TemporaryDirectory() as folder:
        write_mini_clip(folder, CAPTIONS)
        _, preprocess, tokenizer = load_clip(folder)
        config = read_json(Path(folder) / "open_clip_config.json")["model_cfg"]
    task = ClipTask(preprocess, tokenizer, train)
    return Setting(
        name="digits-clip",
        train=train,
        target=corpus.target[:m],
        test=test,
        task=task,
        kind="clip",
        config=config,
        training=Training(
            "adamw",
            {"betas": (0.9, 0.99), "eps": 1e-6, "weight_decay": 0.01},
            epochs=9,
            batch_size=32,
            rate=1e-3,
        ),
        quality=("zero-shot accuracy", lambda model: task.evaluate(model, test), "chance 0.1"),
    )
