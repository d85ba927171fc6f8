"""Stores on disk: whole or not there, the same bytes after any interruption, damage found."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attribution_cases import Classify, Margin, contents, examples, mlp, store_of
from safetensors import safe_open
from safetensors.numpy import save
from safetensors.torch import save_file
from torch import nn

from backcast.attribution import Checkpoint, SketchStore, attribute, collect
from backcast.attribution.store import Header, unit_rows
from backcast.errors import InputError
from backcast.kernels import SketchSpec
from backcast.tasks import Batch

HERE = Path(__file__).parent
SPEC = SketchSpec("sjlt", 16)


def small(path: Path, n: int = 10, shard_rows: int = 4, **options: Any) -> SketchStore:
    sketches = np.random.default_rng(0).normal(size=(n, 16)).astype(np.float32)
    return store_of(path, [sketches], shard_rows=shard_rows, **options)


def shard(store: SketchStore, number: int = 0, checkpoint: int = 0) -> Path:
    return store.path / f"checkpoint-{checkpoint:02d}" / f"shard-{number:05d}.safetensors"


def test_killed_ten_times_and_resumed_it_ends_with_the_same_bytes(tmp_path):
    done = subprocess.run(
        [sys.executable, str(HERE / "killed_collect.py"), str(tmp_path), "0"],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1])},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["whole"] == 0
    assert seen["files"] == 41
    assert [kill["ended"] for kill in seen["kills"]] == [-9] * 10
    assert sum(0 < kill["shards"] < 40 for kill in seen["kills"]) >= 7
    assert [kill["resumed"] for kill in seen["kills"]] == [0] * 10
    assert all(kill["same"] for kill in seen["kills"])


def test_a_run_killed_at_its_very_first_write_can_start_again(tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / ".store.json.123.partial").write_text('{"sch')
    collect(mlp(), Classify(), examples(5), tmp_path / "s", spec=SPEC)
    collect(mlp(), Classify(), examples(5), tmp_path / "whole", spec=SPEC)
    assert contents(tmp_path / "s") == contents(tmp_path / "whole")


def test_a_finished_store_is_not_collected_again(tmp_path):
    class Forbidden(Classify):
        def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
            raise AssertionError("a forward in a finished store")

    Forbidden.__name__ = "Classify"
    rows = examples(5)
    before = collect(mlp(), Classify(), rows, tmp_path / "s", spec=SPEC)
    changed = shard(before).stat().st_mtime_ns
    after = collect(mlp(), Forbidden(), rows, tmp_path / "s", spec=SPEC)
    assert np.array_equal(before.sketches(), after.sketches())
    assert shard(before).stat().st_mtime_ns == changed


class Halved(Classify):
    """Another task."""


class Setting(Classify):
    """The same task with another setting."""

    def settings(self) -> dict[str, int]:
        return {"temperature": 2}


Setting.__name__ = "Classify"


class Head(Classify):
    """The same task, tracking less."""

    def modules(self, model: nn.Module) -> dict[str, nn.Module]:
        return {"2": model[2]}


Head.__name__ = "Classify"


@pytest.mark.parametrize(
    "change",
    [
        {"spec": SketchSpec("sjlt", 16, seed=1)},
        {"spec": SketchSpec("kron", 16)},
        {"examples": examples(6)},
        {"examples": examples(5, seed=1)},
        {"model": mlp(seed=1)},
        {"dtype": "float16"},
        {"shard_rows": 2},
        {"task": Halved()},
        {"task": Setting()},
        {"task": Head()},
    ],
    ids=["seed", "kind", "rows", "content", "weights", "dtype", "shards", "loss", "settings", "modules"],
)
def test_a_folder_of_other_sketches_is_refused_and_untouched(change, tmp_path):
    run = {"model": mlp(), "task": Classify(), "examples": examples(5), "out": tmp_path / "s", "spec": SPEC}
    collect(**run)
    before = contents(tmp_path / "s")
    with pytest.raises(InputError, match="other data, weights or settings; choose another folder"):
        collect(**{**run, **change})
    assert contents(tmp_path / "s") == before


def test_another_learning_rate_is_another_store(tmp_path):
    save_file(mlp().state_dict(), tmp_path / "m.safetensors")
    run = {"model": mlp(), "task": Classify(), "examples": examples(5), "out": tmp_path / "s", "spec": SPEC}
    collect(**run, checkpoints=[Checkpoint(str(tmp_path / "m.safetensors"), 0.1)])
    with pytest.raises(InputError, match="choose another folder"):
        collect(**run, checkpoints=[Checkpoint(str(tmp_path / "m.safetensors"), 0.2)])


def test_a_place_that_holds_something_else_is_refused(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("folder", "file"):
        with pytest.raises(InputError, match=rf"{name}: not a sketch store, and not empty"):
            collect(mlp(), Classify(), examples(2), tmp_path / name)
    assert contents(tmp_path) == {"file": b"mine", "folder/notes.txt": b"mine"}


def test_an_unfinished_store_is_not_opened(tmp_path):
    store = small(tmp_path / "s")
    shard(store, 1).unlink()
    with pytest.raises(InputError, match=r"s: 1 of its shards are missing; run the same"):
        SketchStore.open(store.path)


def test_what_is_no_store_is_not_opened(tmp_path):
    with pytest.raises(InputError, match=r"nowhere: not a sketch store \(no store\.json\)"):
        SketchStore.open(tmp_path / "nowhere")
    store = small(tmp_path / "s")
    header = json.loads((store.path / "store.json").read_text())
    (store.path / "store.json").write_text(json.dumps({**header, "schema": 99}))
    with pytest.raises(InputError, match="store schema 99, this backcast reads 1"):
        SketchStore.open(store.path)
    del header["sha256"]  # as in older stores
    (store.path / "store.json").write_text(json.dumps({**header, "spec": {**header["spec"], "version": 99}}))
    with pytest.raises(InputError, match="version 99 is another backcast's"):
        SketchStore.open(store.path)
    for text, reason in (('{"a": \n', "store.json:2: not valid JSON"), ("[]", "store schema None")):
        (store.path / "store.json").write_text(text)
        with pytest.raises(InputError, match=reason):
            SketchStore.open(store.path)


@pytest.mark.parametrize("flip", [0x01, 0x0F, 0x80])
def test_every_byte_of_a_shard_is_guarded(flip, tmp_path):
    """Names, ids, dtype (0x0F makes I32 of F32), numbers: whichever byte rots, the shard that it is in is named."""
    store = small(tmp_path / "s", n=6, shard_rows=3)
    path = shard(store, 1)
    whole = path.read_bytes()
    for place in range(len(whole)):
        rotten = bytearray(whole)
        rotten[place] ^= flip
        path.write_bytes(rotten)
        with pytest.raises(InputError, match=r"shard-00001\.safetensors: damaged shard; run the same"):
            store.sketches()
    path.write_bytes(whole)
    assert len(store.sketches()) == 6


def test_a_shard_that_is_cut_empty_or_of_other_rows_is_damaged(tmp_path):
    store = small(tmp_path / "s", n=8, shard_rows=4)
    whole = shard(store, 1).read_bytes()
    for content in (b"", whole[:-1], whole[:50], shard(store, 0).read_bytes()):
        shard(store, 1).write_bytes(content)
        with pytest.raises(InputError, match=r"shard-00001\.safetensors: damaged"):
            store.sketches()


def test_every_byte_of_the_header_is_guarded(tmp_path):
    """Only white space, and the name of the sum itself, may rot without harm."""
    store = small(tmp_path / "s", n=1)
    path = store.path / "store.json"
    whole = path.read_bytes()
    for place in range(len(whole)):
        rotten = bytearray(whole)
        rotten[place] ^= (0x01, 0x80)[place % 2]
        path.write_bytes(rotten)
        assert opened_header(store.path) in (None, store.header.to_json())


def opened_header(path: Path) -> dict[str, Any] | None:
    """A store's header as JSON, or None where it is refused."""
    try:
        return SketchStore.open(path).header.to_json()
    except InputError:
        return None


