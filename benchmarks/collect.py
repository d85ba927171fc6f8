"""How fast are gradient sketches collected, against a training step, and against a loop of autograd?

Each way takes the same batch and the same per-example losses:

- *training step*: one forward and one backward with weight gradients, without an optimizer
- *kron*, *sjlt*: what `backcast.collect` does with a batch; two thirds of a training step is the limit
- *loop + dense*: one backward an example, then a ±1 projection of the batch's flat gradients of the same layers,
  its matrix (parameters × k) made anew for each batch, as it does not fit into memory

``--data DIR`` takes the batches from ``emoji.parquet`` (captioned images) and ``gsm8k_train.jsonl.gz`` (text);
without it they are the digits that install with scikit-learn and the source of Python's `inspect`.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import open_clip
import torch
from common import DEVICE, Row, arguments, interleave, write
from tokenizers import ByteLevelBPETokenizer
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from backcast.attribution.attention import opened_attention
from backcast.attribution.capture import GradientCapture
from backcast.attribution.collect import tracked
from backcast.data import Examples, read_examples
from backcast.data.corpora import digits_corpus
from backcast.kernels import SketchSpec
from backcast.kernels.dense import dense_jl
from backcast.multimodal import ClipTask
from backcast.tasks import Batch, CausalLMTask, Task, on_device

K = 1024
WIDTH = 256
PIXELS, CAPTION, WORDS = 64, 16, 4096
TOKENS, VOCABULARY = 128, 1024
STEP, LOOP = "training step", "loop + dense"


@dataclass(frozen=True)
class Subject:
    """A freshly initialised model, and the examples of one batch."""

    name: str
    model: nn.Module
    task: Task
    examples: Examples


def small_clip(data: Path | None, batch_size: int) -> Subject:
    """A CLIP with 4 image blocks over 64 patches and 2 text blocks."""
    pairs = read_examples(data / "emoji.parquet") if data else digits_corpus().pool
    model = open_clip.CLIP(
        embed_dim=WIDTH,
        vision_cfg={
            "image_size": PIXELS,
            "layers": 4,
            "width": WIDTH,
            "patch_size": PIXELS // 8,
            "head_width": 64,
        },
        text_cfg={
            "context_length": CAPTION,
            "vocab_size": WORDS,
            "width": WIDTH,
            "heads": 4,
            "layers": 2,
        },
    )
    task = ClipTask(open_clip.image_transform(PIXELS, is_train=False), word_tokens, pairs)
    return Subject("clip-4+2x256", model, task, pairs[:batch_size])


def word_tokens(captions: Sequence[str]) -> Tensor:
    """(B, `CAPTION`) int64: a token a word, then the largest id, where open_clip looks for the end."""
    tokens = torch.zeros(len(captions), CAPTION, dtype=torch.long)
    for row, caption in zip(tokens, captions, strict=True):
        ids = [sum(word.encode()) % (WORDS - 2) + 1 for word in caption.split()[: CAPTION - 1]]
        row[: len(ids) + 1] = torch.tensor([*ids, WORDS - 1])
    return tokens


def small_llama(data: Path | None, batch_size: int) -> Subject:
    """A Llama of 4 blocks on rows of `TOKENS` tokens."""
    if data:
        text = "\n".join(e.fields["response"] for e in read_examples(data / "gsm8k_train.jsonl.gz"))
    else:
        text = inspect.getsource(inspect)
    pieces = [text[start : start + 1000] for start in range(0, 1000 * batch_size, 1000)]
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(pieces, VOCABULARY, show_progress=False)
    task = CausalLMTask(PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer), max_length=TOKENS)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=688,
        num_hidden_layers=4,
        num_attention_heads=4,
    )
    examples = Examples.from_fields([{"text": piece} for piece in pieces])
    return Subject("llama-4x256", LlamaForCausalLM(config), task, examples)


def measure(subject: Subject, rounds: int) -> list[Row]:
    """A row a way. Ratios are medians over the rounds, of two times taken one after the other."""
    task, examples = subject.task, subject.examples
    model = subject.model.to(DEVICE).eval()
    batch, *singles = [
        on_device(task.collate(part), model)
        for part in (examples, *(examples[[i]] for i in range(len(examples))))
    ]
    task.prepare(model)
    opened = copy.deepcopy(model)
    with opened_attention(opened):
        layers = tracked(opened, task)
        ways: dict[str, Callable[[], object]] = {STEP: partial(training_step, model, task, batch)}
        for kind in ("kron", "sjlt"):
            capture = GradientCapture(opened, layers, SketchSpec(kind, K))
            ways[kind] = partial(sketch, capture, task, batch)
        ways[LOOP] = partial(loop, opened, layers, task, singles)
        seconds = interleave(ways, rounds)
    return [
        {
            "package": "backcast" if way in ("kron", "sjlt") else "torch",
            "model": subject.name,
            "device": DEVICE.type,
            "k": None if way == STEP else K,
            "kind": way,
            "examples_per_s": len(examples) / median(seconds[way]),
            "ratio_to_training_step": median_ratio(seconds[way], seconds[STEP]),
            "times_faster_than_loop": median_ratio(seconds[LOOP], seconds[way]),
            "batch": len(examples),
            "threads": torch.get_num_threads(),
            "rounds": rounds,
        }
        for way in ways
    ]


def training_step(model: nn.Module, task: Task, batch: Batch) -> None:
    model.zero_grad()
    task.loss(model, batch).sum().backward()


def sketch(capture: GradientCapture, task: Task, batch: Batch) -> Tensor:
    with capture:
        return capture.sketches(task.loss(capture.model, batch))


def loop(model: nn.Module, layers: Mapping[str, nn.Module], task: Task, singles: Sequence[Batch]) -> Tensor:
    flat = [
        torch.cat([g.flatten() for g in torch.autograd.grad(task.loss(model, single).sum(), weights(layers))])
        for single in singles
    ]
    return dense_jl(torch.stack(flat), K, 0)


def weights(layers: Mapping[str, nn.Module]) -> list[nn.Parameter]:
    return [layer.get_parameter("weight") for layer in layers.values()]


def median_ratio(times: Sequence[float], others: Sequence[float]) -> float:
    return median(a / b for a, b in zip(times, others, strict=True))


def main() -> None:
    chosen = arguments(__doc__.splitlines()[0])
    batch_size, rounds = (16, 3) if chosen.quick else (32, 9)
    torch.manual_seed(0)
    subjects = [make(chosen.data, batch_size) for make in (small_clip, small_llama)]
    write("collect", [row for subject in subjects for row in measure(subject, rounds)], chosen.json)


if __name__ == "__main__":
    main()
