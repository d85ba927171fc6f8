"""The steps on their own: what each prints is what the library finds."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from cli_cases import Files, write_jsonl

from backcast import __version__
from backcast.attribution import Scores, SketchStore, attribute
from backcast.data import read_examples
from backcast.data.examples import image_bytes
from backcast.manifests import Manifest
from backcast.multimodal import Parts, load_task
from backcast.report import Report, read_report, write_report
from backcast.selectors import select

COMMANDS = ["demo", "select", "collect", "score", "split", "search", "sweep", "invert"]
COMMANDS += ["check", "diff", "export", "report"]


@pytest.fixture(scope="module")
def stores(text: Files, tmp_path_factory) -> Path:
    """A folder with the stores ``pool`` and ``target`` of the text data."""
    from backcast.attribution import collect
    from backcast.kernels import SketchSpec

    folder = tmp_path_factory.mktemp("stores")
    pool = read_examples(text.pool)
    model, task = load_task(str(text.model), pool)
    train = collect(model, task, pool, folder / "pool", spec=SketchSpec("kron", 256))
    collect(model, task, read_examples(text.target), folder / "target", like=train)
    return folder


def test_collect_takes_a_kind_and_a_precision(backcast, text, stores, tmp_path):
    out = tmp_path / "store"
    words = [
        "collect",
        text.model,
        text.pool,
        "-o",
        out,
        "--kind",
        "tile",
        "--dim",
        300,
        "--autocast",
        "bfloat16",
    ]
    found = backcast(*words, "--json").json
    assert (found["examples"], found["kind"], found["dim"]) == (40, "tile", 300)
    store = SketchStore.open(out)
    assert store.header.origin["autocast"] == "bfloat16"
    assert SketchStore.open(stores / "pool").header.origin["autocast"] is None


def test_scores_are_the_librarys(backcast, stores, tmp_path):
    out = tmp_path / "scores.safetensors"
    train, target = SketchStore.open(stores / "pool"), SketchStore.open(stores / "target")
    found = backcast("score", stores / "pool", stores / "target", "-o", out, "--json").json
    assert found == {"scores": str(out), "examples": 40, "targets": 6, "method": "tracin"}
    assert np.array_equal(Scores.load(out).values, attribute(train, target, "tracin", cosine=True).values)

    assert backcast("score", stores / "pool", stores / "target", "-o", out, "--no-cosine").code == 0
    assert np.array_equal(Scores.load(out).values, attribute(train, target, "tracin").values)

    words = ("score", stores / "pool", stores / "target", "-o", out)
    assert backcast(*words, "--param", "cosine=False").code == 0  # as Python writes it
    assert Scores.load(out).params == {"cosine": False}

    backcast("score", stores / "pool", stores / "target", "-o", out, "-m", "grad_dot", "--by-source")
    grouped = attribute(train, target, "grad_dot", groups=["wanted"] * 6)
    assert Scores.load(out).targets == ("wanted",)
    assert np.array_equal(Scores.load(out).values, grouped.values)


def test_scores_of_examples_run_the_model(backcast, text, tmp_path):
    out = tmp_path / "scores.safetensors"
    words = ("score", text.pool, text.target, "-o", out)
    found = backcast(*words, "-m", "bm25", "--json").json
    assert (found["examples"], found["targets"], found["method"]) == (40, 6, "bm25")
    pool, target = read_examples(text.pool), read_examples(text.target)
    assert np.array_equal(Scores.load(out).values, attribute(pool, target, "bm25").values)

    assert backcast(*words, "-m", "ekfac", "--model", text.model, "--param", "damping=0.5").code == 0
    model, task = load_task(str(text.model), pool)
    expected = attribute(pool, target, "ekfac", model=model, task=task, damping=0.5)
    assert np.array_equal(Scores.load(out).values, expected.values)
    assert Scores.load(out).params == {"damping": 0.5}


def test_search_finds_the_largest_cosines(backcast, stores):
    found = backcast("search", stores / "pool", stores / "target", "-k", 3, "--json").json["neighbours"]
    train, target = (
        SketchStore.open(stores / name).sketches().astype(np.float64) for name in ("pool", "target")
    )
    train /= np.linalg.norm(train, axis=1, keepdims=True)
    target /= np.linalg.norm(target, axis=1, keepdims=True)
    cosines = target @ train.T
    for q in range(6):
        mine = [row for row in found if row["query_row"] == q]
        assert [row["row"] for row in mine] == np.argsort(-cosines[q])[:3].tolist()
        assert [row["cosine"] for row in mine] == pytest.approx(np.sort(cosines[q])[::-1][:3], abs=1e-5)


def test_a_row_is_not_its_own_neighbour(backcast, stores):
    found = backcast("search", stores / "pool", 7, "-k", 4, "--json").json["neighbours"]
    cosines = [row["cosine"] for row in found]
    ids = SketchStore.open(stores / "pool").rows.ids
    assert len(found) == 4
    assert 7 not in [row["row"] for row in found]
    assert {row["query"] for row in found} == {ids[7]}
    assert [row["id"] for row in found] == [ids[row["row"]] for row in found]
    assert all(a >= b for a, b in pairwise(cosines))
    shown = backcast("search", stores / "pool", 7, "-k", 4).out.splitlines()
    assert shown[0].split() == ["query", "row", "row", "source", "cosine"]
    assert [int(line.split()[1]) for line in shown[1:]] == [row["row"] for row in found]


def test_search_by_text_is_the_search_by_a_store_of_it(backcast, text, stores):
    row = read_examples(text.target)[2].fields
    words = ("search", stores / "pool", "--model", text.model, "-k", 3, "--json")
    found = backcast(*words, "--prompt", row["prompt"], "--text", row["response"]).json["neighbours"]
    every = backcast("search", stores / "pool", stores / "target", "-k", 3, "--json").json["neighbours"]
    expected = [near for near in every if near["query_row"] == 2]
    assert [near["id"] for near in found] == [near["id"] for near in expected]
    assert {near["query"] for near in found} == {near["query"] for near in expected}
    assert [near["cosine"] for near in found] == pytest.approx(
        [near["cosine"] for near in expected], abs=1e-4
    )


def test_search_by_image_finds_the_image(backcast, images, tmp_path):
    pool = read_examples(images.pool)
    store = tmp_path / "pool"
    backcast("collect", images.model, images.pool, "-o", store, "--dim", 256, "--index")
    assert (store / "index.faiss").is_file()
    before = sorted(path for path in tmp_path.rglob("*"))
    row = pool[3].fields
    (tmp_path.parent / "image.png").write_bytes(image_bytes(row["image"]))
    example = ("--image", tmp_path.parent / "image.png", "--text", row["caption"])
    found = backcast("search", store, *example, "--model", images.model, "-k", 2, "--json").json["neighbours"]
    assert found[0]["id"] == pool[3].id == found[0]["query"]
    assert found[0]["cosine"] == pytest.approx(1, abs=1e-3)
    assert sorted(path for path in tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "give either QUERY or an example"),
        (["3", "--text", "x"], "give either QUERY or an example"),
        (["--text", "x"], "--model is missing"),
        (["--prompt", "x", "--model", "m"], "--text is missing"),
        (["--text", "x", "--image", "nowhere.png", "--model", "m"], "nowhere.png: no such image"),
    ],
)
def test_what_cannot_be_searched_for_is_told(backcast, stores, words, said):
    done = backcast("search", stores / "pool", *words)
    assert done.code == 2
    assert said in done.err
    assert not done.out


def test_split_adds_up(backcast, images, tmp_path):
    pool, target, out = tmp_path / "pool", tmp_path / "target", tmp_path / "split"
    backcast("collect", images.model, images.pool, "-o", pool, "--dim", 1024)
    backcast("collect", images.model, images.target, "-o", target, "--like", pool)
    found = backcast("split", images.model, pool, target, "--rows", 2, "-o", out, "--json").json
    scores = attribute(SketchStore.open(pool), SketchStore.open(target), "tracin", cosine=True).total()
    assert (found["split"], found["examples"]) == (str(out), len(scores))
    assert {tuple(row["baselines"]) for row in found["agreement"]} == {("colour+mean", "blur+mask")}
    assert (out / "report.html").is_file()
    assert not (out / "blocks").exists()

    parts = Parts.load(out / "parts.parquet")
    assert parts.rows.ids == SketchStore.open(pool).rows.ids
    for split in parts.splits.values():
        np.testing.assert_allclose(sum(split.parts.values()), split.score - split.baseline, rtol=1e-9)
    lines = [json.loads(line) for line in (out / "shortlist.jsonl").read_text().splitlines()]
    order = np.argsort(-parts.first.score, kind="stable")
    assert [line["row"] for line in lines] == [*order[:2], *order[-2:][::-1]]
    for line in lines:
        change = line["score"] - line["baseline"]
        assert line["image"] + line["text"] == pytest.approx(change, rel=0.01)
        assert np.sum(line["maps"]["image"]) == pytest.approx(line["image"], rel=1e-6, abs=1e-9)
        assert np.sum(line["maps"]["text"]) == pytest.approx(line["text"], rel=1e-6, abs=1e-9)
        assert line["score"] == pytest.approx(
            scores[line["row"]], abs=0.15
        )  # a sketch of 1,024 numbers apart


def test_split_of_a_subset_fills_its_manifest(backcast, images, tmp_path):
    """In its lines stand what the whole pool's split says of them; further subsets are chosen by it."""
    pool, target, subset = tmp_path / "pool", tmp_path / "target", tmp_path / "subset.jsonl"
    backcast("collect", images.model, images.pool, "-o", pool, "--dim", 256)
    backcast("collect", images.model, images.target, "-o", target, "--like", pool)
    backcast("score", pool, target, "-o", tmp_path / "scores", "--method", "grad_cos")
    choose = ["select", "--scores", tmp_path / "scores", "--budget", 5, "-m"]
    backcast(*choose, "top_k", "-o", subset)
    own = ["split", images.model, pool, target, "-m", "grad_cos", "--rows", 1, "--baseline", "blur+mask"]
    backcast(*own, "-o", tmp_path / "all")
    backcast(*own, "--subset", subset, "-o", tmp_path / "some")
    parts = Parts.load(tmp_path / "all" / "parts.parquet")
    manifest = Manifest.load(subset)
    assert manifest.meta["parts"]["score"]["method"] == "grad_cos"
    assert "origin" not in manifest.meta["parts"]
    for line in manifest.lines:
        at = list(parts.rows.ids).index(line["id"])
        for name, values in parts.parts.items():
            assert line["parts"][name] == pytest.approx(values[at], rel=1e-3, abs=1e-6)

    backcast(*own, "--best", "-o", tmp_path / "best")
    served = attribute(SketchStore.open(pool), SketchStore.open(target), "grad_cos").best()
    best = Parts.load(tmp_path / "best" / "parts.parquet").first.score
    np.testing.assert_allclose(best, served, atol=0.3)  # a sketch of 256 numbers apart
    assert np.corrcoef(best, served)[0, 1] > np.corrcoef(parts.first.score, served)[0, 1]

    balanced = tmp_path / "balanced.jsonl"
    backcast(*choose, "modality_balance", "--parts", tmp_path / "all" / "parts.parquet", "-o", balanced)
    assert all(
        set(line["parts"]) == {"image", "text", "interaction"} for line in Manifest.load(balanced).lines
    )