@pytest.mark.parametrize("damage", ["head", "name", "ids", "cut"])
def test_damage_to_a_shards_outside_is_found_on_open(damage, tmp_path):
    store = small(tmp_path / "s")
    path = shard(store, 1)
    content = bytearray(path.read_bytes())
    place = {
        "head": 0,
        "name": content.index(b"sketches"),
        "ids": content.index(store.rows.ids[5].encode()),
        "cut": 0,
    }
    content[place[damage]] ^= 1 if damage != "cut" else 0
    path.write_bytes(content[:-1] if damage == "cut" else content)
    with pytest.raises(InputError, match=r"shard-00001\.safetensors: damaged shard"):
        SketchStore.open(store.path)


@pytest.mark.parametrize("of", ["loss", "output"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "sign"])
def test_damaged_shards_and_no_others_are_collected_again(of, dtype, tmp_path, caplog):
    run = {
        "model": mlp(),
        "examples": examples(18),
        "out": tmp_path / "s",
        "spec": SPEC,
        "of": of,
        "dtype": dtype,
    }
    store = collect(**run, task=Margin(), shard_rows=3)
    before = contents(store.path)
    for number, place in enumerate((0, 20, "ids", "data", "cut")):  # of the length, the names, ...
        content = bytearray(shard(store, number).read_bytes())
        if place == "cut":
            content = content[:-7]
        else:
            ids = content.index(store.rows.ids[3 * number].encode())
            content[{"ids": ids + 9, "data": len(content) - 2}.get(place, place)] ^= 1
        shard(store, number).write_bytes(content)
    untouched = shard(store, 5).stat().st_mtime_ns
    collect(**run, task=Margin(), shard_rows=3)
    assert contents(store.path) == before
    assert shard(store, 5).stat().st_mtime_ns == untouched
    told = [
        f"shard-{number:05d}.safetensors: damaged shard, collected again" in caplog.text
        for number in range(6)
    ]
    assert told == [True] * 5 + [False]


