"""Bad input: one line that names it, exit code 2, and nothing half-written left behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cli_cases import Done, Files, as_messages, pairs, write_jsonl
from safetensors.torch import load_file, save_file

from backcast.attribution import collect
from backcast.data import read_examples
from backcast.kernels import SketchSpec
from backcast.multimodal import load_task
from backcast.selectors import select


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every path under a folder, and what its file holds."""
    return {
        str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))
    }


@pytest.fixture
def refused(backcast, tmp_path) -> Callable[..., None]:
    """``refused(words, *parts)``: one line with these parts, exit code 2, and tmp_path as it was."""

    def check(words: list[object], *parts: str) -> None:
        before = tree(tmp_path)
        done: Done = backcast(*words)
        assert (done.code, done.out) == (2, "")
        assert done.err.endswith("\n")
        assert len(done.err.splitlines()) == 1
        assert done.err.startswith("backcast: ")
        for part in parts:
            assert part in done.err
        assert tree(tmp_path) == before

    return check


@pytest.fixture(scope="module")
def made(text: Files, tmp_path_factory) -> Any:
    """Finished parts to go wrong with: stores, scores and a manifest."""
    folder = tmp_path_factory.mktemp("made")
    pool, wanted = read_examples(text.pool), read_examples(text.target)
    model, task = load_task(str(text.model), pool)
    for name, examples, spec in (
        ("pool", pool, SketchSpec("kron", 64)),
        ("target", wanted, SketchSpec("kron", 64)),
        ("other-seed", wanted, SketchSpec("kron", 64, seed=1)),
        ("other-dim", wanted, SketchSpec("kron", 128)),
    ):
        collect(model, task, examples, folder / name, spec=spec)
    manifest = select(pool.index, 5, "random").save(folder / "subset.jsonl")
    parts = {path.name.replace("-", "_"): path for path in folder.iterdir() if path.is_dir()}
    return SimpleNamespace(**parts, subset=manifest.path)


def one_shot(files: Files, tmp_path: Path, **changes: object) -> list[object]:
    """`backcast select` on ``files``, with some of its options changed."""
    options = {
        "model": files.model,
        "train": files.pool,
        "target": files.target,
        "out": tmp_path / "subset.jsonl",
        **changes,
    }
    return ["select", *(word for name, value in options.items() for word in (f"--{name}", value))]


# ------------------------------------------------------------------ the data


def test_a_missing_column(refused, text, tmp_path):
    pool = write_jsonl(tmp_path / "bad.jsonl", [{"prompt": "a", "id": 1}])
    refused(one_shot(text, tmp_path, train=pool), f"{pool}: ", "prompt, id", "prompt+response")


def test_a_column_that_is_not_there(refused, text, tmp_path):
    words = [*one_shot(text, tmp_path), "--columns", "prompt=question,response=answer"]
    refused(words, f"{text.pool}: no column 'question'", "the columns are prompt, response")
    refused([*one_shot(text, tmp_path), "--columns", "prompt:question"], "--columns 'prompt:question'")


def test_a_row_without_its_field(refused, text, tmp_path):
    pool = write_jsonl(tmp_path / "bad.jsonl", [*pairs(3, 0), {"prompt": "a"}])
    refused(one_shot(text, tmp_path, train=pool), f"{pool}:4 (row 3): no 'response'")


def test_an_empty_pool(refused, text, tmp_path):
    (tmp_path / "bad.jsonl").write_text("\n")
    refused(one_shot(text, tmp_path, train=tmp_path / "bad.jsonl"), f"{tmp_path / 'bad.jsonl'}: no rows")


def test_an_unreadable_line(refused, text, tmp_path):
    pool = write_jsonl(tmp_path / "bad.jsonl", pairs(3, 0))
    pool.write_text(pool.read_text() + '{"prompt": "cut o')
    refused(one_shot(text, tmp_path, train=pool), f"{pool}:4: not JSON")
    refused(["collect", text.model, pool, "-o", tmp_path / "store"], f"{pool}:4: not JSON")


def test_no_such_file(refused, text, tmp_path):
    gone = tmp_path / "gone.jsonl"
    refused(one_shot(text, tmp_path, target=gone), f"{gone}: no such file")


