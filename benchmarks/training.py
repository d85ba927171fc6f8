"""What does it cost to record a training run, to sketch every example while training, and to value it for targets?"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from typing import Any

import torch
from common import DEVICE, Row, arguments, clock, interleave, write
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import backcast as bc
from backcast.data import Example, Examples
from backcast.tasks import Batch, CausalLMTask, on_device

BATCH, TOKENS, K, VOCABULARY = 16, 128, 1024, 4096
PLAIN = "training step"
#: What the recorder is asked for, beside the steps.
WATCHES: dict[str, dict[str, Any]] = {
    "recorder": {},
    "recorder + sketches, kron": {"spec": bc.SketchSpec("kron", K)},
    "recorder + sketches, tile": {"spec": bc.SketchSpec("tile", K)},
    "recorder + Shapley, order 1": {"target": True},
    "recorder + Shapley, order 2": {"target": True, "order": 2},
}


class Words(CausalLMTask):
    """A language model's loss on token ids that are given: the time does not depend on which."""

    def __init__(self) -> None:
        super().__init__(tokenizer=None)

    def collate(self, examples: Sequence[Example]) -> Batch:
        ids = torch.stack([example.fields["ids"] for example in examples])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


def words(n: int, seed: int) -> Examples:
    ids = torch.randint(VOCABULARY, (n, TOKENS), generator=torch.Generator().manual_seed(seed))
    return Examples.from_fields([{"text": f"{seed}/{i}", "ids": row} for i, row in enumerate(ids)])


def small_llama() -> nn.Module:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        use_cache=False,
    )
    return LlamaForCausalLM(config).to(DEVICE)


def steps(
    model: nn.Module, optimizer: torch.optim.Optimizer, train: Examples, recorder: bc.Recorder | None
) -> Iterator[None]:
    """A step a time, as a Trainer's: forward, backward, clipping, AdamW, and the rows in order."""
    task, batch = Words(), 0
    while True:
        rows = [(batch * BATCH + i) % len(train) for i in range(BATCH)]
        if recorder is not None:
            recorder.batch(rows)
        losses: Tensor = task.loss(model, on_device(task.collate(train[rows]), model))
        losses.mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        batch += 1
        yield


def measure(folder: Path, rounds: int) -> list[Row]:
    """A row a way, each with a model of its own; ratios are medians over the rounds."""
    first, train, target = small_llama(), words(256, 0), words(BATCH, 1)
    ways: dict[str, Callable[[], float]] = {}
    with ExitStack() as stack:
        for way, watch in {PLAIN: None, **WATCHES}.items():
            model = copy.deepcopy(first).train()
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
            recorder = None
            if watch is not None:
                asked = dict(watch)
                if asked.pop("target", False):
                    asked |= {"target": target, "groups": ["all"] * BATCH}
                out = folder / f"{len(ways)}"
                recorder = stack.enter_context(
                    bc.Recorder(model, optimizer, train, out, task=Words(), max_grad_norm=1.0, **asked)
                )
            ways[way] = partial(clock, steps(model, optimizer, train, recorder).__next__)
        seconds = interleave(ways, rounds)
    return [row(way, seconds[way], seconds[PLAIN]) for way in ways]


def row(way: str, own: Sequence[float], plain: Sequence[float]) -> Row:
    ratios = [a / b for a, b in zip(own, plain, strict=True)]
    low, _, high = quantiles(ratios, method="inclusive")
    return {
        "way": way,
        "model": "llama-4x256",
        "device": DEVICE.type,
        "k": K if "sketches" in way else None,
        "ms": 1000 * median(own),
        "ratio_to_training_step": median(ratios),
        "ratio_low": low,
        "ratio_high": high,
        "batch": BATCH,
        "tokens": TOKENS,
        "targets": BATCH if "Shapley" in way else None,
        "threads": torch.get_num_threads(),
        "rounds": len(own),
        "note": None,
    }


def main() -> None:
    chosen = arguments(__doc__.splitlines()[0])
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 2)))
    torch.manual_seed(0)
    with TemporaryDirectory() as folder:
        rows = measure(Path(folder), 3 if chosen.quick else 15)
    write("training", rows, chosen.json)


if __name__ == "__main__":
    main()