def test_a_damaged_slope_is_found(tmp_path):
    store = collect(mlp(), Margin(), examples(6), tmp_path / "s", spec=SPEC, of="output")
    content = shard(store).read_bytes()
    place = content.index(store.slopes()[2].tobytes())
    shard(store).write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    with pytest.raises(InputError, match=r"shard-00000\.safetensors: damaged shard"):
        store.slopes()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_store_of_before_slopes_scales_and_sums_is_read(dtype, tmp_path):
    """Written here as it was then: half precision without scales, an origin without what it is of, no sum."""
    rows = np.random.default_rng(0).normal(size=(4, 16)).astype(dtype)
    store = store_of(tmp_path / "s", [rows], dtype=dtype)
    header = json.loads((store.path / "store.json").read_text())
    del header["sha256"], header["origin"]["of"], header["origin"]["direction"]
    (store.path / "store.json").write_text(json.dumps(header))
    digest = hashlib.sha256(rows.tobytes()).hexdigest()
    metadata = {"shard": json.dumps({"ids": store.rows.ids, "sha256": digest})}
    shard(store).write_bytes(save({"sketches": rows}, metadata))
    old = SketchStore.open(store.path)
    assert np.array_equal(old.sketches(), rows.astype(np.float32))
    assert old.fingerprint == store.fingerprint  # so that it resumes, and compares


@pytest.mark.filterwarnings("error")
def test_float16_keeps_eleven_bits_of_any_row(tmp_path):
    rows = examples(6)
    wide = collect(mlp(), Classify(), rows, tmp_path / "w", spec=SPEC).sketches()
    half = collect(mlp(), Classify(), rows, tmp_path / "h", spec=SPEC, dtype="float16").sketches()
    assert half.dtype == np.float32
    np.testing.assert_allclose(half, wide, rtol=2**-11, atol=1e-8 * np.abs(wide).max())

    sketches = np.random.default_rng(0).normal(size=(5, 16)).astype(np.float32)
    sketches *= np.array([[1e-30], [1e-9], [1.0], [7e4], [1e30]], dtype=np.float32)  # float16 ends at 65,504
    loud = store_of(tmp_path / "o", [sketches], dtype="float16").sketches()
    np.testing.assert_allclose(loud, sketches, rtol=2**-11)