def test_a_broken_image(refused, images, tmp_path):
    (tmp_path / "cut.png").write_bytes((images.pool.parent / "images" / "pool-0.png").read_bytes()[:200])
    fine = str(images.pool.parent / "images" / "pool-1.png")
    rows = [{"image": fine, "caption": "a fine one"}, {"image": "cut.png", "caption": "a cut one"}]
    pool = write_jsonl(tmp_path / "bad.jsonl", rows)
    refused(one_shot(images, tmp_path, train=pool), f"{pool}:2 (row 1): image cannot be decoded", "cut.png")
    rows[1]["image"] = "none.png"
    write_jsonl(pool, rows)
    refused(one_shot(images, tmp_path, train=pool), f"{pool}:2 (row 1): image", "none.png' does not exist")


def test_pool_and_target_of_two_kinds(refused, text, images, tmp_path):
    words = one_shot(text, tmp_path, target=images.target)
    refused(words, f"{images.target} has captioned images, {text.pool} has text")
    refused(
        ["collect", images.model, images.target, "--bank", text.pool, "-o", tmp_path / "s"], "of one kind"
    )


def test_a_precision_that_does_not_exist(refused, text, tmp_path):
    words = ["collect", text.model, text.pool, "-o", tmp_path / "store", "--autocast", "int8"]
    refused(words, "autocast to 'int8' does not exist; choose bfloat16 or float16")


def test_messages_for_a_tokenizer_without_a_template(refused, text, tmp_path):
    """Found when the collection has begun; its folder is gone again."""
    model = Path(shutil.copytree(text.model, tmp_path / "llama"))
    (model / "chat_template.jinja").unlink()
    pool = write_jsonl(tmp_path / "chats.jsonl", as_messages(pairs(40, 0)))
    refused(one_shot(text, tmp_path, model=model, train=pool, target=pool), "has no chat template")
    refused(["collect", model, pool, "-o", tmp_path / "store"], "has no chat template")


def test_a_prompt_that_leaves_no_room(refused, text, tmp_path):
    pool = write_jsonl(tmp_path / "bad.jsonl", [*pairs(39, 0), {"prompt": "red " * 2000, "response": "a"}])
    refused(one_shot(text, tmp_path, train=pool), "row 39 of bad: no response token is left")


# ------------------------------------------------------------------ the model


def test_a_folder_without_weights(refused, text, images, tmp_path):
    for files, weights in ((text, "model.safetensors"), (images, "open_clip_model.safetensors")):
        model = Path(shutil.copytree(files.model, tmp_path / weights))
        (model / weights).unlink()
        refused(one_shot(files, tmp_path, model=model), f"{model}: ", weights)
        refused(["collect", model, files.pool, "-o", tmp_path / "store"], f"{model}: ", weights)
        sweep = ["sweep", model, files.pool, files.test, "-o", tmp_path / "sweep"]
        subset = select(read_examples(files.pool).index, 5, "random").save(tmp_path / f"{weights}.jsonl").path
        refused([*sweep, subset], f"{model}: ", weights)


def test_no_such_model(refused, text, images, tmp_path):
    refused(
        one_shot(text, tmp_path, model=tmp_path / "gone"), f"{tmp_path / 'gone'}: no causal language model"
    )
    refused(one_shot(images, tmp_path, model="ViT-B-33"), "ViT-B-33: ")


def test_weights_that_are_not_numbers(refused, text, tmp_path):
    """Every gradient is NaN: known when the first shard is to be written."""
    model = Path(shutil.copytree(text.model, tmp_path / "llama"))
    weights = load_file(model / "model.safetensors")
    save_file({k: torch.full_like(v, torch.nan) for k, v in weights.items()}, model / "model.safetensors")
    refused(["collect", model, text.pool, "-o", tmp_path / "store"], "is not finite")
    refused(one_shot(text, tmp_path, model=model), "is not finite")


def test_checkpoints(refused, text, images, tmp_path):
    words = ["collect", text.model, text.pool, "-o", tmp_path / "store", "--checkpoint"]
    refused([*words, tmp_path / "gone.safetensors"], "gone.safetensors: no such checkpoint")
    refused([*words, images.model], "not a checkpoint of this model")
    refused([*words, f"{text.model}=fast"], "'fast' is no learning rate")
    refused([*words, f"{text.model}=0"], "'0' is no learning rate")


