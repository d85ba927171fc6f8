"""How fast are gradient sketches collected, against a training step, the peers, and a loop of autograd?

Each way takes the same batch of 16 and the same per-example losses:

- *training step*: one forward and one backward with weight gradients, without an optimizer
- *tile*, *kron*, *sjlt*: what `backcast.collect` does with these examples, in batches of its own choice; two thirds of
  a training step is the limit
- *loop + dense*: one backward an example, then a ±1 projection of the batch's flat gradients of the same layers,
  its matrix (parameters × k) made anew for each batch, as it does not fit into memory
- the peers (``make peers``), for the language model: see `peers.worker` and ``docs/benchmarks.md``

All ways take turns, each peer in a process of its own, on as many threads as ``OMP_NUM_THREADS`` says, else 2. Those
that take minutes a pass, the loop and traker, are left out of ``--quick``.
``--data DIR`` takes the batches from ``emoji.parquet`` (captioned images) and ``gsm8k_train.jsonl.gz`` (text);
without it they are the digits that install with scikit-learn and the source of Python's `inspect`.
"""

from __future__ import annotations

import copy
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import open_clip
import torch
from common import DEVICE, Row, arguments, clock, interleave, write
from peers.client import PYTHON, Peer, peers
from peers.worker import WAYS
from tokenizers import ByteLevelBPETokenizer
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from backcast.attribution.collect import sketch, tracked
from backcast.attribution.gradients.capture import GradientCapture
from backcast.attribution.gradients.opened import opened
from backcast.data import Examples, read_examples
from backcast.data.corpora import digits_corpus
from backcast.kernels import KINDS, SketchSpec
from backcast.kernels.dense import dense_jl
from backcast.multimodal import ClipTask
from backcast.tasks import Batch, CausalLMTask, Task, on_device

BATCH, K = 16, 1024
WIDTH, HEADS, VOCABULARY = 384, 6, 4096
PIXELS, PATCH, CAPTION, TOKENS = 224, 16, 16, 128
STEP, LOOP = "training step", "loop + dense"
OURS = [kind for kind in ("tile", "kron", "sjlt") if kind in KINDS]
#: Minutes a pass.
SLOW = (LOOP, "featurize")


@dataclass(frozen=True)
class Subject:
    """A freshly initialised model, the examples of one batch, and the positions of one example."""

    name: str
    model: nn.Module
    task: Task
    examples: Examples
    tokens: int


def small_clip(data: Path | None) -> Subject:
    """A CLIP with a ViT-S/16 for images and 6 text blocks of its width."""
    pairs = read_examples(data / "emoji.parquet") if data else digits_corpus().pool
    image = {
        "image_size": PIXELS,
        "layers": 12,
        "width": WIDTH,
        "patch_size": PATCH,
        "head_width": WIDTH // HEADS,
    }
    text = {"context_length": CAPTION, "vocab_size": VOCABULARY, "width": WIDTH, "heads": HEADS, "layers": 6}
    model = open_clip.CLIP(embed_dim=WIDTH, vision_cfg=image, text_cfg=text)
    task = ClipTask(open_clip.image_transform(PIXELS, is_train=False), word_tokens, pairs, bank_size=64)
    return Subject("clip-12+6x384", model, task, pairs[:BATCH], (PIXELS // PATCH) ** 2 + 1 + CAPTION)


def word_tokens(captions: Sequence[str]) -> Tensor:
    """(B, `CAPTION`) int64: a token a word, then the largest id, where open_clip looks for the end."""
    tokens = torch.zeros(len(captions), CAPTION, dtype=torch.long)
    for row, caption in zip(tokens, captions, strict=True):
        ids = [sum(word.encode()) % (VOCABULARY - 2) + 1 for word in caption.split()[: CAPTION - 1]]
        row[: len(ids) + 1] = torch.tensor([*ids, VOCABULARY - 1])
    return tokens


def small_llama(data: Path | None) -> Subject:
    """A Llama of 6 blocks on full rows of `TOKENS` tokens."""
    if data:
        text = "\n".join(e.fields["response"] for e in read_examples(data / "gsm8k_train.jsonl.gz"))
    else:
        text = inspect.getsource(inspect)
    pieces = [text[start : start + 1000] for start in range(0, len(text), 1000)]
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(pieces, VOCABULARY, show_progress=False)
    task = CausalLMTask(PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer), max_length=TOKENS)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=1024,
        num_hidden_layers=6,
        num_attention_heads=HEADS,
        use_cache=False,
    )
    examples = Examples.from_fields([{"text": piece} for piece in pieces[:BATCH]])
    return Subject("llama-6x384", LlamaForCausalLM(config), task, examples, TOKENS)


