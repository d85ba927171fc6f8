"""Two settings of `modality.py` with captions: scikit-learn's digits, and emoji, under a small CLIP."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as parquet
from modality_plant import CLEAN, planted
from PIL import Image

from backcast.data import Examples, open_image
from backcast.data.corpora import DigitsSizes, digits_corpus
from backcast.data.corpora.digits import encode
from backcast.errors import InputError

ImageRuin = Literal["noise", "scrambled"]
TextRuin = Literal["garbled", "random words"]


def digits(seed: int, quick: bool) -> tuple[Examples, Examples, Examples]:
    """Warm-up rows, a pool of clean ones, targets: other scans each."""
    sizes = DigitsSizes(warmup=100, target=40, pool=200, test=10) if quick else DigitsSizes()
    corpus = digits_corpus(seed, sizes)
    clean = [i for i, kind in enumerate(corpus.truth.kinds) if kind == CLEAN]
    return corpus.warmup, corpus.pool[clean], corpus.target


def emoji(data: Path, seed: int, quick: bool) -> tuple[Examples, Examples, Examples]:
    """Pictures and their names: warm-up rows, a pool, targets.

    Raises:
        InputError: no such file.
    """
    file = data / "emoji.parquet"
    if not file.is_file():
        raise InputError(f"{file} is missing; the README of the benchmarks says where to get it")
    rows = parquet.read_table(file).to_pylist()
    sizes = (50, 150, 50) if quick else (400, 800, 150)
    order = np.random.default_rng(seed).permutation(len(rows))
    fields = [
        {"image": _on_white(rows[i]["image"]["bytes"]), "caption": rows[i]["caption"]}
        for i in order[: sum(sizes)]
    ]
    warmup, pool, target = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:2])
    everything = Examples.from_fields(fields)
    return everything[warmup], everything[pool], everything[target]


def plant(
    pool: Examples, image: ImageRuin, text: TextRuin, seed: int = 0, share: float = 0.2
) -> tuple[Examples, np.ndarray]:
    """The pool with ``share`` of its images ruined, and the captions of another ``share``.

    Args:
        image: grey ``noise``, or the image's own blocks of 8 × 8 pixels ``scrambled``.
        text: each word ``garbled`` into other letters, or ``random words`` of the pool's, as many as before.

    Returns:
        The rows, and for each (n,) what was done.
    """
    words = sorted({word for e in pool for word in e.fields["caption"].split()})

    def ruined_text(fields: Mapping[str, Any], rng: np.random.Generator) -> Mapping[str, Any]:
        own = fields["caption"].split()
        drawn = (garbled(word, rng) if text == "garbled" else str(rng.choice(words)) for word in own)
        return {"caption": " ".join(drawn)}

    def ruined_image(fields: Mapping[str, Any], rng: np.random.Generator) -> Mapping[str, Any]:
        return {"image": _ruined(fields["image"], image, rng)}

    return planted(pool, ruined_image, ruined_text, share, seed)


def garbled(word: str, rng: np.random.Generator) -> str:
    """As many letters, drawn at random."""
    return "".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), len(word)))


def _ruined(image: bytes, ruin: ImageRuin, rng: np.random.Generator) -> bytes:
    pixels = np.asarray(open_image(image), dtype=np.float64).mean(2)
    if ruin == "noise":
        return encode(rng.uniform(0, 255, pixels.shape))
    h, w = (size // 8 for size in pixels.shape)
    blocks = pixels[: 8 * h, : 8 * w].reshape(h, 8, w, 8).swapaxes(1, 2).reshape(h * w, 8, 8)
    return encode(rng.permutation(blocks).reshape(h, w, 8, 8).swapaxes(1, 2).reshape(8 * h, 8 * w))


def _on_white(content: bytes) -> bytes:
    with Image.open(io.BytesIO(content)) as image:
        picture = Image.new("RGBA", image.size, "white")
        picture.alpha_composite(image.convert("RGBA"))
    out = io.BytesIO()
    picture.convert("RGB").save(out, "PNG")
    return out.getvalue()
