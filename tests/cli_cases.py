"""A user's files, small: data in every format, a causal LM and a CLIP, each in its folder."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from PIL import Image
from tokenizers import ByteLevelBPETokenizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from backcast.multimodal.mini_clip import write_mini_clip

END = "<|end|>"
CHAT = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}<|end|>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"  # noqa: E501
WORDS = ["red", "green", "blue", "round", "square", "small", "large", "bright", "dark", "heavy"]

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Done:
    """What a command left: its exit code, stdout and stderr."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """Stdout, which is one JSON object and nothing else."""
        assert self.code in (0, 1), self.err
        value = json.loads(self.out)
        assert isinstance(value, dict)
        return value


def pairs(n: int, seed: int) -> list[Row]:
    draw = random.Random(seed)
    return [
        {
            "prompt": f"Thing {seed}-{i} is {draw.choice(WORDS)}. ",
            "response": f"Then it is {draw.choice(WORDS)} and {draw.choice(WORDS)} as well.",
        }
        for i in range(n)
    ]


def as_messages(rows: Sequence[Row]) -> list[Row]:
    roles = (("user", "prompt"), ("assistant", "response"))
    return [{"messages": [{"role": role, "content": row[name]} for role, name in roles]} for row in rows]


def as_text(rows: Sequence[Row]) -> list[Row]:
    return [{"text": row["prompt"] + row["response"]} for row in rows]


def write_jsonl(path: Path, rows: Sequence[Row]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_parquet(path: Path, rows: Sequence[Row]) -> Path:
    Dataset.from_list([dict(row) for row in rows]).to_parquet(path)
    return path


def write_dataset(path: Path, rows: Sequence[Row]) -> Path:
    Dataset.from_list([dict(row) for row in rows]).save_to_disk(path)
    return path


def write_llama(folder: Path, rows: Sequence[Row]) -> Path:
    """A two-layer Llama with random weights and a tokenizer of the rows' own bytes, with a chat template."""
    bpe = ByteLevelBPETokenizer()
    texts = [row["prompt"] + row["response"] for row in rows]
    bpe.train_from_iterator(texts, vocab_size=400, special_tokens=[END], show_progress=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, eos_token=END, pad_token=END)
    tokenizer.chat_template = CHAT
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_pictures(folder: Path, name: str, n: int, seed: int) -> Path:
    """``folder/NAME.jsonl``: grey pictures with faint noise, captioned by their brightness."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        level = i % len(WORDS)
        pixels = np.clip(25 * level + rng.normal(0, 9, (32, 32, 3)), 0, 255).astype(np.uint8)
        image = folder / "images" / f"{name}-{i}.png"
        image.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(image)
        rows.append({"image": f"images/{image.name}", "caption": f"a {WORDS[level]} picture"})
    return write_jsonl(folder / f"{name}.jsonl", rows)


@dataclass(frozen=True)
class Files:
    """A model's folder and the data for it."""

    model: Path
    pool: Path
    target: Path
    test: Path


def text_files(folder: Path) -> Files:
    pool = pairs(40, 0)
    return Files(
        write_llama(folder / "llama", pool),
        write_jsonl(folder / "pool.jsonl", pool),
        write_jsonl(folder / "wanted.jsonl", pairs(6, 1)),
        write_jsonl(folder / "test.jsonl", pairs(8, 2)),
    )


def image_files(folder: Path) -> Files:
    return Files(
        write_mini_clip(folder / "clip", [f"a {word} picture" for word in WORDS]),
        write_pictures(folder, "pool", 40, 0),
        write_pictures(folder, "wanted", 10, 1),
        write_pictures(folder, "test", 10, 2),
    )
