"""scikit-learn's handwritten digits as captioned images, with known flaws: the demo's data.

1,797 real 8×8 scans, upscaled (E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI
Machine Learning Repository, 1998).
"""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from backcast.data.corpora.base import Corpus
from backcast.data.examples import Examples
from backcast.errors import InputError
from backcast.files import read_json, write_json

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CAPTIONS = tuple(f"a handwritten {name}" for name in NAMES)

#: How far a near-duplicate may move, in pixels. A whole pixel would make a copy less like its original
#: (correlation 0.93) than some pairs of different scans are like each other (0.99), and no method could tell.
SHIFT = 0.25

CLEAN, WRONG_CAPTION, RUINED_NOISE, RUINED_BLANK, NEAR_DUPLICATE = (
    "clean",
    "wrong_caption",
    "ruined_noise",
    "ruined_blank",
    "near_duplicate",
)


@dataclass(frozen=True)
class DigitsSizes:
    """How many rows each split has, and the shares of the pool that are flawed.

    ``warmup`` and ``target`` hold every digit equally often, so they are multiples of ten. ``test`` is
    everything left over unless it is given. Near-duplicates are copies, so they take no scans.
    """

    warmup: int = 60
    target: int = 100
    pool: int = 1200
    test: int | None = None
    wrong_caption: float = 0.20
    ruined: float = 0.10
    near_duplicate: float = 0.10
    pixels: int = 32

    def counts(self) -> dict[str, int]:
        """Pool rows of each kind."""
        ruined, wrong = round(self.ruined * self.pool), round(self.wrong_caption * self.pool)
        copies = round(self.near_duplicate * self.pool)
        return {
            CLEAN: self.pool - wrong - ruined - copies,
            WRONG_CAPTION: wrong,
            RUINED_NOISE: ruined - ruined // 2,
            RUINED_BLANK: ruined // 2,
            NEAR_DUPLICATE: copies,
        }


@dataclass(frozen=True)
class DigitsTruth:
    """What was done to the pool; never written into the pool's own file.

    Attributes:
        kinds: each pool row's kind: clean, wrong_caption, ruined_noise, ruined_blank or near_duplicate.
        scans: the scan in scikit-learn's data that each pool row was made from.
        pairs: rows i < j that show the same thing: an original and its altered copy, or two blank images under one
            caption.
    """

    kinds: tuple[str, ...]
    scans: tuple[int, ...]
    pairs: tuple[tuple[int, int], ...]

    @property
    def spoilt(self) -> np.ndarray:
        """(pool,) bool: a wrong caption or a ruined image."""
        return np.isin(self.kinds, (WRONG_CAPTION, RUINED_NOISE, RUINED_BLANK))

    @classmethod
    def load(cls, path: str | Path) -> DigitsTruth:
        """Read the ``truth.json`` that `DigitsCorpus.write` leaves beside the splits."""
        value = read_json(path)
        pairs = tuple((i, j) for i, j in value["pairs"])
        return cls(tuple(value["kinds"]), tuple(value["scans"]), pairs)


@dataclass(frozen=True)
class DigitsCorpus(Corpus):
    """The digits' splits and the pool's hidden truth."""

    truth: DigitsTruth

    def write(self, folder: str | Path) -> dict[str, Path]:
        write_json(Path(folder) / "truth.json", asdict(self.truth))
        return super().write(folder)


def digits_corpus(seed: int = 0, sizes: DigitsSizes | None = None) -> DigitsCorpus:
    """Draw the splits and flaw the pool; the same seed gives the same bytes.

    Raises:
        InputError: the sizes ask for more than the 1,797 scans, or do not divide by ten where they must.
    """
    from sklearn.datasets import load_digits

    sizes = sizes or DigitsSizes()
    counts = sizes.counts()
    data = load_digits()
    scans, labels = data.images, data.target
    rng = np.random.default_rng(seed)

    order = rng.permutation(len(scans))
    warmup, order = _take_balanced(order, labels, sizes.warmup, "warmup")
    target, order = _take_balanced(order, labels, sizes.target, "target")
    drawn = sizes.pool - counts[NEAR_DUPLICATE]
    test = len(order) - drawn if sizes.test is None else sizes.test
    if min(counts.values()) < 0 or counts[NEAR_DUPLICATE] > counts[CLEAN]:
        raise InputError("digits: the flawed shares leave too few clean rows in the pool; lower them")
    if test < 1 or drawn + test > len(order):
        raise InputError(
            f"digits: {len(scans)} scans are too few for these sizes; lower pool, target, warmup or test"
        )

    images = [upscale(scan, sizes.pixels) for scan in scans]

    def clean(chosen: np.ndarray) -> Examples:
        return Examples.from_fields(
            [{"image": encode(images[i]), "caption": CAPTIONS[labels[i]]} for i in chosen], "digits"
        )

    pool, truth = _flawed_pool(order[:drawn], images, labels, counts, rng)
    return DigitsCorpus(clean(warmup), pool, clean(target), clean(order[drawn : drawn + test]), truth)


