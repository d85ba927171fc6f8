"""What names mean: files, several files, patterns, hub ids; and one table of many files."""

import json
import re
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from datasets import Dataset, DatasetDict, Features, Image, Value
from PIL import Image as PILImage

from backcast.data import content_id, load_table, map_names, read_examples, split_names
from backcast.data.arrow import open_dataset
from backcast.data.places import Place, joined_name, places
from backcast.errors import InputError


def write_jsonl(path: Path, records: list) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def texts(prefix: str, n: int) -> list[dict]:
    return [{"text": f"{prefix}{i}"} for i in range(n)]


@pytest.fixture
def three(tmp_path: Path) -> list[Path]:
    write_jsonl(tmp_path / "b.jsonl", texts("b", 2))
    Dataset.from_list(texts("a", 3)).to_parquet(tmp_path / "a.parquet")
    Dataset.from_list(texts("c", 1)).save_to_disk(tmp_path / "c")
    return [tmp_path / name for name in ("b.jsonl", "a.parquet", "c")]


# ------------------------------------------------------------------ several files


def test_rows_are_numbered_through_in_the_order_given(three):
    for name in (three, tuple(map(str, three)), ",".join(map(str, three)), " , ".join(map(str, three))):
        examples = read_examples(name)
        assert [e.fields["text"] for e in examples] == ["b0", "b1", "a0", "a1", "a2", "c0"]
        assert examples.index.rows.tolist() == list(range(6))
        assert examples.index.sources == ("b", "b", "a", "a", "a", "c")
        assert examples.columns == {"text": "text"}
        assert examples.dataset == ",".join(map(str, three))
        assert load_table(name)["text"][:] == [e.fields["text"] for e in examples]
    again = read_examples(examples.dataset, examples.columns)
    assert (again.index.fingerprint, again.dataset) == (examples.index.fingerprint, examples.dataset)


def test_a_pattern_is_its_matches_sorted_and_is_recorded_as_files(tmp_path, monkeypatch):
    for name in ("10", "9", "a"):
        write_jsonl(tmp_path / f"{name}.jsonl", texts(name, 1))
    (tmp_path / "deep" / "er").mkdir(parents=True)
    write_jsonl(tmp_path / "deep" / "er" / "b.jsonl", texts("b", 1))
    monkeypatch.chdir(tmp_path)
    examples = read_examples("*.jsonl")
    assert examples.index.sources == ("10", "9", "a")
    assert examples.dataset == ",".join(str(tmp_path / f"{name}.jsonl") for name in ("10", "9", "a"))
    assert read_examples("[0-9]*.jsonl,deep/**/*.jsonl").index.sources == ("10", "9", "b")
    assert len(read_examples("?.jsonl")) == 2
    write_jsonl(tmp_path / "0.jsonl", texts("0", 1))
    assert read_examples(examples.dataset).index.fingerprint == examples.index.fingerprint


def test_a_file_with_a_comma_or_a_bracket_in_its_name_is_that_file(tmp_path):
    for name in ("a,b.jsonl", "x[1].jsonl", "why?.jsonl"):
        path = write_jsonl(tmp_path / name, texts("a", 2))
        examples = read_examples(path)
        assert (len(examples), examples.dataset) == (2, str(path))
        assert len(read_examples(examples.dataset)) == 2


def test_columns_are_found_in_each_file_by_itself(tmp_path):
    one = write_jsonl(tmp_path / "one.jsonl", [{"instruction": "a", "output": "b"}])
    two = write_jsonl(tmp_path / "two.jsonl", [{"question": "c", "answer": "d", "source": "web"}])
    examples = read_examples([one, two])
    assert [e.id for e in examples] == [
        content_id({"prompt": p, "response": r}) for p, r in (("a", "b"), ("c", "d"))
    ]
    assert examples.index.sources == ("one", "web")
    assert examples.columns == {}
    given = {"prompt": "instruction"}
    assert read_examples([one, one.rename(tmp_path / "three.jsonl")][1:], given).columns == {
        "prompt": "instruction",
        "response": "output",
    }
    assert read_examples(examples.dataset.replace("one", "three")).index.ids == examples.index.ids


def test_columns_that_differ_are_recorded_as_they_were_given(tmp_path):
    one = write_jsonl(tmp_path / "one.jsonl", [{"q": "a", "output": "b"}])
    two = write_jsonl(tmp_path / "two.jsonl", [{"q": "c", "answer": "d"}])
    examples = read_examples([one, two], {"prompt": "q"})
    assert examples.columns == {"prompt": "q"}
    assert read_examples(examples.dataset, examples.columns).index.ids == examples.index.ids
    with pytest.raises(InputError, match=r"two\.jsonl: no column 'output' for 'response'"):
        read_examples([one, two], {"prompt": "q", "response": "output"})