# ------------------------------------------------------------------ the selection


@pytest.mark.parametrize(
    ("budget", "part"),
    [
        ("0", "budget '0': it must be above zero"),
        ("0%", "budget '0%': it must be above zero"),
        ("100.1%", "budget '100.1%': it must not be above 100 %"),
        ("41", "budget '41': the pool holds only 40 examples"),
        ("0.05", "a count of examples is a whole number"),
        ("half", "give a count such as 500"),
    ],
)
def test_budgets(budget, part, refused, text, made, tmp_path, backcast):
    refused(one_shot(text, tmp_path, budget=budget), part)
    scores = tmp_path / "scores"
    backcast("score", made.pool, made.target, "-o", scores)
    refused(["select", "--scores", scores, "--budget", budget, "-o", tmp_path / "subset.jsonl"], part)


@pytest.mark.parametrize(
    ("method", "part"),
    [
        ("best", "'best' is no selector"),
        ("dedup", "'dedup' is no selector"),
        ("top_k | random", "'top_k' is no filter"),
    ],
)
def test_methods(method, part, refused, text, tmp_path, backcast, made):
    # Before anything is read, not to speak of collected: the pool does not even exist.
    refused(one_shot(text, tmp_path, method=method, train=tmp_path / "gone.jsonl"), part)
    scores = tmp_path / "scores"
    backcast("score", made.pool, made.target, "-o", scores)
    refused(["select", "--scores", scores, "-m", method, "-o", tmp_path / "subset.jsonl"], part)


def test_what_a_selection_needs(refused, backcast, made, text, tmp_path):
    scores, out = tmp_path / "scores", ["-o", tmp_path / "subset.jsonl"]
    backcast("score", made.pool, made.target, "-o", scores)
    either = "give either --scores (and --store), or --model with --train and --target"
    refused(["select", *out], either)
    refused(["select", "--model", text.model, "--train", text.pool, *out], either)
    refused([*one_shot(text, tmp_path), "--scores", scores], either)
    refused(["select", "--scores", scores, "-m", "dedup | top_k", *out], "needs features")
    refused(["select", "--scores", scores, "--store", made.target, *out], "of 6 other examples than the 40")
    refused(["select", "--scores", made.subset, *out], f"{made.subset}: not a scores file")
    refused(["select", "--scores", tmp_path / "gone", *out], "gone: no such scores file")


def test_where_a_manifest_may_not_go(refused, backcast, made, text, tmp_path):
    refused(one_shot(text, tmp_path, out=tmp_path / "subset.txt"), "a manifest's name ends in .jsonl")
    pool, scores = Path(shutil.copy(text.pool, tmp_path / "pool.jsonl")), tmp_path / "scores"
    refused(one_shot(text, tmp_path, train=pool, out=pool), f"{pool}: is a data set")
    refused(one_shot(text, tmp_path, target=pool, out=pool), f"{pool}: is a data set")
    (tmp_path / "folder.jsonl").mkdir()
    backcast("score", made.pool, made.target, "-o", scores)
    words = ["select", "--scores", scores, "-o"]
    refused([*words, tmp_path / "folder.jsonl"], f"{tmp_path / 'folder.jsonl'}: Is a directory")
    refused([*words, text.pool], f"{text.pool}: is the pool itself")
    refused([*words, scores / "subset.jsonl"], f"{scores}")


# ------------------------------------------------------------------ stores


def test_stores_of_two_specs(refused, backcast, made, tmp_path):
    out = tmp_path / "scores"
    for other, part in ((made.other_seed, "seed 1"), (made.other_dim, "dim 128")):
        mend = f"--like {made.pool}'"
        refused(["score", made.pool, other, "-o", out], f"{other}: its sketch spec", part, mend)
        refused(["search", made.pool, other], f"{other}: of another sketch spec", mend)


def test_stores_of_two_models(refused, backcast, made, text, tmp_path):
    model = Path(shutil.copytree(text.model, tmp_path / "llama"))
    weights = load_file(model / "model.safetensors")
    save_file({k: v + 0.01 for k, v in weights.items()}, model / "model.safetensors")
    backcast("collect", model, text.target, "-o", tmp_path / "target", "--like", made.pool)
    refused(["score", made.pool, tmp_path / "target", "-o", tmp_path / "scores"], "at other checkpoints")


