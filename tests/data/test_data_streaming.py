"""Contents that stay in their files: they are what was read, wherever and whenever they are looked into."""

import gzip
import json
import os
import pickle
import random
import subprocess
import sys
import textwrap
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from datasets import Dataset
from PIL import Image

from backcast.data import Example, Examples, arrow, content_id, fields, open_image, read_examples, records
from backcast.errors import InputError

N = 40
RECORDS = [
    {"prompt": f"p{i} é\u2028", "response": f"r{i}", "extra": i, **({"note": "x"} if i % 3 < 2 else {})}
    for i in range(N)
]
FORMATS = ("pool.jsonl", "pool.jsonl.gz", "pool.json", "pool.parquet", "mapped.parquet", "folder")


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same rows in every format; blank lines between those of the JSONL file."""
    folder = tmp_path_factory.mktemp("pool")
    (folder / "pool.jsonl").write_text("\n" + "".join(json.dumps(r) + "\n \n" for r in RECORDS))
    (folder / "pool.jsonl.gz").write_bytes(gzip.compress((folder / "pool.jsonl").read_bytes()))
    (folder / "pool.json").write_text(json.dumps(RECORDS))
    for name in ("pool.parquet", "mapped.parquet"):
        Dataset.from_list(RECORDS).to_parquet(folder / name)
    Dataset.from_list(RECORDS).save_to_disk(folder / "folder")
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def read(pool: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> Examples:
    if name == "mapped.parquet":
        monkeypatch.setattr(arrow, "IN_MEMORY", 0)
    return read_examples(pool / name)


def expected(row: int, name: str) -> dict:
    """A table has every column in every row."""
    filled = {} if ".json" in name else {"note": None}
    return filled | RECORDS[row]


@pytest.mark.parametrize("name", FORMATS)
def test_fields_read_in_any_order_are_those_of_the_file(pool, name, monkeypatch):
    examples = read(pool, name, monkeypatch)
    monkeypatch.setattr(fields, "KEPT_ROWS", 3)
    for row in [*random.Random(0).choices(range(N), k=100), 0, N - 1]:
        assert examples[row].fields == expected(row, name)
        assert examples[row].id == content_id(RECORDS[row])


@pytest.mark.parametrize("name", FORMATS)
def test_fields_outlive_a_pickle(pool, name, monkeypatch):
    examples = read(pool, name, monkeypatch)
    again = pickle.loads(pickle.dumps(examples[[7, 3]]))
    assert [dict(e.fields) for e in again] == [expected(7, name), expected(3, name)]
    assert (again.index.ids, again.dataset, again.columns) == (
        examples[[7, 3]].index.ids,
        examples.dataset,
        examples.columns,
    )


def prompts(examples: Examples) -> list[str]:
    return [example.fields["prompt"] for example in examples]


def test_a_spawned_process_reads_the_same(pool):
    examples = [read_examples(pool / name)[5:8] for name in ("pool.jsonl", "pool.jsonl.gz", "pool.parquet")]
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as worker:
        assert list(worker.map(prompts, examples)) == [[r["prompt"] for r in RECORDS[5:8]]] * 3


def test_forked_processes_do_not_share_a_place_in_the_file(tmp_path):
    path = tmp_path / "pool.jsonl"
    path.write_text("".join(json.dumps({"text": f"{i}" * 5000}) + "\n" for i in range(200)))
    examples = read_examples(path)
    rows = [[row for row in range(200) if row % 2 == part] for part in (0, 1)]
    with ProcessPoolExecutor(2, mp_context=get_context("fork")) as workers:
        found = workers.map(texts, [examples[part] for part in rows])
    assert [text for part in found for text in part] == [f"{row}" * 5000 for part in rows for row in part]


def texts(examples: Examples) -> list[str]:
    return [example.fields["text"] for example in examples]


def test_fields_are_a_mapping_like_a_dictionary(pool):
    some = read_examples(pool / "pool.jsonl")[1].fields
    plain = RECORDS[1]
    assert some == plain
    assert plain == some
    assert {**some} == dict(some) == plain
    assert (sorted(some), len(some), repr(some)) == (sorted(plain), len(plain), repr({**some}))
    assert ("note" in some, "image" in some, some.get("image"), some.get("note")) == (True, False, None, "x")
    assert {"prompt", "response"} <= some.keys()
    assert some != plain | {"extra": 2}
    with pytest.raises(KeyError, match="image"):
        some["image"]
    assert Example({**some}, 1, "s") == Example(some, 1, "s")


def test_which_fields_there_are_is_known_without_the_file(tmp_path):
    path = tmp_path / "pool.jsonl"
    path.write_text('{"text": "a"}\n')
    example = read_examples(path)[0]
    path.unlink()
    assert "text" in example.fields
    assert list(example.fields) == ["text"]
    assert example.fields.get("image") is None


@pytest.mark.parametrize("name", ["pool.jsonl", "pool.jsonl.gz", "pool.parquet", "mapped.parquet", "folder"])
def test_a_file_that_changes_is_named(pool, name, monkeypatch, tmp_path):
    path = tmp_path / name
    (pool / name).rename(path) if name == "folder" else path.write_bytes((pool / name).read_bytes())
    examples = read(tmp_path, name, monkeypatch)
    sent = pickle.dumps(examples[:1])
    assert examples[3].fields["prompt"] == RECORDS[3]["prompt"]
    written = path / "state.json" if name == "folder" else path
    os.utime(written, ns=(0, written.stat().st_mtime_ns + 1))
    for example in (examples[4], pickle.loads(sent)[0]):
        with pytest.raises(InputError) as caught:
            example.fields["prompt"]
        assert str(caught.value) == f"{path}: has changed since it was first read; start again"
    if name == "folder":
        path.rename(pool / name)


def test_what_is_kept_is_bounded_in_rows_and_in_bytes(tmp_path, monkeypatch):
    path = tmp_path / "pool.jsonl"
    path.write_text("".join(json.dumps({"text": f"{i:03d}" * 100}) + "\n" for i in range(50)))
    examples = read_examples(path)
    kept = examples[0].fields._contents._kept
    assert not kept  # reading a data set keeps nothing
    monkeypatch.setattr(fields, "KEPT_ROWS", 5)
    texts(examples)
    assert list(kept) == [45, 46, 47, 48, 49]
    texts(examples[[45, 10]])
    assert list(kept) == [47, 48, 49, 45, 10]
    monkeypatch.setattr(fields, "KEPT_BYTES", 700)  # a line has 313
    texts(examples[:20])
    assert list(kept) == [18, 19]


def test_an_image_is_decoded_once_and_found_again(tmp_path):
    Image.new("RGB", (4, 4), (7, 0, 0)).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "pool.jsonl").write_text('{"image": "a.png", "caption": "c"}\n')
    pyarrow.parquet.write_table(
        pyarrow.table({"image": [{"bytes": data, "path": "a.png"}], "caption": ["c"]}),
        tmp_path / "pool.parquet",
    )
    named, held = (read_examples(tmp_path / name)[0].fields for name in ("pool.jsonl", "pool.parquet"))
    assert named["image"] == str(tmp_path / "a.png")
    assert held["image"] == data
    assert open_image(named["image"]).getpixel((0, 0)) == (7, 0, 0)
    (tmp_path / "a.png").write_bytes(b"hello")  # its place is told still; opening it would fail
    assert read_examples(tmp_path / "pool.parquet")[0].fields["image"] == data
    assert pickle.loads(pickle.dumps(named))["image"] == str(tmp_path / "a.png")


def test_no_block_is_lost_where_rows_are_longer_or_shorter_than_a_block(tmp_path, monkeypatch):
    for module in (arrow, records):
        monkeypatch.setattr(module, "BLOCK_BYTES", 50)
        monkeypatch.setattr(module, "BLOCK_ROWS", 3)
    lengths = [1, 1, 1, 1, 1, 200, 1, 60, 1, 1]
    path = tmp_path / "pool.jsonl"
    path.write_text("".join(json.dumps({"text": "x" * n}) + "\n\n" for n in lengths))
    examples = read_examples(path)
    assert [len(e.fields["text"]) for e in examples] == lengths
    with path.open("a") as file:
        file.write('{"text": ""}')
    with pytest.raises(InputError, match=r"pool\.jsonl:21 \(row 10\): 'text' is empty"):
        read_examples(path)
    Dataset.from_list([{"text": "x" * n} for n in lengths]).to_parquet(tmp_path / "pool.parquet")
    assert [len(t) for t in texts(read_examples(tmp_path / "pool.parquet"))] == lengths


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("name", ["pool.jsonl", "pool.parquet"])
def test_a_pool_of_300_megabytes_takes_a_fraction_of_that(tmp_path, name):
    """The process's own memory, at its peak; pages of mapped files are not counted, the system takes them back."""
    n, body = 30_000, random.Random(0).randbytes(5000).hex()
    texts = [f"{i:09d}{body}" for i in range(n)]
    if name == "pool.jsonl":
        with open(tmp_path / name, "w") as file:
            file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
    else:
        pyarrow.parquet.write_table(
            pyarrow.table({"text": texts}), tmp_path / name, row_group_size=5000, compression="none"
        )
    del texts
    program = textwrap.dedent("""
        import sys, threading, time
        import datasets, pyarrow.parquet
        from backcast.data import read_examples

        def own() -> int:
            with open("/proc/self/status") as file:
                return next(int(line.split()[1]) for line in file if line.startswith("RssAnon"))

        peak = before = own()
        def watch() -> None:
            global peak
            while True:
                peak = max(peak, own())
                time.sleep(0.005)

        threading.Thread(target=watch, daemon=True).start()
        examples = read_examples(sys.argv[1])
        read = sum(len(example.fields["text"]) for example in examples[::10])
        print(len(examples), read, (peak - before) // 1024)
    """)
    told = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / name)],
        env=os.environ | {"HF_DATASETS_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert (tmp_path / name).stat().st_size > 300e6
    assert told[:2] == [str(n), str(n // 10 * 10_009)]
    assert int(told[2]) < 150
