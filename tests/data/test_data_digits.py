"""The digits corpus: its splits, its flaws, and its bytes."""

from collections import Counter

import numpy as np
import pytest
from sklearn.datasets import load_digits

from backcast.data import open_image, read_examples
from backcast.data.corpora import DigitsSizes, DigitsTruth, digits_corpus
from backcast.data.corpora.digits import CAPTIONS, encode, upscale
from backcast.errors import InputError

SMALL = DigitsSizes(warmup=10, target=20, pool=100, test=50)


@pytest.fixture(scope="module")
def corpus():
    return digits_corpus(seed=3)


@pytest.fixture(scope="module")
def scan_of():
    """PNG bytes of every untouched scan → the scan."""
    return {encode(upscale(scan, 32)): i for i, scan in enumerate(load_digits().images)}


def test_every_scan_is_used_once(corpus, scan_of):
    clean = [
        [scan_of[e.fields["image"]] for e in split] for split in (corpus.warmup, corpus.target, corpus.test)
    ]
    pool = [
        s for s, kind in zip(corpus.truth.scans, corpus.truth.kinds, strict=True) if kind != "near_duplicate"
    ]
    assert sorted([*clean[0], *clean[1], *clean[2], *pool]) == list(range(1797))
    assert [len(split) for split in clean] == [60, 100, 557]


def test_the_shares_are_exact(corpus):
    kinds = Counter(corpus.truth.kinds)
    assert kinds == {
        "clean": 720,
        "wrong_caption": 240,
        "ruined_noise": 60,
        "ruined_blank": 60,
        "near_duplicate": 120,
    }
    assert len(corpus.pool) == 1200
    assert corpus.truth.spoilt.sum() == 360


def test_clean_splits_are_balanced_and_rightly_captioned(corpus, scan_of):
    labels = load_digits().target
    for split, each in ((corpus.warmup, 6), (corpus.target, 10)):
        assert Counter(e.fields["caption"] for e in split) == dict.fromkeys(CAPTIONS, each)
    for split in (corpus.warmup, corpus.target, corpus.test):
        assert all(e.fields["caption"] == CAPTIONS[labels[scan_of[e.fields["image"]]]] for e in split)


def test_only_wrong_captions_are_wrong_and_only_ruined_images_are_ruined(corpus, scan_of):
    labels = load_digits().target
    for example, kind, scan in zip(corpus.pool, corpus.truth.kinds, corpus.truth.scans, strict=True):
        right = example.fields["caption"] == CAPTIONS[labels[scan]]
        assert right == (kind != "wrong_caption")
        assert scan_of.get(example.fields["image"], -1) == (
            scan if kind in ("clean", "wrong_caption") else -1
        )


def test_ruined_images_show_nothing(corpus):
    kinds = np.array(corpus.truth.kinds)
    for kind, low, high in (("ruined_blank", 0, 4), ("ruined_noise", 60, 90)):
        for row in np.flatnonzero(kinds == kind):
            assert low < np.asarray(open_image(corpus.pool[row].fields["image"])).std() < high
    levels = [
        np.asarray(open_image(corpus.pool[r].fields["image"])).mean()
        for r in np.flatnonzero(kinds == "ruined_blank")
    ]
    assert np.diff(sorted(levels)).min() > 1


def test_pairs_join_every_copy_to_its_own_clean_original(corpus):
    kinds, scans = corpus.truth.kinds, corpus.truth.scans
    copies = [j for _, j in corpus.truth.pairs]
    assert sorted(copies) == [row for row, kind in enumerate(kinds) if kind == "near_duplicate"]
    assert len({i for i, _ in corpus.truth.pairs}) == 120
    pixels = [np.asarray(open_image(e.fields["image"]), dtype=float) for e in corpus.pool]
    for i, j in corpus.truth.pairs:
        assert kinds[i] == "clean"
        assert scans[i] == scans[j]
        assert corpus.pool[i].fields["caption"] == corpus.pool[j].fields["caption"]
        assert np.abs(pixels[i] - pixels[j]).mean() < 15
        assert np.corrcoef(pixels[i].ravel(), pixels[j].ravel())[0, 1] > 0.99


def test_no_two_rows_are_the_same_content(corpus):
    splits = (corpus.warmup, corpus.pool, corpus.target, corpus.test)
    ids = [e.id for split in splits for e in split]
    assert len(set(ids)) == len(ids)


def test_pool_rows_are_shuffled(corpus):
    for kind in ("clean", "wrong_caption", "near_duplicate"):
        rows = np.flatnonzero(np.array(corpus.truth.kinds) == kind)
        assert abs(rows.mean() - 599.5) < 120
    assert sum(i > j for i, j in corpus.truth.pairs) > 30


def test_files_are_the_same_bytes_every_time_and_read_back(tmp_path):
    corpus = digits_corpus(5, SMALL)
    paths = corpus.write(tmp_path / "a")
    digits_corpus(5, SMALL).write(tmp_path / "b")
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file())
    assert len(files) == 10 + 20 + 100 + 50 + 5
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)
    for name, path in paths.items():
        assert [e.id for e in read_examples(path)] == [e.id for e in getattr(corpus, name)]
        assert {e.source for e in read_examples(path)} == {"digits"}
    assert DigitsTruth.load(tmp_path / "a" / "truth.json") == corpus.truth
    assert not any(kind in (tmp_path / "a" / "pool.jsonl").read_text() for kind in corpus.truth.kinds)


def test_another_seed_draws_another_corpus():
    first, second = digits_corpus(0, SMALL), digits_corpus(1, SMALL)
    assert first.pool.index.fingerprint != second.pool.index.fingerprint
    assert set(first.target.index.ids) != set(second.target.index.ids)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (DigitsSizes(target=105), "multiple of 10"),
        (DigitsSizes(pool=3000), "too few"),
        (DigitsSizes(test=2000), "too few"),
        (DigitsSizes(near_duplicate=0.5), "lower them"),
    ],
)
def test_sizes_that_cannot_be_had(sizes, message):
    with pytest.raises(InputError, match=message):
        digits_corpus(0, sizes)