def measure(subject: Subject, quick: bool, others: Mapping[str, Peer]) -> list[Row]:
    """A row a way. Ratios are medians over the rounds; of ways that are slow, ratios of medians."""
    task, examples = subject.task, subject.examples
    model = subject.model.to(DEVICE).eval()
    batch, *singles = [
        on_device(task.collate(part), model)
        for part in (examples, *(examples[[i]] for i in range(len(examples))))
    ]
    task.prepare(model)
    shown = copy.deepcopy(model)
    with opened(shown):
        layers = tracked(shown, task)
        functions: dict[str, Callable[[], object]] = {STEP: partial(training_step, model, task, batch)}
        for kind in OURS:
            functions[kind] = partial(
                collected, GradientCapture(shown, layers, SketchSpec(kind, K)), task, examples
            )
        if not quick:
            functions[LOOP] = partial(loop, shown, layers, task, singles)
        memory = {STEP: waiting(model, partial(task.loss, model, batch))}
        for kind in OURS:
            with GradientCapture(shown, layers, SketchSpec(kind, K)):
                memory[kind] = waiting(shown, partial(task.loss, shown, batch))
        ways: dict[str, Callable[[], float]] = {way: partial(clock, f) for way, f in functions.items()}
        running = {way: peer for way, peer in others.items() if peer.runs}
        seconds = interleave(ways | running, 3 if quick else 9, SLOW)
    packages = dict.fromkeys(ways, "torch") | dict.fromkeys(OURS, "backcast")
    rows = [row(subject, packages[way], way, seconds[way], seconds, None) for way in ways]
    for one in rows:
        one["activations_mib"] = memory.get(one["kind"])
    return rows + [
        row(subject, WAYS[way][0], way, seconds.get(way, []), seconds, peer.note)
        for way, peer in others.items()
    ]


def row(
    subject: Subject,
    package: str,
    kind: str,
    own: Sequence[float],
    seconds: Mapping[str, Sequence[float]],
    note: str | None,
) -> Row:
    """What the way's own seconds come to; nothing where it has none."""
    step, slow = seconds.get(STEP, []), seconds.get(LOOP, [])
    to_step = [a / b for a, b in zip(own, step, strict=True)] if len(own) == len(step) else []
    low, _, high = quantiles(to_step, method="inclusive") if len(to_step) > 1 else [None] * 3
    return {
        "package": package,
        "model": subject.name,
        "device": DEVICE.type,
        "k": None if kind.startswith(STEP) else K,
        "kind": kind,
        "examples_per_s": len(subject.examples) / median(own) if own else None,
        "ratio_to_training_step": median(to_step) if to_step else median(own) / median(step) if own else None,
        "ratio_low": low,
        "ratio_high": high,
        "times_faster_than_loop": median(slow) / median(own) if own and slow else None,
        "batch": len(subject.examples),
        "tokens": subject.tokens,
        "activations_mib": None,
        "threads": torch.get_num_threads(),
        "rounds": len(own),
        "note": note,
    }


def training_step(model: nn.Module, task: Task, batch: Batch) -> None:
    model.zero_grad()
    task.loss(model, batch).sum().backward()


def collected(capture: GradientCapture, task: Task, examples: Examples) -> Tensor:
    with capture:
        return sketch(capture, task, examples, BATCH)[0]


def waiting(model: nn.Module, forward: Callable[[], Tensor]) -> float:
    """MiB of activations that wait for the backward once the forward is done."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    sizes: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        sizes[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        held.append(x)  # or its memory might be given to another
        return x

    held: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        held.append(forward())
    return sum(size for place, size in sizes.items() if place not in weights) / 2**20


def loop(model: nn.Module, layers: Mapping[str, nn.Module], task: Task, singles: Sequence[Batch]) -> Tensor:
    flat = [
        torch.cat([g.flatten() for g in torch.autograd.grad(task.loss(model, single).sum(), weights(layers))])
        for single in singles
    ]
    return dense_jl(torch.stack(flat), K, 0)


def weights(layers: Mapping[str, nn.Module]) -> list[nn.Parameter]:
    return [layer.get_parameter("weight") for layer in layers.values()]


def beside_peers(subject: Subject, quick: bool) -> list[Row]:
    """`measure` with the peers' rows, which say why where they are empty."""
    ways = [way for way in WAYS if not (quick and way in SLOW)]
    reason = None if PYTHON.exists() else "make peers first"
    if DEVICE.type != "cpu":
        reason = "compared on a CPU alone"
    if reason:
        return measure(subject, quick, {}) + [row(subject, WAYS[way][0], way, [], {}, reason) for way in ways]
    job: dict[str, Any] = {
        "tokens": subject.task.collate(subject.examples)["input_ids"].tolist(),
        "layers": list(tracked(subject.model, subject.task)),
        "k": K,
    }
    with peers(ways, subject.model, job) as others:
        return measure(subject, quick, others)


def main() -> None:
    chosen = arguments(__doc__.splitlines()[0])
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 2)))
    torch.manual_seed(0)
    rows = measure(small_clip(chosen.data), chosen.quick, {})
    rows += beside_peers(small_llama(chosen.data), chosen.quick)
    write("collect", rows, chosen.json)


if __name__ == "__main__":
    main()