def test_sweep_makes_a_table_that_invert_reads(backcast, text, tmp_path):
    """Further random subsets of one size are further seeds, so that no two rows of the table are alike."""
    pool, out = read_examples(text.pool), tmp_path / "sweep"
    subsets = []
    for draw, budget in ((0, 5), (1, 5), (0, 15)):
        subsets.append(tmp_path / f"{budget}-{draw}.jsonl")
        select(pool.index, budget, "random", draw).save(subsets[-1])
    words = [
        text.model,
        text.pool,
        text.test,
        *subsets,
        "-o",
        out,
        "--seeds",
        1,
        "--steps",
        2,
        "--workers",
        1,
    ]
    found = backcast("sweep", *words, "--json").json
    assert found["results"] == str(out / "results.jsonl")
    assert [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()] == found["rows"]
    keys = ("selector", "budget", "n", "seed", "measure")
    assert [tuple(row[key] for key in keys) for row in found["rows"]] == [
        ("random", "5", 5, 0, "loss"),
        ("random", "5", 5, 1, "loss"),
        ("random", "15", 15, 0, "loss"),
        ("full", "100%", 40, 0, "loss"),
    ]
    assert Manifest.load(subsets[0]).ids != Manifest.load(subsets[1]).ids

    again = backcast("sweep", *words)
    assert again.code == 0
    assert "4 runs in" in again.out
    answers = backcast("invert", out / "results.jsonl", "--target", 4.0, "--lower-is-better", "--json").json
    assert [answer["group"] for answer in answers["answers"]] == ["random"]