def test_what_is_not_finite_is_refused_in_any_dtype(tmp_path):
    sketches = np.ones((5, 16), np.float32)
    sketches[3, 2] = np.inf
    for dtype in ("float32", "float16", "int8", "sign"):
        with pytest.raises(InputError, match="not finite; look for a loss that overflows") as told:
            store_of(tmp_path / dtype, [sketches], dtype=dtype)
        assert small(tmp_path / f"ok-{dtype}", n=5).rows.ids[3] in str(told.value)
        assert not list((tmp_path / dtype).rglob("shard-*"))


def test_shards_cover_the_rows_in_order(tmp_path):
    sketches = [np.random.default_rng(c).normal(size=(10, 16)).astype(np.float32) for c in range(2)]
    store = store_of(tmp_path / "s", sketches, rates=[0.1, 0.2], shard_rows=4)
    assert [(rows.start, rows.stop) for rows, _ in store.shards(1)] == [(0, 4), (4, 8), (8, 10)]
    assert np.array_equal(store.sketches(0), sketches[0])
    assert np.array_equal(store.sketches(), sketches[1])
    assert len(store) == 10
    assert (
        Header.from_json(json.loads(json.dumps(store.header.to_json()))).to_json() == store.header.to_json()
    )


def test_an_inner_product_of_features_is_the_mean_cosine(tmp_path):
    sketches = [np.random.default_rng(c).normal(size=(7, 16)).astype(np.float32) for c in range(3)]
    sketches[1] *= 100
    features = store_of(tmp_path / "s", sketches).features()
    cosines = [unit_rows(s.astype(np.float64)) @ unit_rows(s.astype(np.float64)).T for s in sketches]
    np.testing.assert_allclose(features @ features.T, np.mean(cosines, axis=0), atol=1e-6)


def test_a_row_of_zeros_stays():
    rows = unit_rows(np.array([[3.0, 4.0], [0.0, 0.0]]))
    assert rows.tolist() == [[0.6, 0.8], [0.0, 0.0]]


def test_fingerprints_tell_stores_apart(tmp_path):
    assert small(tmp_path / "a").fingerprint == small(tmp_path / "b").fingerprint
    assert small(tmp_path / "a").fingerprint != small(tmp_path / "c", n=9).fingerprint


@pytest.mark.parametrize(("method", "params"), [("grad_dot", {}), ("tracin", {"cosine": True})])
def test_scores_that_go_to_a_file_are_those_in_memory(method, params, tmp_path):
    rng = np.random.default_rng(0)
    train, target = (
        store_of(
            tmp_path / name,
            [rng.normal(size=(n, 16)) for _ in range(3)],
            [0.1, 0.7, 0.3],
            name=name,
            shard_rows=4,
        )
        for name, n in (("train", 11), ("target", 5))
    )
    held = attribute(train, target, method, **params)
    filed = attribute(train, target, method, out=tmp_path / "scores", **params)
    assert isinstance(filed.values, np.memmap)
    assert np.array_equal(filed.values, held.values)
    held.save(tmp_path / "saved")
    assert (tmp_path / "saved").read_bytes() == (tmp_path / "scores").read_bytes()
    with safe_open(tmp_path / "scores", framework="numpy") as file:  # a peer's reader
        assert np.array_equal(file.get_tensor("values"), held.values)


def test_scores_that_go_to_a_file_are_never_all_in_memory(tmp_path):
    """Of 16 MB of scores, from a store of 8,192 rows, less than a third is held at any time."""
    rng = np.random.default_rng(0)
    train = store_of(tmp_path / "train", [rng.normal(size=(8192, 16))], shard_rows=64)
    target = store_of(tmp_path / "target", [rng.normal(size=(500, 16))])
    tracemalloc.start()
    try:
        scores = attribute(train, target, "grad_dot", out=tmp_path / "scores")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert scores.values.nbytes == 4 * 8192 * 500
    assert peak < scores.values.nbytes / 3


def test_a_run_that_dies_while_it_scores_leaves_no_file(tmp_path):
    train, target = small(tmp_path / "train", n=20), small(tmp_path / "target")
    content = bytearray(shard(train, 3).read_bytes())
    content[-1] ^= 1
    shard(train, 3).write_bytes(content)
    with pytest.raises(InputError, match=r"shard-00003\.safetensors: damaged shard"):
        attribute(train, target, "grad_dot", out=tmp_path / "scores")
    assert not list(tmp_path.glob("*scores*"))
