"""Two settings of `modality.py` with captions: scikit-learn's digits and emoji, under a small CLIP."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
from PIL import Image

from backcast.data import Example, Examples
from backcast.data.corpora import DigitsSizes, digits_corpus
from backcast.data.corpora.digits import CAPTIONS, encode
from backcast.errors import InputError
from backcast.finetune import FinetuneConfig, finetune
from backcast.multimodal import ClipTask, load_clip
from backcast.multimodal.mini_clip import write_mini_clip

STEPS = 150
CLEAN, RUINED_IMAGE, RUINED_TEXT = "clean", "ruined image", "ruined text"


def digits(folder: Path, seed: int, quick: bool) -> tuple[ClipTask, object, Examples, Examples]:
    """A CLIP trained on clean scans; a clean pool of other scans; targets."""
    sizes = DigitsSizes(warmup=200, target=60, pool=400, test=50) if quick else DigitsSizes()
    corpus = digits_corpus(seed, sizes)
    pool = corpus.pool[[i for i, kind in enumerate(corpus.truth.kinds) if kind == CLEAN]]
    write_mini_clip(folder, CAPTIONS, seed)
    return _trained(folder, corpus.warmup, pool, corpus.target, STEPS, seed)


def emoji(folder: Path, data: Path, seed: int, quick: bool) -> tuple[ClipTask, object, Examples, Examples]:
    """Pictures and their names: a pool of 1,500, a model that was trained on them, 100 of them as targets."""
    file = data / "emoji.parquet"
    if not file.is_file():
        raise InputError(f"{file} is missing; the README of the benchmarks says where to get it")
    rows = parquet.read_table(file).to_pylist()
    order = np.random.default_rng(seed).permutation(len(rows))[: 300 if quick else 1500]
    pool = Examples.from_fields(
        [{"image": _on_white(rows[i]["image"]["bytes"]), "caption": rows[i]["caption"]} for i in order]
    )
    write_mini_clip(folder, [e.fields["caption"] for e in pool], seed)
    return _trained(folder, pool, pool, pool[:100], 100 if quick else 600, seed)


def _trained(
    folder: Path, train: Examples, pool: Examples, target: Examples, steps: int, seed: int
) -> tuple[ClipTask, object, Examples, Examples]:
    model, preprocess, tokenizer = load_clip(str(folder))
    task = ClipTask(preprocess, tokenizer, pool)
    finetune(model, task, train, FinetuneConfig(steps=steps, learning_rate=2e-3), seed)
    return task, model, pool, target


def plant(pool: Examples, share: float = 0.2, seed: int = 0) -> tuple[Examples, tuple[str, ...]]:
    """The pool with ``share`` of its images replaced by noise, and another ``share`` of its captions by random words.

    Words of the pool's captions, as many as before. Returns the rows, and for each what was done.
    """
    rng = np.random.default_rng(seed)
    count = round(share * len(pool))
    order = rng.permutation(len(pool))
    kinds = np.full(len(pool), CLEAN, dtype=object)
    kinds[order[:count]], kinds[order[count : 2 * count]] = RUINED_IMAGE, RUINED_TEXT
    words = sorted({word for e in pool for word in e.fields["caption"].split()})
    rows = []
    for example, kind in zip(pool, kinds, strict=True):
        fields = dict(example.fields)
        if kind == RUINED_IMAGE:
            fields["image"] = encode(rng.uniform(0, 255, (32, 32)))
        elif kind == RUINED_TEXT:
            fields["caption"] = " ".join(rng.choice(words, len(fields["caption"].split())))
        rows.append(Example(fields, example.row, example.source))
    return Examples(rows), tuple(kinds)


def _on_white(content: bytes) -> bytes:
    with Image.open(io.BytesIO(content)) as image:
        picture = Image.new("RGBA", image.size, "white")
        picture.alpha_composite(image.convert("RGBA"))
    out = io.BytesIO()
    picture.convert("RGB").save(out, "PNG")
    return out.getvalue()
