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


def pixels(corpus, row: int) -> np.ndarray:
    """(H, W, 3) levels of a pool row's image."""
    return np.asarray(open_image(corpus.pool[row].fields["image"]), dtype=float)


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
    for row in np.flatnonzero(kinds == "ruined_noise"):
        assert 60 < pixels(corpus, row).std() < 90
    blanks = [pixels(corpus, row) for row in np.flatnonzero(kinds == "ruined_blank")]
    assert max(blank.max() for blank in blanks) <= 12  # black frames, to the eye
    assert all(0.5 < blank.std() < 2 for blank in blanks)  # and a sensor's noise, each its own
    alike = np.corrcoef([blank[..., 0].ravel() for blank in blanks]) - np.eye(len(blanks))
    assert np.abs(alike).max() < 0.2


def split_pairs(corpus) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """The pairs of two blank images, and all the others."""
    kinds = corpus.truth.kinds
    blank = [p for p in corpus.truth.pairs if kinds[p[0]] == kinds[p[1]] == "ruined_blank"]
    return blank, [p for p in corpus.truth.pairs if p not in blank]


def test_pairs_are_in_order_and_each_is_there_once(corpus):
    pairs = corpus.truth.pairs
    assert all(i < j for i, j in pairs)
    assert list(pairs) == sorted(set(pairs))


def test_pairs_join_every_copy_to_its_own_clean_original(corpus):
    kinds, scans = corpus.truth.kinds, corpus.truth.scans
    planted = split_pairs(corpus)[1]
    copies, originals = [], []
    for i, j in planted:
        assert {kinds[i], kinds[j]} == {"clean", "near_duplicate"}
        copy, original = (i, j) if kinds[i] == "near_duplicate" else (j, i)
        copies.append(copy)
        originals.append(original)
        assert scans[i] == scans[j]
        assert corpus.pool[i].fields["caption"] == corpus.pool[j].fields["caption"]
        a, b = pixels(corpus, i), pixels(corpus, j)
        assert np.abs(a - b).mean() < 15
        assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.99
    assert sorted(copies) == [row for row, kind in enumerate(kinds) if kind == "near_duplicate"]
    assert len(set(originals)) == 120


def test_pairs_join_every_two_blank_images_under_one_caption(corpus):
    blank = np.flatnonzero(np.array(corpus.truth.kinds) == "ruined_blank").tolist()
    caption = {row: corpus.pool[row].fields["caption"] for row in blank}
    expected = {(i, j) for i in blank for j in blank if i < j and caption[i] == caption[j]}
    assert set(split_pairs(corpus)[0]) == expected
    assert len(expected) == sum(c * (c - 1) // 2 for c in Counter(caption.values()).values()) > 100


def test_no_two_rows_are_the_same_content(corpus):
    splits = (corpus.warmup, corpus.pool, corpus.target, corpus.test)
    ids = [e.id for split in splits for e in split]
    assert len(set(ids)) == len(ids)


def test_pool_rows_are_shuffled(corpus):
    for kind in ("clean", "wrong_caption", "near_duplicate"):
        rows = np.flatnonzero(np.array(corpus.truth.kinds) == kind)
        assert abs(rows.mean() - 599.5) < 120
    copy_first = [corpus.truth.kinds[i] == "near_duplicate" for i, _ in split_pairs(corpus)[1]]
    assert 30 < sum(copy_first) < 90


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