def test_stores_of_two_banks(refused, backcast, images, tmp_path):
    """A target with negatives of its own: its losses are others than the pool's."""
    pool, target = tmp_path / "pool", tmp_path / "target"
    assert backcast("collect", images.model, images.pool, "-o", pool, "--dim", 64).code == 0
    words = ["collect", images.model, images.target, "-o", target, "--like", pool]
    assert backcast(*words, "--bank", images.target).code == 0
    refused(["score", pool, target, "-o", tmp_path / "scores"], f"{target}: collected with another loss")
    refused([*words], f"{target}: of other data, weights or settings")
    shutil.rmtree(target)
    assert backcast(*words).code == 0  # --like takes the pool's bank
    assert backcast("score", pool, target, "-o", tmp_path / "scores").code == 0


def test_folders_that_are_no_store(refused, made, text, tmp_path):
    refused(["score", text.model, made.target, "-o", tmp_path / "s"], f"{text.model}: not a sketch store")
    refused(["search", made.pool, tmp_path], f"{tmp_path}: not a sketch store")
    refused(["search", made.pool, 40], f"{made.pool}: has no row 40; its rows are 0 to 39")
    refused(["collect", text.model, text.target, "-o", made.pool], f"{made.pool}: of other data")
    refused(["collect", text.model, text.target, "-o", text.pool.parent], "not a sketch store, and not empty")


def test_a_damaged_shard(refused, made, tmp_path):
    store = Path(shutil.copytree(made.pool, tmp_path / "pool"))
    (shard,) = store.rglob("*.safetensors")
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    refused(["score", store, made.target, "-o", tmp_path / "scores"], f"{shard}: damaged shard")
    shard.unlink()
    refused(["score", store, made.target, "-o", tmp_path / "scores"], f"{store}: 1 of its shards are missing")


def test_sketches_that_cannot_be(refused, text, tmp_path):
    words = ["collect", text.model, text.pool, "-o", tmp_path / "store"]
    refused([*words, "--kind", "best"], "sketch kind 'best' does not exist", "kron")
    refused([*words, "--dim", 0], "--dim")


def test_scores(refused, made, tmp_path):
    words = ["score", made.pool, made.target, "-o"]
    refused([*words, tmp_path / "scores", "-m", "best"], "method 'best' does not exist", "tracin")
    (tmp_path / "folder").mkdir()
    refused([*words, tmp_path / "folder"], f"{tmp_path / 'folder'}: Is a directory")


# ------------------------------------------------------------------ split


def test_split(refused, backcast, made, text, images, tmp_path):
    out = ["-o", tmp_path / "split"]
    refused(["split", text.model, made.pool, made.target, *out], "a single modality")

    own = replace(images, pool=Path(shutil.copytree(images.pool.parent, tmp_path / "own")) / "pool.jsonl")
    pool, target = tmp_path / "pool", tmp_path / "target"
    backcast("collect", own.model, own.pool, "-o", pool, "--dim", 64)
    backcast("collect", own.model, own.target, "-o", target, "--like", pool)
    (checkpoint,) = images.model.glob("*.safetensors")
    weights = {k: 1.1 * v for k, v in load_file(checkpoint).items()}
    save_file(weights, tmp_path / "later.safetensors")
    words = ["split", own.model, pool, target, *out]
    refused(
        [*words, "--checkpoint", tmp_path / "later.safetensors"], f"{pool}: was collected at other weights"
    )

    lines = own.pool.read_text().splitlines(keepends=True)
    own.pool.write_text("".join(lines[1:]))
    refused(words, f"{own.pool}: has changed since {pool} was collected")


# ------------------------------------------------------------------ sweep


def test_sweep(refused, made, text, images, tmp_path):
    words = ["sweep", text.model, text.pool, text.test, made.subset, "-o", tmp_path / "sweep"]
    refused([*words, "--lr", 0], "--learning-rate 0: it must be above zero")
    refused([*words, "--steps", 0], "--steps")
    refused([*words, tmp_path / "gone.jsonl"], "gone.jsonl: no such manifest")
    words[2] = text.test
    refused(words, f"{made.subset}: does not fit {text.test}")
    words[2:4] = [text.pool, images.test]
    refused(words, f"{images.test} has captioned images, {text.pool} has text")


