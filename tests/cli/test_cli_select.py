"""One command from a user's own files to a subset that can be checked and loaded."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from cli_cases import (
    as_messages,
    as_text,
    pairs,
    write_dataset,
    write_jsonl,
    write_parquet,
)

from backcast.attribution import Scores, SketchStore
from backcast.data import read_examples
from backcast.files import read_json
from backcast.manifests import Manifest, load_subset
from backcast.multimodal.parts import Parts, Split
from backcast.selectors import FILTERS, SELECTORS, driven
from backcast.selectors.methods import DIVIDERS
from backcast.selectors.modality import MODALITIES

FORMATS = {
    "prompt and response, JSONL": (write_jsonl, "pool.jsonl", list),
    "messages, Parquet": (write_parquet, "pool.parquet", as_messages),
    "plain text, dataset folder": (write_dataset, "pool", as_text),
}


@pytest.mark.parametrize("form", FORMATS)
def test_from_text_to_a_subset(form, backcast, text, tmp_path):
    write, name, turn = FORMATS[form]
    pool = write(tmp_path / name, turn(pairs(40, 0)))
    target = write(tmp_path / f"wanted-{name}", turn(pairs(6, 1)))
    out = tmp_path / "subset.jsonl"
    done = backcast(
        "select", "--model", text.model, "--train", pool, "--target", target, "--budget", "20%", "-o", out
    )
    assert done.code == 0, done.err
    assert f"subset    {out}" in done.out
    assert "examples  8" in done.out

    manifest, examples = Manifest.load(out), read_examples(pool)
    assert len(manifest) == 8
    assert manifest.ids == tuple(examples[int(row)].id for row in manifest.rows)
    meta = json.loads((tmp_path / "subset.meta.json").read_text())
    assert meta["budget"] == {"asked": "20%", "got": 8}
    assert (meta["selector"]["method"], meta["seed"]) == ("round_robin", 0)
    assert meta["origin"]["model"] == "LlamaForCausalLM"
    assert meta["origin"]["target"]["fingerprint"] == read_examples(target).index.fingerprint

    assert backcast("check", out).code == 0
    subset = load_subset(out)
    assert len(subset) == 8
    assert "weight" in subset.column_names
    first = examples[int(manifest.rows[0])].fields
    assert all(subset[0][field] == first[field] for field in first)


def test_from_pictures_to_a_subset(backcast, images, tmp_path):
    out = tmp_path / "subset.jsonl"
    words = [
        "--model",
        images.model,
        "--train",
        images.pool,
        "--target",
        images.target,
        "--budget",
        8,
        "-o",
        out,
    ]
    found = backcast("select", *words, "-m", "dedup | facility_location", "--json").json
    assert found == {
        "subset": str(out),
        "examples": 8,
        "method": "dedup | facility_location",
        "budget": "8",
        "dropped": Manifest.load(out).meta["dropped"]["reasons"],
    }
    assert list(found["dropped"]) == ["dedup"]
    assert json.loads((tmp_path / "subset.meta.json").read_text())["origin"]["model"] == "CLIP"
    assert backcast("check", out, "--json").json["ok"] is True
    rows = load_subset(out)
    pool = read_examples(images.pool)
    assert [pool[int(r)].fields["caption"] for r in Manifest.load(out).rows] == rows["caption"]


def test_the_one_command_is_its_steps(backcast, text, tmp_path):
    """The same subset, byte for byte, as collect, score and select give one after the other; each tells of its run."""
    once = tmp_path / "once.jsonl"
    method = ["--budget", 10, "-m", "dedup|facility_location", "--seed", 3]
    backcast(
        "select", "--model", text.model, "--train", text.pool, "--target", text.target, *method, "-o", once
    )

    pool, target, scores = tmp_path / "pool", tmp_path / "target", tmp_path / "scores"
    assert backcast("collect", text.model, text.pool, "-o", pool).code == 0
    assert backcast("collect", text.model, text.target, "-o", target, "--like", pool).code == 0
    assert backcast("score", pool, target, "-o", scores).code == 0
    steps = backcast("select", "--scores", scores, "--store", pool, *method, "-o", tmp_path / "steps.jsonl")
    assert steps.code == 0, steps.err
    assert (tmp_path / "steps.jsonl").read_bytes() == once.read_bytes()
    metas = [read_json(tmp_path / f"{name}.meta.json") for name in ("once", "steps")]
    runs = [meta.pop("run") for meta in metas]
    assert metas[0] == metas[1]
    assert (tmp_path / runs[0]["pool"]).resolve() == text.pool
    assert (runs[1]["scores"], runs[1]["store"]) == ("./scores", "./pool")


def test_another_budget_reuses_the_sketches(backcast, text, tmp_path):
    words = ["select", "--model", text.model, "--train", text.pool, "--target", text.target]
    out = tmp_path / "subset.jsonl"
    assert backcast(*words, "-o", out).code == 0
    shards = sorted((tmp_path / "subset.sketches").rglob("shard-*"))
    before = [(path, path.stat().st_mtime_ns) for path in shards]
    assert len(before) == 2

    first = out.read_bytes()
    assert backcast(*words, "-o", out, "--budget", "50%", "-m", "random", "--seed", 9).code == 0
    assert len(Manifest.load(out)) == 20
    assert backcast(*words, "-o", out).code == 0
    assert out.read_bytes() == first
    assert [(path, path.stat().st_mtime_ns) for path in shards] == before


def test_columns_of_the_users_own_names(backcast, text, tmp_path):
    rows = [{"q": row["prompt"], "a": row["response"], "id": i} for i, row in enumerate(pairs(40, 0))]
    pool, target = (
        write_jsonl(tmp_path / "pool.jsonl", rows),
        write_jsonl(tmp_path / "wanted.jsonl", rows[:3]),
    )
    out = tmp_path / "subset.jsonl"
    words = ["--model", text.model, "--train", pool, "--target", target, "--columns", "prompt=q, response=a"]
    assert backcast("select", *words, "--budget", 3, "-o", out).code == 0
    # Each wanted example is in the pool, and nothing has a higher cosine than itself.
    assert sorted(Manifest.load(out).rows.tolist()) == [0, 1, 2]
    assert backcast("check", out).code == 0
    assert load_subset(out)["id"] == Manifest.load(out).rows.tolist()


# ------------------------------------------------------------------ a run as a file


@pytest.fixture
def folder(text, tmp_path) -> Path:
    """A folder with all that a run needs, and its file."""
    folder = tmp_path / "first"
    shutil.copytree(text.model, folder / "llama")
    for data in (text.pool, text.target, text.test):
        shutil.copy(data, folder)
    (folder / "run.yaml").write_text(RUN)
    return folder


RUN = """
model: llama
pool: pool.jsonl
target:
  math: {data: wanted.jsonl, weight: 2}
  code: test.jsonl