# ------------------------------------------------------------------ invert


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    """An accuracy that rises to a ceiling of 0.9: error 0.1 + 0.8 n^-0.5, three seeds."""
    rng = np.random.default_rng(0)
    rows = [
        {"n": n, "metric": 0.9 - 0.8 * n**-0.5 + 0.002 * rng.normal(), "seed": seed, "selector": "top_k"}
        for n in (50, 100, 200, 400, 800, 1600)
        for seed in range(3)
    ]
    return write_jsonl(tmp_path_factory.mktemp("results") / "results.jsonl", rows)


def test_invert_finds_the_least_data(backcast, results):
    words = ["invert", results, "--target", 0.85, "--low", 0, "--high", 1]
    (answer,) = backcast(*words, "--json").json["answers"]
    truth = (0.8 / 0.05) ** 2
    assert answer["status"] == "reached"
    assert truth / 1.3 < answer["n"] < truth * 1.3
    assert answer["low"] < answer["n"] < answer["high"]
    shown = backcast(*words)
    assert (shown.code, shown.err) == (0, "")
    assert shown.out.startswith(answer["sentence"])
    assert answer["next_run"] in shown.out


def test_a_target_out_of_reach_is_an_answer(backcast, results):
    done = backcast("invert", results, "--target", 0.99, "--low", 0, "--high", 1, "--json")
    assert (done.code, done.err) == (1, "")
    assert [answer["status"] for answer in done.json["answers"]] == ["unreachable"]


