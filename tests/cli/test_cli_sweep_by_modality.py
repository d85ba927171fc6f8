"""`backcast sweep --by modality`: what it draws, fits and prints, and which words do not go together."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cli_cases import Files
from PIL import Image

from backcast.data import read_examples
from backcast.finetune import by_modality, laws_by_modality
from backcast.multimodal.parts import Parts, Split
from backcast.scaling import compare_laws
from backcast.selectors import select

#: Image and text parts of the 40 pictures: every fourth row is mixed, and of the others the odd ones image-driven.
IMAGE = np.where(np.arange(40) % 4 == 0, 1.0, np.where(np.arange(40) % 2 == 1, -3.0, 0.1))
TEXT = np.where(np.arange(40) % 4 == 0, 1.0, np.where(np.arange(40) % 2 == 1, 0.2, 2.0))


@pytest.fixture(scope="module")
def parts(images: Files, tmp_path_factory) -> Path:
    rows = read_examples(images.pool).index
    zero = np.zeros(40)
    path = tmp_path_factory.mktemp("parts") / "parts.parquet"
    Parts(rows, {"mean": Split(IMAGE + TEXT, zero, {"image": IMAGE, "text": TEXT}, zero, zero)}).save(path)
    return path


@pytest.fixture(scope="module")
def words(images: Files, parts: Path, tmp_path_factory) -> list[object]:
    return [
        *("sweep", images.model, images.pool, images.test, "--by", "modality", "--parts", parts),
        *("--sizes", "3,6", "--classes", "image,text", "--seeds", 2, "--steps", 1, "--batch-size", 3),
        *("--workers", 1, "-o", tmp_path_factory.mktemp("sweep") / "out"),
    ]


@pytest.fixture
def found(backcast, words) -> Any:
    """The sweep's JSON, made once and then resumed, and its folder."""
    return SimpleNamespace(**backcast(*words, "--json").json, folder=Path(str(words[-1])))


def test_the_table_and_the_laws_are_the_librarys(found, images):
    results = (found.folder / "results.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in results] == found.rows
    pool = read_examples(images.pool)
    runs = by_modality({"image": IMAGE, "text": TEXT}, pool, [3, 6], 2, ["image", "text"])
    keys = ("selector", "modality", "budget", "n", "seed")
    expected = [(r.selector, r.modality, r.budget, len(r.rows), r.seed) for r in runs]
    full = [("full", None, "100%", 40, 0), ("full", None, "100%", 40, 1)]
    assert [tuple(row[key] for key in keys) for row in found.rows] == expected + full
    assert len(runs) == 12

    laws = laws_by_modality(found.rows)
    assert list(laws) == ["image-driven", "text-driven", "random"]
    assert found.comparison == compare_laws(laws).to_json()
    with Image.open(found.plot) as plot:
        assert plot.format == "PNG"
    assert Path(found.plot).parent == found.folder


def test_people_read_a_table_and_verdicts(found, backcast, words):
    """Of the same folder: nothing is run again."""
    times = {path: path.stat().st_mtime_ns for path in (found.folder / "runs").iterdir()}
    done = backcast(*words)
    assert done.code == 0
    assert {path: path.stat().st_mtime_ns for path in (found.folder / "runs").iterdir()} == times
    assert "14 runs in" in done.out
    for name, slope in found.comparison["slopes"].items():
        line = next(
            line for line in done.out.splitlines() if line.startswith(name) and len(line.split()) == 7
        )
        exponent = found.comparison["exponents"].get(name)
        shown = [f"{exponent[key]:.4g}" if exponent else "–" for key in ("median", "low", "high")]
        assert line.split()[1:] == shown + [f"{slope[key]:.4g}" for key in ("median", "low", "high")]
    for verdict in (*found.comparison["contrasts"], *found.comparison["leads"]):
        assert verdict["sentence"] in done.out
    assert "random" in done.out
    assert f"plot in {found.plot}" in done.out


def test_words_that_do_not_go_together(backcast, images, parts, tmp_path):
    subset = select(read_examples(images.pool).index, 5, "random").save(tmp_path / "subset.jsonl").path
    sweep = ["sweep", images.model, images.pool, images.test, "-o", tmp_path / "out"]
    by = ["--by", "modality"]
    given = ["--parts", parts, "--sizes", "3,6"]
    cases: list[tuple[list[object], str]] = [
        ([], "Missing argument 'SUBSET': give manifests, --sizes or --by modality (see --help)"),
        ([subset, "--parts", parts], f"--parts {parts}: it goes with --by modality"),
        ([subset, "--sizes", "5"], f"{subset}: --sizes draws its own subsets; leave SUBSET or --sizes out"),
        ([subset, "--classes", "image"], "--classes image: it goes with --by modality"),
        ([subset, *by, *given], f"{subset}: --by modality draws its own subsets"),
        (["--by", "length", *given], "--by length: the only one there is is --by modality"),
        ([*by, "--sizes", "3,6"], "--by modality needs --parts FILE"),
        ([*by, "--parts", parts], "--by modality needs --sizes, e.g. 50,100,200,400"),
        ([*by, *given, "--classes", "image,sound"], "unknown classes ['sound']"),
        ([*by, "--parts", subset, "--sizes", "3,6"], f"{subset}: not a file of parts"),
        ([*by, "--parts", parts, "--sizes", "3,x"], "budget 'x': give a count"),
        (
            [*by, "--parts", parts, "--sizes", "8,11"],
            "text-driven: 10 rows have room for 1 of the sizes 8, 11",
        ),
    ]
    for more, message in cases:
        done = backcast(*sweep, *more)
        lines = [line for line in done.err.splitlines() if line.startswith("backcast: ")]
        assert (done.code, done.out, len(lines)) == (2, "", 1), more
        assert message in lines[0]
        assert not (tmp_path / "out").exists()
    done = backcast("sweep", images.model, images.test, images.test, *by, *given, "-o", tmp_path / "out")
    assert done.code == 2
    assert f"row 0 of the parts is not that of {images.test}" in done.err