def test_conversations_of_every_form_may_stand_together(tmp_path):
    PILImage.new("RGB", (4, 4)).save(tmp_path / "a.png")
    rows = {
        "plain": {"prompt": "a", "response": "b"},
        "asked": {"image": "a.png", "prompt": "a", "response": "b"},
        "chat": {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
        "text": {"text": "a"},
    }
    paths = [write_jsonl(tmp_path / f"{name}.jsonl", [row]) for name, row in rows.items()]
    examples = read_examples(paths)
    assert [set(e.fields) for e in examples] == [set(row) for row in rows.values()]


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"image": "a.png", "caption": "c"}, "image+caption"),
        ({"image": "a.png", "label": 1}, "image"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "prompt+chosen+rejected"),
    ],
)
def test_different_kinds_are_refused_with_both_names(tmp_path, row, kind):
    PILImage.new("RGB", (4, 4)).save(tmp_path / "a.png")
    one = write_jsonl(tmp_path / "one.jsonl", [{"prompt": "a", "response": "b"}])
    two = write_jsonl(tmp_path / "two.jsonl", [row])
    for first, a, second, b in ((one, "prompt+response", two, kind), (two, kind, one, "prompt+response")):
        with pytest.raises(InputError) as caught:
            read_examples([first, second])
        assert str(caught.value).startswith(f"{first} holds {a} and {second} {b}: different kinds")


def test_a_fault_is_named_in_its_own_file(tmp_path):
    good = write_jsonl(tmp_path / "good.jsonl", texts("a", 3))
    bad = write_jsonl(tmp_path / "bad.jsonl", [{"text": "b"}, {"text": ""}])
    with pytest.raises(InputError, match=re.escape(f"{bad}:2 (row 1): 'text' is empty")):
        read_examples([good, bad])
    bad.write_text('{"text": "a"}\n{\n')
    for read in (read_examples, load_table):
        with pytest.raises(InputError, match=re.escape(f"{bad}:2: not JSON")):
            read([good, bad])
    bad.write_text("\n")
    with pytest.raises(InputError, match=re.escape(f"{bad}: no rows")):
        read_examples([good, bad])


def test_skipped_rows_keep_their_places_in_the_whole(tmp_path, caplog):
    PILImage.new("RGB", (4, 4)).save(tmp_path / "a.png")
    good, broken = ({"image": image, "caption": "c"} for image in ("a.png", "none.png"))
    paths = [
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
        for name, rows in (("one", [good, broken]), ("two", [broken, good, good]), ("three", [good]))
    ]
    examples = read_examples(paths, skip_broken=True)
    assert examples.index.rows.tolist() == [0, 3, 4, 5]
    assert [row for row, _ in examples.skipped] == [1, 2]
    assert f"{paths[1]}: 1 of 3 rows skipped" in caplog.text
    assert all(e.fields["image"] == str(tmp_path / "a.png") for e in examples)
    paths[2].write_text(json.dumps(broken) + "\n")
    with pytest.raises(InputError, match=re.escape(f"{paths[2]}: no row has a whole image")):
        read_examples(paths, skip_broken=True)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("{0}/*.json", "{0}/*.json: no file matches this pattern"),
        ("{0}/a.jsonl,{0}/none.jsonl", "{0}/none.jsonl: no such file"),
        ("{0}/a.jsonl,", "{0}/a.jsonl,: nothing stands between two commas"),
        ("{0}/a.jsonl,{0}/../{1}/a.jsonl", "{0}/a.jsonl: is named twice"),
        ("{0}/*.*", "has a comma in its path"),
        ("a b", "a b: no such file or folder"),
        ("./none", "./none: no such file or folder"),
        ("a/b/c/d", "a/b/c/d: no such file or folder"),
    ],
)
def test_names_that_mean_nothing_are_refused(tmp_path, name, message):
    for file in ("a.jsonl", "b,c.jsonl"):
        write_jsonl(tmp_path / file, texts("a", 1))
    with pytest.raises(InputError, match=re.escape(message.format(tmp_path, tmp_path.name))):
        places(name.format(tmp_path, tmp_path.name))
    with pytest.raises(InputError, match="empty"):
        places([])


def test_names_can_be_changed_one_by_one():
    dataset = "/data/a.jsonl,/data/c:train,org/name@main:test"
    assert split_names(dataset) == ["/data/a.jsonl", "/data/c:train", "org/name@main:test"]
    assert (
        map_names(dataset, lambda name: name.replace("/data", "."))
        == "./a.jsonl,./c:train,org/name@main:test"
    )
    assert map_names("", str) == ""