def test_an_interruption_is_one_line(backcast, results):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)  # in the midst of the fit, which takes longer
        done = backcast("invert", results, "--target", 0.85)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert (done.code, done.out) == (130, "")
    assert done.err == "backcast: interrupted; the same command resumes where it stopped\n"


# ------------------------------------------------------------------ report, version, help


def test_report_makes_the_page_again(backcast, tmp_path):
    page = write_report(Report(title="Leaves & trees", answer=["About 40 of 90."]), tmp_path)
    first = page.read_bytes()
    page.unlink()
    assert backcast("report", tmp_path, "--json").json == {"report": str(page)}
    assert page.read_bytes() == first
    assert read_report(tmp_path).title == "Leaves & trees"


def test_without_a_command_there_is_help(backcast):
    bare, asked = backcast(), backcast("--help")
    assert (bare.code, bare.err) == (0, "")
    assert bare.out.strip() == asked.out.strip()
    listed = bare.out.partition("Commands:\n")[2].splitlines()
    assert [line.split()[0] for line in listed[: len(COMMANDS)]] == COMMANDS
    assert "..." not in bare.out.partition("Commands:\n")[2]  # each command's line is whole
    assert backcast("--version").out.strip() == __version__


# ------------------------------------------------------------------ in processes of their own


def in_a_process(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from backcast.cli import main; main()", *map(str, words)]
    return subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "80"}, check=False
    )


def test_stdout_is_json_and_stderr_is_the_rest(text, tmp_path):
    out = tmp_path / "store"
    done = in_a_process("collect", text.model, text.target, "-o", out, "--dim", 64, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["examples"] == 6
    assert len(done.stdout.splitlines()) == 1
    # No bars in a log: the one line is the library's own.
    assert [line.split()[0] for line in done.stderr.splitlines()] == ["tracking"]


def test_a_failure_is_one_line(text, tmp_path):
    broken = write_jsonl(tmp_path / "pool.jsonl", [{"prompt": "word " * 2000, "response": "too late"}])
    done = in_a_process(
        "select",
        "--model",
        text.model,
        "--train",
        broken,
        "--target",
        text.target,
        "-o",
        tmp_path / "s.jsonl",
    )
    assert (done.returncode, done.stdout) == (2, "")
    *logs, line = done.stderr.splitlines()
    assert line.startswith("backcast: row 0 of pool: ")
    assert {log.split()[0] for log in logs} == {"tracking"}
    assert [path.name for path in tmp_path.iterdir()] == ["pool.jsonl"]


# ------------------------------------------------------------------ the manual


def examples_in_the_manual() -> list[list[str]]:
    text = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()
    blocks = text.split("```")[1::2]
    lines = [line for block in blocks[1:] for line in block.splitlines() if line.startswith("backcast ")]
    return [shlex.split(line)[1:] for line in lines]


def test_the_manual_shows_every_command(backcast):
    shown = [words[0] for words in examples_in_the_manual()]
    assert set(shown) == set(COMMANDS)


@pytest.mark.parametrize("words", examples_in_the_manual(), ids=" ".join)
def test_an_example_of_the_manual_can_be_parsed(words, backcast):
    """Cut short by --help, which comes after the options and arguments have been read."""
    options = [word for word in words if word.startswith("-")]
    shown = backcast(words[0], "--help").out
    assert all(re.search(rf"(^|[ ,]){re.escape(option)}[ ,]", shown, re.MULTILINE) for option in options)
    assert backcast(*words, "--nonsense").err.startswith("backcast: No such option: --nonsense")