# ------------------------------------------------------------------ invert, check, report, demo


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("", ": no rows"),
        ("n,value\n10,0.5\n20,many\n", "results.csv:3: value is 'many', which is not a number"),
        ("size,value\n10,0.5\n20,0.6\n", ": no column 'n'"),
        ("n,value\n10,0.5\n10,0.6\n", "are all at n = 10"),
        ("n,value\n10,0.5\n20,1.6\n", "value 1.6 at n = 20 is outside the bounds 0 to 1"),
        ("n,value,seed\n10,0.5,1\n10,0.6,1\n20,0.7,1\n", "with seed 1 is already at"),
    ],
)
def test_results(content, part, refused, tmp_path):
    results = tmp_path / "results.csv"
    results.write_text(content)
    refused(["invert", results, "--target", 0.8, "--low", 0, "--high", 1], part)


def test_results_that_are_none(refused, text, tmp_path):
    weights = text.model / "model.safetensors"
    refused(["invert", weights, "--target", 0.8], f"{weights}: not a text file")
    refused(["invert", text.pool, "--target", 0.8], f"{text.pool}: no column 'n'")
    refused(["invert", tmp_path, "--target", 0.8], f"{tmp_path}: no such file")
    refused(["invert", text.model / "config.json", "--target", 0.8], "config.json:1: not valid JSON")


def test_questions_that_are_none(refused, tmp_path):
    results = write_jsonl(tmp_path / "r.jsonl", [{"n": n, "metric": n / 100} for n in (10, 20, 40)])
    words = ["invert", results, "--low", 0, "--high", 1]
    refused([*words, "--target", 1.5], "target 1.5 is outside the metric's range 0 to 1")
    refused([*words, "--target", 0.5, "--level", 1], "level 1 is not a probability")
    refused(["invert", results, "--target", 0.5, "--low", 1, "--high", 0], "bounds 1 to 0 are not a range")


def test_manifests(refused, made, tmp_path):
    refused(["check", tmp_path / "gone.jsonl"], "gone.jsonl: no such manifest")
    refused(["check", made.pool], f"{made.pool}: a manifest's name ends in .jsonl")
    copy = Path(shutil.copy(made.subset, tmp_path / "subset.jsonl"))
    refused(["check", copy], "its subset.meta.json is missing")
    shutil.copy(made.subset.with_suffix(".meta.json"), tmp_path)
    copy.write_text("".join(copy.read_text().splitlines(keepends=True)[:-1]))
    refused(["check", copy], f"{copy}:4: the file is not the one")


def test_runs_without_a_report(refused, tmp_path):
    refused(["report", tmp_path], f"{tmp_path / 'report.json'}: no such file")
    (tmp_path / "report.json").write_text(json.dumps({"title": "no answer"}))
    refused(["report", tmp_path], f"{tmp_path / 'report.json'}: answer: Field required")


def test_demos(refused, tmp_path):
    refused(
        ["demo", "--data", "letters", "-o", tmp_path / "run"], "no demo on 'letters'", "digits, docstrings"
    )
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    refused(["demo", "-o", tmp_path / "full"], f"{tmp_path / 'full'}: not empty, and no run of this demo")


# ------------------------------------------------------------------ the words themselves


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["choose"], "No such command 'choose'"),
        (["--fast"], "No such option: --fast"),
        (["select", "--bugdet", "5"], "No such option: --bugdet"),
        (["select", "--budget"], "--budget"),
        (["select", "more"], "more"),
        (["select", "--seed", "-1"], "--seed"),
        (["collect"], "Missing argument 'MODEL'"),
        (["collect", "m", "d"], "Missing option '--out'"),
        (["score", "a"], "Missing argument 'TARGET'"),
        (["search", "a", "b", "-k", "0"], "-k"),
        (["sweep", "m", "a", "b", "-o", "c"], "Missing argument 'SUBSET'"),
        (["invert", "r.csv"], "Missing option '--target'"),
        (["invert", "r.csv", "--target", "high"], "--target"),
        (["check"], "Missing argument 'SUBSET'"),
        (["report"], "Missing argument 'RUN|SUBSET.jsonl'"),
    ],
)
def test_words(words, part, refused):
    refused(words, part, "(see --help)")