# ------------------------------------------------------------------ the hub


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("squad", ("squad", None, None, None)),
        ("org/name", ("org/name", None, None, None)),
        ("org/name:test", ("org/name", None, None, "test")),
        ("org/name/main", ("org/name", "main", None, None)),
        ("org/name@v1.0", ("org/name", None, "v1.0", None)),
        ("org/name@refs/convert/parquet:x", ("org/name", None, "refs/convert/parquet", "x")),
        ("org/na.me-2/con_fig@0a1b2c:validation", ("org/na.me-2", "con_fig", "0a1b2c", "validation")),
    ],
)
def test_the_parts_of_a_hub_id(name, parts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (place,) = places(name)
    assert (str(place.path), place.config, place.revision, place.split) == parts
    assert (place.format, joined_name([place])) == ("hub", name)


def test_what_exists_wins_over_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table = Dataset.from_list(texts("a", 2))
    DatasetDict({"train": table, "test": table.select([0])}).save_to_disk("org/name@v1")
    examples = read_examples("org/name@v1:test")
    assert (len(examples), examples.dataset) == (1, f"{tmp_path}/org/name@v1:test")


def test_a_configuration_and_a_split_as_datasets_loads_them(tmp_path):
    """A folder with a card is loaded by the same call as a hub id; its path stands in for one."""
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: one\n  data_files: one.jsonl\n- config_name: two\n  data_files:\n"
        "  - split: train\n    path: one.jsonl\n  - split: test\n    path: two.jsonl\n---\n"
    )
    write_jsonl(tmp_path / "one.jsonl", texts("a", 2))
    write_jsonl(tmp_path / "two.jsonl", texts("b", 3))

    def rows(config: str, split: str | None) -> list[dict]:
        return open_dataset(Place("org/name", tmp_path, "hub", split, config)).to_list()

    assert rows("one", None) == texts("a", 2)
    assert rows("two", None) == texts("a", 2)
    assert rows("two", "test") == texts("b", 3)
    for config, split, message in (("two", "none", "no split 'none'"), ("three", None, "no such dataset")):
        with pytest.raises(InputError, match=message):
            rows(config, split)


# ------------------------------------------------------------------ one table


def test_a_column_that_a_file_lacks_is_none_in_its_rows(tmp_path):
    one = write_jsonl(tmp_path / "one.jsonl", [{"text": "a", "n": 1}])
    Dataset.from_list([{"text": "b", "of": {"c": [1]}}]).to_parquet(tmp_path / "two.parquet")
    assert load_table([one, tmp_path / "two.parquet"]).to_list() == [
        {"text": "a", "n": 1, "of": None},
        {"text": "b", "n": None, "of": {"c": [1]}},
    ]


def test_types_that_have_one_in_common_take_it(tmp_path):
    one = write_jsonl(tmp_path / "one.jsonl", [{"text": "a", "n": 1, "of": {"a": 1}}])
    two = write_jsonl(tmp_path / "two.jsonl", [{"text": "b", "n": 0.5, "of": {"b": "x"}}])
    pyarrow.parquet.write_table(
        pyarrow.table({"text": pyarrow.array(["c"], pyarrow.large_string())}), tmp_path / "three.parquet"
    )
    table = load_table([one, two, tmp_path / "three.parquet"])
    assert table.to_list() == [
        {"text": "a", "n": 1.0, "of": {"a": 1, "b": None}},
        {"text": "b", "n": 0.5, "of": {"a": None, "b": "x"}},
        {"text": "c", "n": None, "of": None},
    ]
    assert table.features["n"] == Value("float64")


def test_types_that_have_none_in_common_are_json(tmp_path):
    rows = [{"text": "a", "n": 1}, {"text": "b", "n": "4"}, {"text": "c", "n": [{"d": None}]}]
    paths = [write_jsonl(tmp_path / f"{row['text']}.jsonl", [row]) for row in rows]
    Dataset.from_list([{"n": 2.5, "text": "d"}]).to_parquet(tmp_path / "d.parquet")
    table = load_table([*paths, tmp_path / "d.parquet"])
    assert table.to_list() == [*rows, {"text": "d", "n": 2.5}]


def test_a_long_file_has_the_types_that_a_short_one_has(tmp_path):
    """JSON is read in blocks; what the last row is like changes the first one's type."""
    rows: list[dict] = [{"text": "a", "n": 1, "m": 1, "of": {"k": i}} for i in range(2500)]
    rows[-1] = {"text": "b", "n": "4", "m": 0.5, "of": {"k": 1, "l": "x"}, "late": True}
    table = load_table(write_jsonl(tmp_path / "pool.jsonl", rows))
    filled = [{"late": None} | row | {"of": {"l": None} | row["of"]} for row in rows]
    assert table.to_list() == filled
    assert table.features["m"] == Value("float64")


def test_features_that_agree_are_kept_and_bytes_are_no_text(tmp_path):
    PILImage.new("RGB", (4, 4)).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    features = Features({"image": Image(), "caption": Value("string")})
    for name in ("one", "two"):
        Dataset.from_dict({"image": [data], "caption": [name]}, features).to_parquet(
            tmp_path / f"{name}.parquet"
        )
    both = [tmp_path / "one.parquet", tmp_path / "two.parquet"]
    assert load_table(both).features == features
    assert len(read_examples(both)) == 2
    pyarrow.parquet.write_table(
        pyarrow.table({"image": [data], "caption": ["c"]}), tmp_path / "bytes.parquet"
    )
    named = write_jsonl(tmp_path / "named.jsonl", [{"image": "a.png", "caption": "d"}])
    with pytest.raises(InputError, match="do not fit one type"):
        load_table([tmp_path / "bytes.parquet", named])
    ids = read_examples([tmp_path / "bytes.parquet", named]).index.ids
    assert ids == tuple(content_id({"image": data, "caption": caption}) for caption in "cd")
