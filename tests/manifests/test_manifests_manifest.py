from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow
import pytest
from datasets import Dataset
from PIL import Image
from selectors_cases import parts, points, rows, scores

from backcast.attribution.scores import Scores
from backcast.data import Examples, read_examples
from backcast.errors import InputError
from backcast.manifests import Manifest, check, load_subset
from backcast.manifests.manifest import BLOCK, portable
from backcast.selectors import Selection, select
from backcast.selectors.filters.dedup import Dedup
from backcast.selectors.methods.facility_location import FacilityLocation

N = 30


def write_pool(path: Path, texts: list[str] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    records = [
        {"text": text, "source": "ab"[i % 2], "note": i}
        for i, text in enumerate(texts or [f"example {i}" for i in range(N)])
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def texts(path: Path) -> list[str]:
    return [json.loads(line)["text"] for line in path.read_text().splitlines()]


def score(path: Path) -> Scores:
    values = np.random.default_rng(0).normal(size=(N, 5))
    return scores(values, read_examples(path).index)


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    return write_pool(tmp_path / "data" / "pool.jsonl")


@pytest.fixture
def selection(pool: Path) -> Selection:
    return select(score(pool), "20%", "dedup | facility_location", 5, features=points(N, 8))


@pytest.fixture
def manifest(selection: Selection, tmp_path: Path) -> Path:
    return selection.save(tmp_path / "run" / "subset.jsonl").path


def test_a_manifest_comes_back_as_it_went(selection: Selection, manifest: Path) -> None:
    loaded = Manifest.load(manifest)
    assert len(loaded) == 6
    assert loaded.rows.tolist() == selection.rows.rows.tolist()
    assert loaded.ids == selection.rows.ids
    assert loaded.weights.tolist() == [1] * 6
    assert [line["rank"] for line in loaded.lines] == [1, 2, 3, 4, 5, 6]
    assert [line["source"] for line in loaded.lines] == list(selection.rows.sources)
    np.testing.assert_allclose([line["gain"] for line in loaded.lines], selection.gains, rtol=1e-8)
    assert selection.scores is not None
    np.testing.assert_allclose([line["score"] for line in loaded.lines], selection.scores, rtol=1e-8)


def test_a_line_names_the_targets_that_it_serves_best(selection: Selection, manifest: Path) -> None:
    values = selection.evidence.scores
    assert values is not None
    for line in Manifest.load(manifest).lines:
        served = [(int(t["target"].split()[1]), t["score"]) for t in line["targets"]]
        assert [t for t, _ in served] == np.argsort(-values[line["row"]])[:3].tolist()
        assert [np.float32(s) for _, s in served] == sorted(values[line["row"]], reverse=True)[:3]


def test_the_meta_file_tells_what_made_it(manifest: Path, pool: Path) -> None:
    meta = json.loads(manifest.with_name("subset.meta.json").read_text())
    assert meta["schema"] == 1
    assert meta["dataset"] == {
        "path": "../data/pool.jsonl",
        "columns": {"text": "text", "source": "source"},
        "fingerprint": read_examples(pool).index.fingerprint,
        "n": N,
    }
    assert meta["budget"] == {"asked": "20%", "got": 6}
    assert meta["selector"]["params"] == {
        "dedup": asdict(Dedup()),
        "facility_location": asdict(FacilityLocation()),
    }
    assert meta["seed"] == 5
    assert meta["origin"] == {"model": "m"}
    assert meta["versions"]["numpy"] == np.__version__


def test_rows_alone_leave_scores_and_gains_empty(tmp_path: Path) -> None:
    saved = select(rows(9), 3, "random").save(tmp_path / "subset.jsonl")
    line = Manifest.load(saved.path).lines[0]
    assert (line["score"], line["gain"], line["targets"]) == (None, None, [])
    assert saved.meta["scores"] is None
    assert saved.dataset == ""


# ------------------------------------------------------------------ parts, and what filters dropped


def test_a_line_carries_the_parts_of_its_row(pool: Path, tmp_path: Path) -> None:
    found = parts(N)
    select(score(pool), N, "top_k", parts=found).save(tmp_path / "subset.jsonl")
    lines = Manifest.load(tmp_path / "subset.jsonl").lines
    assert len(lines) == N
    for line in lines:
        assert list(line["parts"]) == ["image", "text", "interaction"]
        for name, part in line["parts"].items():
            if line["row"] % 9 == 4:  # it has no split
                assert part is None
            else:
                assert part == pytest.approx(found[name][line["row"]], rel=1e-8, abs=0)


def test_the_meta_file_tells_what_every_filter_dropped(pool: Path, tmp_path: Path) -> None:
    signs = {"image": np.r_[[-3.0, 1, -3], np.ones(N - 3)], "text": np.r_[[1.0, -3, 1], np.ones(N - 3)]}
    x = points(N, 64)
    x[[11, 7]] = x[5]
    chosen = select(
        scores(-np.arange(N)[:, None], read_examples(pool).index),
        "20%",
        "dedup(0.98, whiten=False) | one_sided_harm | top_k",
        features=x,
        parts=signs,
    )
    ids = chosen.evidence.rows.ids
    assert chosen.save(tmp_path / "subset.jsonl").meta["dropped"] == {
        "total": 5,
        "reasons": {"dedup": {"near-duplicate": 2}, "one_sided_harm": {"image": 2, "text": 1}},
        "rows": [
            {"row": 0, "id": ids[0], "filter": "one_sided_harm", "reason": "image"},
            {"row": 1, "id": ids[1], "filter": "one_sided_harm", "reason": "text"},
            {"row": 2, "id": ids[2], "filter": "one_sided_harm", "reason": "image"},
            {"row": 7, "id": ids[7], "filter": "dedup", "reason": "near-duplicate"},
            {"row": 11, "id": ids[11], "filter": "dedup", "reason": "near-duplicate"},
        ],
    }


def test_many_dropped_rows_are_counted_and_the_first_thousand_listed(tmp_path: Path) -> None:
    n = 3000
    harm = np.where(np.arange(n) % 2, -1.0, 0.0)
    found = {"image": np.where(np.arange(n) < 1500, harm, 0), "text": np.where(np.arange(n) < 1500, 0, harm)}
    chosen = select(rows(n), 1500, "one_sided_harm | random", parts=found)
    assert sorted(np.concatenate([d.indices for d in chosen.dropped])) == list(range(1, n, 2))
    told = chosen.save(tmp_path / "subset.jsonl").meta["dropped"]
    assert told["total"] == 1500
    assert told["reasons"] == {"one_sided_harm": {"image": 750, "text": 750}}
    assert [row["row"] for row in told["rows"]] == list(range(1, 2001, 2))
    assert [row["reason"] for row in told["rows"]] == ["image"] * 750 + ["text"] * 250


def test_the_meta_file_tells_how_the_scores_were_split(pool: Path, tmp_path: Path) -> None:
    made = {
        "method": "shapley",
        "score": {"method": "tracin"},
        "origin": {"target": "/somewhere/wanted.jsonl"},
    }
    split = SimpleNamespace(rows=read_examples(pool).index, parts=parts(N), made=made)
    meta = select(score(pool), 3, "top_k", parts=split).save(tmp_path / "subset.jsonl").meta
    assert meta["parts"] == {"method": "shapley", "score": {"method": "tracin"}}
    assert select(score(pool), 3, "top_k", parts=parts(N)).save(tmp_path / "subset.jsonl").meta["parts"] == {}


def test_without_filters_and_parts_nothing_is_told_of_them(manifest: Path, pool: Path) -> None:
    saved = select(score(pool), 3, "top_k").save(manifest)
    assert saved.meta["dropped"] == {"total": 0, "reasons": {}, "rows": []}
    assert all("parts" not in told for told in (saved.meta, *saved.lines))


def test_a_manifest_from_before_there_were_parts_still_loads(manifest: Path) -> None:
    beside = manifest.with_name("subset.meta.json")
    meta = json.loads(beside.read_text())
    del meta["dropped"]
    beside.write_text(json.dumps(meta))
    assert check(manifest)
    assert len(load_subset(manifest)) == 6


def test_optional_entries_are_kept(manifest: Path) -> None:
    loaded = Manifest.load(manifest)
    lines = tuple(
        {**line, "weight": line["rank"] / 4, "cluster": line["rank"] % 3, "cost": 10 * line["rank"]}
        for line in loaded.lines
    )
    meta = {
        **loaded.meta,
        "run": {"model": "m", "budget": "20%"},
        "constraints": {"a": {"at_least": 2}},
        "groups": {"x": [0, 1]},
    }
    Manifest(manifest, lines, meta).save()
    first = manifest.read_bytes(), manifest.with_name("subset.meta.json").read_bytes()
    again = Manifest.load(manifest)
    assert again.lines == lines
    assert {key: again.meta[key] for key in ("run", "constraints", "groups")} == {
        key: meta[key] for key in ("run", "constraints", "groups")
    }
    assert again.weights.tolist() == [0.25, 0.5, 0.75, 1, 1.25, 1.5]
    assert check(manifest)
    again.save()
    assert (manifest.read_bytes(), manifest.with_name("subset.meta.json").read_bytes()) == first
    with_parts = again.with_parts({"image": np.arange(6.0)}, {"method": "shapley"})
    assert with_parts.meta["run"] == meta["run"]
    assert [line["cluster"] for line in with_parts.lines] == [1, 2, 0, 1, 2, 0]


def test_lines_are_read_in_order_over_block_ends(tmp_path: Path) -> None:
    n = 2 * BLOCK + 3
    saved = select(rows(n), n, "random").save(tmp_path / "subset.jsonl")
    loaded = Manifest.load(saved.path)
    assert loaded.ids == saved.ids
    assert gc.isenabled()
    lines = saved.path.read_text().splitlines(keepends=True)
    lines[BLOCK + 1] = lines[BLOCK + 1][:-9] + "\n"
    saved.path.write_text("".join(lines))
    with pytest.raises(InputError, match=rf"subset.jsonl:{BLOCK + 2}: not a JSON object"):
        Manifest.load(saved.path)
    assert gc.isenabled()


# ------------------------------------------------------------------ the same bytes again

AGAIN = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[1:3]
from test_manifests_manifest import run_once
run_once(Path(sys.argv[3]))
"""


def run_once(folder: Path) -> dict[str, bytes]:
    pool = write_pool(folder / "data" / "pool.jsonl")
    chosen = select(score(pool), "40%", "dedup | facility_location", 5, features=points(N, 8))
    chosen.save(folder / "subsets" / "facility_location.jsonl")
    select(score(pool), "40%", "random", 5, balance="source").save(folder / "subsets" / "random.jsonl")
    by_parts = select(score(pool), "40%", "one_sided_harm | modality_balance", parts=parts(N))
    by_parts.save(folder / "subsets" / "parts.jsonl")
    return {file.name: file.read_bytes() for file in (folder / "subsets").iterdir()}


def test_another_process_writes_the_same_bytes(tmp_path: Path) -> None:
    """In another run folder, with more threads and another hash seed."""
    tests = Path(__file__).parent
    command = [sys.executable, "-c", AGAIN, str(tests), str(tests.parent), str(tmp_path / "there")]
    subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "2", "PYTHONHASHSEED": "1"}, check=True)
    there = {file.name: file.read_bytes() for file in (tmp_path / "there" / "subsets").iterdir()}
    here = run_once(tmp_path / "here")
    assert len(here) == 6
    assert here == there


def test_saving_twice_writes_the_same_bytes(selection: Selection, manifest: Path) -> None:
    before = {file.name: file.read_bytes() for file in manifest.parent.iterdir()}
    selection.save(manifest)
    assert {file.name: file.read_bytes() for file in manifest.parent.iterdir()} == before
    assert sorted(before) == ["subset.jsonl", "subset.meta.json"]


# ------------------------------------------------------------------ where the data are


@pytest.mark.parametrize(
    ("dataset", "folder", "stored"),
    [
        ("/a/run/pool.jsonl", "/a/run", "./pool.jsonl"),
        ("/a/run/data/pool.jsonl", "/a/run", "./data/pool.jsonl"),
        ("/a/run/data/pool.jsonl", "/a/run/subsets/x", "../../data/pool.jsonl"),
        ("/a/run/data/pool:train", "/a/run/subsets", "../data/pool:train"),
        ("/a/run", "/a/run/subsets", ".."),
        ("/a/data/pool.jsonl", "/a/b/c/d", "/a/data/pool.jsonl"),
        ("/data/pool.jsonl", "/runs", "/data/pool.jsonl"),
        ("someone/dataset", "/a", "someone/dataset"),
        (
            "/a/run/x.jsonl,someone/dataset,/data/y.parquet",
            "/a/run",
            "./x.jsonl,someone/dataset,/data/y.parquet",
        ),
        ("", "/a", ""),
    ],
)
def test_how_a_manifest_names_its_data(dataset: str, folder: str, stored: str) -> None:
    assert portable(dataset, Path(folder)) == stored


@pytest.mark.parametrize(
    "dataset",
    [
        "/a/run/data/pool.jsonl",
        "/elsewhere/pool.jsonl",
        "someone/dataset",
        "/a",
        "/a/run/x.jsonl,/a/run/y:train,someone/dataset,/data/z.parquet",
    ],
)
def test_the_name_leads_back(dataset: str) -> None:
    path = Path("/a/run/subset.jsonl")
    assert Manifest(path, (), {"dataset": {"path": portable(dataset, path.parent)}}).dataset == dataset


def test_manifest_and_data_can_move_together(manifest: Path, tmp_path: Path) -> None:
    shutil.copytree(tmp_path, tmp_path.with_name(f"{tmp_path.name}-moved"))
    moved = tmp_path.with_name(f"{tmp_path.name}-moved")
    shutil.rmtree(tmp_path / "data")
    assert check(moved / "run" / "subset.jsonl")
    with pytest.raises(InputError, match="no such file"):
        check(manifest)
    assert check(manifest, moved / "data" / "pool.jsonl")


# ------------------------------------------------------------------ broken manifests


def edit_line(number: int, change: Callable[[dict[str, Any]], Any]) -> Callable[[list[str]], list[str]]:
    def edited(lines: list[str]) -> list[str]:
        value = json.loads(lines[number - 1])
        change(value)
        return [*lines[: number - 1], json.dumps(value) + "\n", *lines[number:]]

    return edited


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda lines: [*lines[:3], lines[3][:20]], r"subset.jsonl:4: not a JSON object, perhaps cut off"),
        (lambda lines: lines[:4], r"subset.jsonl:4: the file is not the one that subset.meta.json"),
        (lambda lines: [], r"subset.jsonl:0: the file is not the one"),
        (lambda lines: [*lines[:2], "[1]\n", *lines[3:]], r"subset.jsonl:3: .*'row' is missing"),
        (lambda lines: [*lines[:2], "\n", *lines[3:]], r"subset.jsonl:3: not a JSON object"),
        (lambda lines: [*lines[:2], "\ud800\n", *lines[3:]], r"subset.jsonl:3: not a JSON object"),
        (lambda lines: lines[:2] + lines[3:], r"subset.jsonl:3: rank 4 where 3 belongs"),
        (edit_line(2, lambda v: v.pop("id")), r"subset.jsonl:2: .*'id' is missing or wrong"),
        (edit_line(5, lambda v: v.update(row="7")), r"subset.jsonl:5: .*'row' is missing or wrong"),
        (edit_line(5, lambda v: v.update(weight=9.0)), r"subset.jsonl:6: the file is not the one"),
        (
            edit_line(3, lambda v: v.update(weight=float("nan"))),
            r"subset.jsonl:3: weight nan, which is no weight",
        ),
        (edit_line(3, lambda v: v.update(weight=-0.5)), r"subset.jsonl:3: weight -0.5, which is no weight"),
        (edit_line(4, lambda v: v.update(cluster="7")), r"subset.jsonl:4: .*'cluster' is wrong"),
        (edit_line(4, lambda v: v.update(cost="7")), r"subset.jsonl:4: .*'cost' is wrong"),
        (lambda lines: ["{}, " + lines[0], *lines[1:]], r"subset.jsonl:1: not a JSON object"),
        (lambda lines: ['{"a":\n', "1}\n", *lines[2:]], r"subset.jsonl:1: not a JSON object"),
    ],
)
def test_broken_lines_are_named(manifest: Path, change: Callable[[list[str]], list[str]], says: str) -> None:
    lines = manifest.read_text().splitlines(keepends=True)
    manifest.write_bytes("".join(change(lines)).encode(errors="surrogatepass"))
    with pytest.raises(InputError, match=says) as refused:
        Manifest.load(manifest)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda meta: meta.update(schema=2), "not the meta file of a manifest of schema 1"),
        (lambda meta: meta.pop("schema"), "not the meta file"),
        (lambda meta: meta.pop("seed"), "'seed' is missing or wrong"),
        (lambda meta: meta.update(dataset="pool.jsonl"), "'dataset' is missing or wrong"),
        (lambda meta: meta["dataset"].pop("columns"), "'columns' is missing or wrong"),
        (lambda meta: meta.update(run="again.yaml"), "'run' is wrong"),
    ],
)
def test_a_broken_meta_file_is_named(
    manifest: Path, change: Callable[[dict[str, Any]], Any], says: str
) -> None:
    path = manifest.with_name("subset.meta.json")
    meta = json.loads(path.read_text())
    change(meta)
    path.write_text(json.dumps(meta))
    with pytest.raises(InputError, match=f"subset.meta.json:1: .*{says}"):
        Manifest.load(manifest)


def test_a_missing_half_is_named(manifest: Path) -> None:
    meta = manifest.with_name("subset.meta.json")
    content = meta.read_text()
    meta.write_text(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"subset.meta.json:\d+: not valid JSON"):
        Manifest.load(manifest)
    meta.unlink()
    with pytest.raises(InputError, match=r"subset.jsonl: its subset.meta.json is missing"):
        Manifest.load(manifest)
    manifest.unlink()
    with pytest.raises(InputError, match=r"subset.jsonl: no such manifest"):
        Manifest.load(manifest)


def test_lines_of_one_save_and_meta_of_another_are_no_manifest(manifest: Path, pool: Path) -> None:
    """What a kill between the two writes leaves."""
    meta = manifest.with_name("subset.meta.json")
    older = meta.read_bytes()
    select(score(pool), "20%", "top_k").save(manifest)
    assert check(manifest)
    meta.write_bytes(older)
    with pytest.raises(InputError, match=r"not the one that subset\.meta\.json was written for"):
        check(manifest)


@pytest.mark.parametrize("name", ["subset.json", "subset", "subset.meta.json"])
def test_a_manifest_is_called_jsonl(selection: Selection, tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"ends in \.jsonl"):
        selection.save(tmp_path / name)
    assert not (tmp_path / name).exists()


# ------------------------------------------------------------------ check


def test_a_manifest_fits_the_data_it_was_made_from(manifest: Path, pool: Path) -> None:
    report = check(manifest)
    assert report
    assert report.ok
    assert report.same_pool
    assert report.summary == f"{manifest}: all 6 rows fit {pool}"
    assert check(manifest, read_examples(pool))


def test_moved_changed_and_missing_rows_are_found(pool: Path, tmp_path: Path) -> None:
    whole = texts(pool)
    seen = scores(-np.arange(N, dtype=float)[:, None], read_examples(pool).index)
    manifest = select(seen, 4, "top_k").save(tmp_path / "subset.jsonl").path  # rows 0, 1, 2, 3

    write_pool(pool, [whole[1], "another", whole[5], whole[3]])
    report = check(manifest)
    assert not report
    assert report.moved == ((1, 0),)
    assert report.changed == (0, 2)
    assert report.missing == ()
    write_pool(pool, [*whole[:3], "the last row is another"])
    report = check(manifest)
    assert (report.moved, report.changed, report.missing) == ((), (3,), ())
    write_pool(pool, [whole[3], whole[1]])
    report = check(manifest)
    assert report.moved == ((3, 0),)
    assert report.changed == (0,)
    assert report.missing == (2,)
    assert report.summary == (
        f"{manifest}: of 4 rows in {pool}: 1 moved (first: row 3, now 0), 1 changed (first: row 0), "
        "1 missing (first: row 2); select again"
    )


def test_other_rows_may_come_and_change(pool: Path, tmp_path: Path) -> None:
    whole = texts(pool)
    seen = scores(-np.arange(N, dtype=float)[:, None], read_examples(pool).index)
    manifest = select(seen, 4, "top_k").save(tmp_path / "subset.jsonl").path
    write_pool(pool, [*whole, "one more"])
    report = check(manifest)
    assert report
    assert not report.same_pool
    assert report.summary.endswith(f"fit {pool} (but were chosen from a pool of 30 examples, these are 31)")
    write_pool(pool, [*whole[:-1], "changed"])
    assert check(manifest).summary.endswith("(but were chosen from a pool with other rows beside them)")


def test_a_row_named_twice_is_found(manifest: Path) -> None:
    loaded = Manifest.load(manifest)
    twice = (*loaded.lines, {**loaded.lines[2], "rank": 7})
    Manifest(manifest, twice, loaded.meta).save()
    report = check(manifest)
    assert not report
    assert report.duplicated == (loaded.lines[2]["row"],)


def test_content_that_the_data_repeat_is_told_and_is_no_fault(pool: Path, tmp_path: Path) -> None:
    whole = texts(pool)
    write_pool(pool, [*whole[:4], whole[1], whole[2], *whole[4:], whole[1], whole[20]])
    seen = scores(-np.arange(N + 4, dtype=float)[:, None], read_examples(pool).index)
    manifest = select(seen, 4, "top_k").save(tmp_path / "subset.jsonl").path  # rows 0, 1, 2, 3
    report = check(manifest)
    assert report
    assert report.repeated == ((1, 3), (2, 2))
    assert report.summary == (
        f"{manifest}: all 4 rows fit {pool}; the data hold 2 of them several times (first: row 1, 3 times)"
    )


def test_a_reports_json_gives_the_first_of_each_fault(pool: Path, tmp_path: Path) -> None:
    seen = scores(-np.arange(N, dtype=float)[:, None], read_examples(pool).index)
    manifest = select(seen, 20, "top_k").save(tmp_path / "subset.jsonl").path
    whole = texts(pool)
    write_pool(pool, [whole[1], whole[0], *whole[3:9], "another", whole[9]])
    told = check(manifest).to_json()
    assert (told["ok"], told["lines"], told["moved"], told["changed"], told["missing"]) == (
        False,
        20,
        8,
        1,
        10,
    )
    assert told["first"]["moved"] == [(0, 1), (1, 0), (3, 2), (4, 3), (5, 4)]
    assert told["first"]["changed"] == [2]
    assert told["first"]["missing"] == [10, 11, 12, 13, 14]
    assert told["pool"] == {"now": 10, "then": 30}
    assert json.loads(json.dumps(told))["summary"] == check(manifest).summary


def test_several_files_are_one_pool(tmp_path: Path) -> None:
    one = write_pool(tmp_path / "data" / "one.jsonl", ["a", "b", "c"])
    other = write_pool(tmp_path / "data" / "other.jsonl", ["d", "e"])
    examples = read_examples(f"{one},{other}")
    manifest = select(examples.index, 5, "random").save(tmp_path / "subset.jsonl")
    assert manifest.meta["dataset"]["path"] == "./data/one.jsonl,./data/other.jsonl"
    assert manifest.dataset == f"{one},{other}"
    assert check(manifest.path).same_pool
    assert load_subset(manifest.path)["text"][:] == ["abcde"[row] for row in manifest.rows]
    assert check(manifest.path, f"{other},{one}").moved


def test_a_changed_pixel_is_found(tmp_path: Path) -> None:
    records = []
    for i in range(4):
        Image.new("L", (4, 4), 10 * i).save(tmp_path / f"{i}.png")
        records.append({"image": f"{i}.png", "caption": "a square"})
    pool = tmp_path / "pool.jsonl"
    pool.write_text("".join(json.dumps(r) + "\n" for r in records))
    manifest = select(read_examples(pool).index, 4, "random").save(tmp_path / "subset.jsonl").path
    assert check(manifest)
    image = Image.open(tmp_path / "2.png").copy()
    image.putpixel((1, 1), 21)
    image.save(tmp_path / "2.png")
    assert check(manifest).changed == (2,)


def test_examples_in_memory_are_checked_when_given(tmp_path: Path) -> None:
    examples = Examples.from_fields([{"text": str(i)} for i in range(8)])
    manifest = select(examples.index, 3, "random").save(tmp_path / "subset.jsonl").path
    assert check(manifest, examples)
    with pytest.raises(InputError, match="selected from examples in memory"):
        check(manifest)


# ------------------------------------------------------------------ load_subset


def test_the_subset_has_the_columns_of_the_data_and_a_weight(selection: Selection, manifest: Path) -> None:
    subset = load_subset(manifest)
    chosen = selection.indices.tolist()
    assert subset["text"][:] == [f"example {i}" for i in chosen]
    assert subset["note"][:] == chosen
    assert subset["weight"][:] == [1.0] * 6
    assert subset.column_names == ["text", "source", "note", "weight"]


def test_the_weights_follow_their_rows(manifest: Path) -> None:
    loaded = Manifest.load(manifest)
    Manifest(
        manifest, tuple({**line, "weight": line["row"] / 2} for line in loaded.lines), loaded.meta
    ).save()
    subset = load_subset(manifest)
    assert subset["weight"][:] == [row / 2 for row in subset["note"][:]]


def test_the_subset_is_a_view(tmp_path: Path) -> None:
    """Of 64 MB of text in a folder on disk nothing is copied but a weight for every row."""
    n = 1000
    text = Dataset.from_dict({"text": [f"{i} {'x' * 64_000}" for i in range(n)]})
    text.save_to_disk(tmp_path / "pool")
    examples = read_examples(tmp_path / "pool")
    manifest = select(examples.index, 500, "random").save(tmp_path / "subset.jsonl")
    Manifest(
        manifest.path, tuple({**line, "weight": line["row"] / 8} for line in manifest.lines), manifest.meta
    ).save()
    del text, examples
    before = pyarrow.total_allocated_bytes()
    subset = load_subset(manifest.path)
    assert pyarrow.total_allocated_bytes() - before < 100_000
    assert subset["weight"][:] == (manifest.rows / 8).tolist()
    assert subset[7]["text"].startswith(f"{manifest.rows[7]} x")


def test_the_data_may_be_kept_in_another_format(manifest: Path, pool: Path, tmp_path: Path) -> None:
    Dataset.from_list([json.loads(line) for line in pool.read_text().splitlines()]).to_parquet(
        tmp_path / "p.parquet"
    )
    assert load_subset(manifest, tmp_path / "p.parquet")[:] == load_subset(manifest)[:]


def test_own_column_names_are_remembered(tmp_path: Path) -> None:
    pool = tmp_path / "pool.jsonl"
    pool.write_text("".join(json.dumps({"Q": f"q{i}", "A": f"a{i}", "text": "t"}) + "\n" for i in range(5)))
    examples = read_examples(pool, {"prompt": "Q", "response": "A"})
    manifest = select(examples.index, 5, "random").save(tmp_path / "subset.jsonl").path
    subset = load_subset(manifest)
    assert subset["Q"][:] == [f"q{i}" for i in Manifest.load(manifest).rows]


def test_changed_data_are_not_loaded(manifest: Path, pool: Path) -> None:
    write_pool(pool, list(reversed(texts(pool))))
    with pytest.raises(InputError, match=r"of 6 rows .* 6 moved"):
        load_subset(manifest)


def test_a_weight_of_the_data_is_not_hidden(pool: Path, tmp_path: Path) -> None:
    records = [{**json.loads(line), "weight": 2} for line in pool.read_text().splitlines()]
    pool.write_text("".join(json.dumps(r) + "\n" for r in records))
    manifest = select(score(pool), 5).save(tmp_path / "subset.jsonl").path
    with pytest.raises(InputError, match="own column 'weight'"):
        load_subset(manifest)