def upscale(scan: np.ndarray, pixels: int) -> np.ndarray:
    """An 8×8 scan of levels 0..16 as a (pixels, pixels) uint8 image, bicubic."""
    image = Image.fromarray((scan * (255 / 16)).round().astype(np.uint8))
    return np.asarray(image.resize((pixels, pixels), Image.Resampling.BICUBIC))


def encode(image: np.ndarray) -> bytes:
    """PNG bytes of a (H, W) array of levels 0..255."""
    file = io.BytesIO()
    # Stored, not deflated: zlib builds compress differently, and these bytes are the content id.
    Image.fromarray(np.clip(image, 0, 255).round().astype(np.uint8)).save(file, "PNG", compress_level=0)
    return file.getvalue()


def _take_balanced(order: np.ndarray, labels: np.ndarray, n: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The first n/10 of every digit in ``order``, and what is left, both still in order."""
    if n % len(NAMES):
        raise InputError(f"digits: {name}={n} cannot hold every digit equally often; use a multiple of 10")
    ordinal = np.zeros(len(order), dtype=int)
    for digit in range(len(NAMES)):
        of_digit = labels[order] == digit
        ordinal[of_digit] = np.arange(of_digit.sum())
    taken = ordinal < n // len(NAMES)
    return order[taken], order[~taken]


def _flawed_pool(
    drawn: np.ndarray,
    images: list[np.ndarray],
    labels: np.ndarray,
    counts: dict[str, int],
    rng: np.random.Generator,
) -> tuple[Examples, DigitsTruth]:
    """The pool, shuffled, and what was done to it. ``drawn`` are distinct scans, in random order."""
    rows: list[tuple[str, int, dict[str, Any]]] = []  # kind, scan, fields

    def add(kind: str, scan: int, image: np.ndarray, digit: int) -> None:
        rows.append((kind, int(scan), {"image": encode(image), "caption": CAPTIONS[digit]}))

    shape = images[0].shape
    wrong, noise, blank, clean = np.split(
        drawn, np.cumsum([counts[kind] for kind in (WRONG_CAPTION, RUINED_NOISE, RUINED_BLANK)])
    )
    for scan in clean:
        add(CLEAN, scan, images[scan], labels[scan])
    for scan in wrong:
        add(WRONG_CAPTION, scan, images[scan], (labels[scan] + rng.integers(1, 10)) % 10)
    for scan in noise:
        add(RUINED_NOISE, scan, rng.uniform(0, 255, shape), labels[scan])
    # Empty frames of one scanner: with a sensor's faint noise, no two are the same bytes.
    for scan in blank:
        add(RUINED_BLANK, scan, np.abs(rng.normal(0, 2, shape)), labels[scan])
    originals = rng.choice(len(clean), counts[NEAR_DUPLICATE], replace=False)
    copies = np.arange(len(rows), len(rows) + len(originals))
    for scan in clean[originals]:
        add(NEAR_DUPLICATE, scan, _alter(images[scan], rng), labels[scan])

    shuffled = rng.permutation(len(rows))
    place = np.argsort(shuffled)
    rows = [rows[i] for i in shuffled]
    copied = [(int(min(pair)), int(max(pair))) for pair in zip(place[originals], place[copies], strict=True)]
    truth = DigitsTruth(
        kinds=tuple(kind for kind, _, _ in rows),
        scans=tuple(scan for _, scan, _ in rows),
        pairs=tuple(sorted(copied + _blank_pairs(rows))),
    )
    return Examples.from_fields([fields for _, _, fields in rows], "digits"), truth


def _blank_pairs(rows: list[tuple[str, int, dict[str, Any]]]) -> list[tuple[int, int]]:
    """Blank images under one caption: nothing tells them apart."""
    blanks = [(i, fields["caption"]) for i, (kind, _, fields) in enumerate(rows) if kind == RUINED_BLANK]
    return [(i, j) for (i, a), (j, b) in combinations(blanks, 2) if a == b]


def _alter(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A copy as another program would save it: resampled a little off, or relit; then faint noise."""
    if rng.random() < 0.5:
        down, right = ((0, 1), (2, 1), (1, 0), (1, 2))[rng.integers(4)]
        moved = np.pad(image, 1, mode="edge")[down:, right:][: image.shape[0], : image.shape[1]]
        altered = (1 - SHIFT) * image + SHIFT * moved
    else:
        altered = image * rng.uniform(0.9, 1.1) + rng.uniform(-10, 10)
    return altered + rng.normal(0, 3, image.shape)