budget: 20%
method: dedup(threshold=0.999) | top_k
sketch: {dim: 64}
out: chosen/subset.jsonl
"""


def test_a_run_is_replayed_anywhere_byte_for_byte(backcast, folder, tmp_path):
    """From its file, and from a manifest's own account of it, in another folder, process and number of threads.

    A shard is one batch here, whatever the threads.
    """
    done = backcast("select", "--config", folder / "run.yaml")
    assert done.code == 0, done.err
    first = folder / "chosen" / "subset.jsonl"
    manifest = Manifest.load(first)
    assert manifest.meta["groups"] == {"math": 6, "code": 8}
    assert len(manifest) == 8

    second = Path(shutil.copytree(folder, tmp_path / "second", ignore=shutil.ignore_patterns("*.sketches")))
    words = ["select", "--config", "subset.meta.json", "-o", "again.jsonl"]
    again = in_a_process(*words, cwd=second / "chosen", threads=2)
    assert again.wait() == 0, again.stderr and again.stderr.read()
    for suffix in (".jsonl", ".meta.json"):
        replayed = (second / "chosen" / "again.jsonl").with_suffix(suffix)
        assert replayed.read_bytes() == first.with_suffix(suffix).read_bytes()
    assert str(folder) not in (folder / "chosen" / "subset.meta.json").read_text()
    assert backcast("check", second / "chosen" / "again.jsonl").code == 0


def test_options_go_before_the_files_keys(backcast, folder, tmp_path):
    (folder / "run.yaml").write_text(RUN + "trial: {test: gone.jsonl, steps: 5}\n")
    words = ["select", "--config", folder / "run.yaml", "-o", tmp_path / "other.jsonl"]
    words += ["--test", folder / "test.jsonl"]
    more = ["--target", f"a={folder / 'wanted.jsonl'}", "--weight", "a=3", "-m", "random", "--seed", 4]
    found = backcast(*words, *more, "--budget", "100 tokens", "--json").json
    assert (found["method"], found["budget"]) == ("random", "100 tokens")
    manifest = Manifest.load(tmp_path / "other.jsonl")
    assert found["spent"] == sum(line["cost"] for line in manifest.lines) <= 100
    assert manifest.meta["weights"] == {"a": 3.0}
    assert manifest.meta["run"]["target"] == {"a": "./first/wanted.jsonl"}
    assert manifest.meta["run"]["trial"] == {
        "test": "./first/test.jsonl",
        "steps": 5,
        "batch_size": 64,
        "learning_rate": 0.001,
        "seeds": 1,
    }
    assert not (folder / "chosen").exists()


def test_an_interrupted_run_resumes(backcast, text, folder):
    """Interrupted by the keyboard while it collects; the same command ends in the same bytes as one go."""
    write_jsonl(folder / "pool.jsonl", [{"prompt": "red ", "response": f"{i}"} for i in range(5 * 256)])
    process = in_a_process("select", "--config", "run.yaml", cwd=folder)
    shards = folder / "chosen" / "subset.sketches" / "pool" / "checkpoint-00"
    while process.poll() is None and not (shards / "shard-00000.safetensors").exists():
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert (process.returncode, out) == (130, ""), err
    assert err.splitlines()[-1] == "backcast: interrupted; the same command resumes where it stopped"
    kept = {path: path.stat().st_mtime_ns for path in shards.iterdir()}
    assert 1 <= len(kept) < 5
    assert not (folder / "chosen" / "subset.jsonl").exists()

    assert backcast("select", "--config", folder / "run.yaml").code == 0
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert len(list(shards.iterdir())) == 5
    resumed = (folder / "chosen" / "subset.jsonl").read_bytes()
    shutil.rmtree(folder / "chosen")
    assert backcast("select", "--config", folder / "run.yaml").code == 0
    assert (folder / "chosen" / "subset.jsonl").read_bytes() == resumed


def in_a_process(*words: object, cwd: Path, threads: int = 1) -> subprocess.Popen[str]:
    """The command by itself, deaf to no interruption, whoever started the tests."""
    program = (
        "import signal; signal.signal(2, signal.default_int_handler); from backcast.cli import main; main()"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, words)],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_what_a_run_would_take(backcast, folder):
    before = sorted(folder.rglob("*"))
    words = ["select", "--config", folder / "run.yaml", "--dry-run"]
    found = backcast(*words, "--json").json
    assert [step["step"] for step in found["steps"]] == [
        *("data", "model", "sketches of the target", "sketches of the pool", "scores", "choice")
    ]
    assert [step["rows"] for step in found["steps"]] == [54, None, 14, 40, 40 * 14, 40]
    assert found["unknown"] == ["dedup"]
    told = backcast(*words)
    assert told.code == 0, told.err
    assert [line.split("  ")[0].strip() for line in told.out.splitlines()[1:9]] == [
        *(step["step"] for step in found["steps"]),
        *("total", "free"),
    ]
    assert told.out.splitlines()[-1] == "Not counted: the time and the memory of dedup, which are not known."
    assert sorted(folder.rglob("*")) == before


def test_help_names_every_method(backcast):
    shown = backcast("select", "--help").out
    for name in (*SELECTORS, *FILTERS, *DIVIDERS):
        assert f"\n  {name}  " in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--target", "a=x", "--target", "a=y"], "--target a: is given twice"),
        (["--target", "x", "--target", "y"], "--target x: write NAME=VALUE, e.g. math=math.jsonl"),
        (["--weight", "a=heavy"], "--weight: heavy must be numbers; write math=2"),
        (["--at-least", "web"], "--at-least web: write NAME=VALUE, e.g. web=10%"),
        (["--at-most", "web=much"], "at_most: budget 'much': give a count"),
        (["--signal", "=x"], "--signal =x: write NAME=VALUE"),
        (["--group-by", "label"], "group_by: targets are grouped by 'source'"),
        (["--config", "gone.yaml"], "gone.yaml: No such file or directory"),
        (["--scores", "s", "--model", "m"], "counts tokens; the budget is in examples"),
        (["--scores", "s", "--dry-run"], "s: no such scores file"),
    ],
)
def test_options_that_say_nothing(words, message, backcast, tmp_path):
    done = backcast("select", *words, "-o", tmp_path / "subset.jsonl")
    assert (done.code, done.out, len(done.err.splitlines())) == (2, "", 1)
    assert message in done.err
    assert not any(tmp_path.iterdir())


def test_signals_and_parameters_from_files(backcast, text, tmp_path):
    """A window of a signal: the rows between its quartiles."""
    pool = read_examples(text.pool).index
    for name, values in (("scores", np.zeros(40)), ("loss", np.arange(40.0))):
        Scores(values[:, None].astype(np.float32), pool, ("t",), "loss").save(tmp_path / name)
    words = ["select", "--scores", tmp_path / "scores", "--signal", f"loss={tmp_path / 'loss'}"]
    out = ["-o", tmp_path / "subset.jsonl", "--budget", 6]
    done = backcast(*words, *out, "-m", "middle", "--param", "of=loss")
    assert done.code == 0, done.err
    assert sorted(Manifest.load(tmp_path / "subset.jsonl").rows.tolist()) == [17, 18, 19, 20, 21, 22]
    assert Manifest.load(tmp_path / "subset.jsonl").meta["run"]["params"] == {"of": "loss"}


# ------------------------------------------------------------------ by the parts of the scores


@pytest.fixture
def by_parts(images, tmp_path) -> tuple[Path, Path]:
    """Files of scores and of parts: images harm rows 0 to 4, texts rows 5 and 6; row 7 is flagged."""
    pool = read_examples(images.pool).index
    values = np.linspace(1, 0, 40)
    Scores(values[:, None].astype(np.float32), pool, ("t",), "grad_dot", {}, {}).save(tmp_path / "scores")
    image, text = np.where(np.arange(40) % 2, 3.0, 1.0), np.ones(40)
    image[:5], text[5:7], text[7] = -2, -9, -99
    parts = {"image": image, "text": text}
    split = Split(values, np.zeros(40), parts, image - text, np.where(np.arange(40) == 7, 0.5, 0.0))
    Parts(pool, {"mean": split}).save(tmp_path / "parts.parquet")
    return tmp_path / "scores", tmp_path / "parts.parquet"


def test_rows_harmful_through_one_modality_are_dropped_and_told(backcast, by_parts, tmp_path):
    scores, parts = by_parts
    out = tmp_path / "subset.jsonl"
    words = ["--scores", scores, "--parts", parts, "-m", "one_sided_harm | top_k", "--budget", 6, "-o", out]
    done = backcast("select", *words)
    assert done.code == 0, done.err
    assert "dropped   one_sided_harm (image: 5, text: 2)" in done.out
    told = backcast("select", *words, "--json").json["dropped"]
    assert told == {"one_sided_harm": {"image": 5, "text": 2}}

    manifest = Manifest.load(out)
    assert manifest.rows.tolist() == [7, 8, 9, 10, 11, 12]
    assert manifest.lines[0]["parts"] == {"image": None, "text": None, "interaction": None}
    assert manifest.lines[2]["parts"] == {"image": 3, "text": 1, "interaction": 2}
    assert [(row["row"], row["reason"]) for row in manifest.meta["dropped"]["rows"]] == [
        *((row, "image") for row in range(5)),
        (5, "text"),
        (6, "text"),
    ]
    assert backcast("check", out).code == 0


def test_one_shot_with_parts(backcast, images, by_parts, tmp_path):
    """The classes take turns: image-driven and text-driven rows are as many."""
    words = ["select", "--model", images.model, "--train", images.pool, "--target", images.target]
    out = tmp_path / "subset.jsonl"
    method = ["-m", "modality_balance", "--budget", 6, "-o", out]
    done = backcast(*words, *method, "--parts", by_parts[1])
    assert done.code == 0, done.err
    kinds = driven(
        {m: np.array([line["parts"][m] or 0 for line in Manifest.load(out).lines]) for m in MODALITIES}
    )
    assert kinds.tolist() == ["image", "text", "mixed"] * 2


def test_parts_that_are_missing_or_anothers_are_refused_at_once(backcast, images, by_parts, tmp_path):
    words = ["select", "--model", images.model, "--train", images.pool, "--target", images.target]
    out = ["-o", tmp_path / "subset.jsonl", "-m", "image_needed | top_k"]
    slips = {
        "image_needed | top_k: needs the pool's scores split by modality": [],
        "gone.parquet: no such file": ["--parts", tmp_path / "gone.parquet"],
        f"{by_parts[0]}: not a file of parts": ["--parts", by_parts[0]],
    }
    for says, more in slips.items():
        done = backcast(*words, *out, *more)
        assert (done.code, len(done.err.splitlines())) == (2, 1)
        assert says in done.err
    words[4] = images.test
    done = backcast(*words, *out, "--parts", by_parts[1])
    assert done.code == 2
    assert "the parts are those of 40 other examples than the 10 of the pool" in done.err
    assert not (tmp_path / "subset.sketches").exists()


# ------------------------------------------------------------------ does it still fit?


@pytest.fixture(scope="module")
def selected(text, tmp_path_factory) -> Path:
    """A folder with a pool and a manifest of it."""
    from backcast.data import read_examples
    from backcast.selectors import select

    folder = tmp_path_factory.mktemp("selected")
    shutil.copy(text.pool, folder / "pool.jsonl")
    select(read_examples(folder / "pool.jsonl").index, 5, "random").save(folder / "subset.jsonl")
    return folder


@pytest.fixture
def moved(selected, tmp_path) -> Path:
    """The folder, somewhere else."""
    return Path(shutil.copytree(selected, tmp_path / "moved"))


def test_a_moved_folder_still_fits(backcast, moved):
    done = backcast("check", moved / "subset.jsonl")
    assert (done.code, done.err) == (0, "")
    assert "all 5 rows fit" in done.out
    assert str(moved) in done.out


def test_changed_data_no_longer_fit(backcast, moved):
    row = int(Manifest.load(moved / "subset.jsonl").rows[2])
    lines = (moved / "pool.jsonl").read_text().splitlines(keepends=True)
    lines[row] = lines[row].replace("as well.", "as well!")
    (moved / "pool.jsonl").write_text("".join(lines))

    done = backcast("check", moved / "subset.jsonl")
    assert (done.code, done.err) == (1, "")
    assert len(done.out.splitlines()) == 1
    assert f"1 changed (first: row {row})" in done.out
    told = backcast("check", moved / "subset.jsonl", "--json")
    assert told.code == 1
    assert {k: told.json[k] for k in ("ok", "moved", "changed", "missing", "duplicated")} == {
        "ok": False,
        "moved": 0,
        "changed": 1,
        "missing": 0,
        "duplicated": 0,
    }


def test_data_elsewhere_are_named(backcast, moved):
    elsewhere = moved / "other.jsonl"
    (moved / "pool.jsonl").rename(elsewhere)
    lost = backcast("check", moved / "subset.jsonl")
    assert lost.code == 2
    assert lost.err == f"backcast: {moved / 'pool.jsonl'}: no such file\n"
    assert backcast("check", moved / "subset.jsonl", "--data", elsewhere).code == 0


def test_a_sketch_store_can_be_read_by_the_library(backcast, text, tmp_path):
    """What `collect` says of the store is what is in it."""
    found = backcast(
        "collect", text.model, text.target, "-o", tmp_path / "s", "--dim", 64, "--seed", 5, "--json"
    ).json
    store = SketchStore.open(tmp_path / "s")
    assert found == {
        "store": str(tmp_path / "s"),
        "examples": 6,
        "checkpoints": 1,
        "kind": store.spec.kind,
        "dim": 64,
        "seed": 5,
    }
    assert store.sketches().shape == (6, 64)
    assert np.linalg.norm(store.sketches(), axis=1).min() > 0
