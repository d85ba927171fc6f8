"""Readers: every format against the others, and every message with its line or row."""

import gzip
import json
import os
import re
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value
from PIL import Image as PILImage

from backcast.data import Examples, content_id, load_table, open_image, read_examples
from backcast.errors import InputError

PAIRS = [
    {"prompt": f"p{i}", "response": f"r{i} é\u2028", "source": "ab"[i % 2], "extra": i} for i in range(5)
]
CHATS = [
    {"messages": [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": "a"}]}
    for i in range(3)
]
TEXTS = [{"text": f" t{i} "} for i in range(3)]


def write_jsonl(path: Path, records: list) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def write_images(folder: Path, n: int) -> list[Path]:
    (folder / "images").mkdir()
    paths = [folder / "images" / f"{i}.png" for i in range(n)]
    for i, path in enumerate(paths):
        PILImage.new("RGB", (4, 4), (i, 0, 0)).save(path)
    return paths


def ids(examples: Examples) -> list[str]:
    return [example.id for example in examples]


def refused(path: Path | str, columns: dict[str, str] | None = None) -> str:
    with pytest.raises(InputError) as caught:
        read_examples(path, columns)
    message = str(caught.value)
    assert "\n" not in message
    return message


# ------------------------------------------------------------------ formats


@pytest.mark.parametrize("records", [PAIRS, CHATS, TEXTS])
def test_all_formats_hold_the_same_examples(tmp_path, records):
    jsonl = write_jsonl(tmp_path / "pool.jsonl", records)
    with gzip.open(tmp_path / "pool.jsonl.gz", "wb") as file:
        file.write(jsonl.read_bytes())
    table = Dataset.from_list(records)
    table.to_parquet(tmp_path / "pool.parquet")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / "plain.parquet")
    table.save_to_disk(tmp_path / "folder")
    DatasetDict({"train": table, "test": table.select([0])}).save_to_disk(tmp_path / "splits")

    expected = [content_id(record) for record in records]
    for name in ("pool.jsonl", "pool.jsonl.gz", "pool.parquet", "plain.parquet", "folder", "splits"):
        examples = read_examples(tmp_path / name)
        assert ids(examples) == expected, name
        assert [e.row for e in examples] == list(range(len(records)))
        assert load_table(tmp_path / name)[:] == table[:], name
    assert ids(read_examples(f"{tmp_path}/splits:test")) == expected[:1]


def test_images_are_the_same_by_path_bytes_struct_and_feature(tmp_path):
    paths = write_images(tmp_path, 3)
    captions = [f"c{i}" for i in range(3)]
    relative = [str(path.relative_to(tmp_path)) for path in paths]
    data = [path.read_bytes() for path in paths]
    write_jsonl(
        tmp_path / "pool.jsonl", [{"image": i, "caption": c} for i, c in zip(relative, captions, strict=True)]
    )
    structs = [{"bytes": b, "path": None} for b in data]
    outside = [{"bytes": None, "path": p} for p in relative]
    for name, images in [("bytes", data), ("structs", structs), ("paths", relative), ("outside", outside)]:
        pyarrow.parquet.write_table(
            pyarrow.table({"image": images, "caption": captions}), tmp_path / f"{name}.parquet"
        )
    features = Features({"image": Image(), "caption": Value("string")})
    Dataset.from_dict({"image": [str(p) for p in paths], "caption": captions}, features).save_to_disk(
        tmp_path / "folder"
    )

    expected = [content_id({"image": b, "caption": c}) for b, c in zip(data, captions, strict=True)]
    for name in (
        "pool.jsonl",
        "bytes.parquet",
        "structs.parquet",
        "paths.parquet",
        "outside.parquet",
        "folder",
    ):
        examples = read_examples(tmp_path / name)
        assert ids(examples) == expected, name
        assert open_image(examples[2].fields["image"]).getpixel((0, 0)) == (2, 0, 0)
    assert read_examples(tmp_path / "pool.jsonl")[1].fields["image"] == str(paths[1])


def test_image_paths_start_at_the_file_not_at_the_working_folder(tmp_path, monkeypatch):
    write_images(tmp_path, 1)
    write_jsonl(tmp_path / "pool.jsonl", [{"image": "images/0.png", "caption": "c"}])
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    image = read_examples("../pool.jsonl")[0].fields["image"]
    assert os.path.isabs(image)
    assert Path(image).is_file()


def test_selected_and_shuffled_folders_keep_their_own_order(tmp_path):
    Dataset.from_list(TEXTS).select([2, 0]).save_to_disk(tmp_path / "folder")
    assert [e.fields["text"] for e in read_examples(tmp_path / "folder")] == [" t2 ", " t0 "]


def test_blank_lines_a_byte_order_mark_and_crlf_are_not_rows(tmp_path):
    path = tmp_path / "pool.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n\r\n  \n{"text": "b"}')
    assert [(e.row, e.fields["text"]) for e in read_examples(path)] == [(0, "a"), (1, "b")]
    assert load_table(path)["text"][:] == ["a", "b"]


def test_a_line_separator_inside_a_string_does_not_split_the_row(tmp_path):
    path = tmp_path / "pool.jsonl"
    path.write_text('{"text": "a\u2028b\u0085c"}\n', encoding="utf-8")
    assert [e.fields["text"] for e in read_examples(path)] == ["a\u2028b\u0085c"]


def test_parquet_in_a_partition_folder_gains_no_column(tmp_path):
    (tmp_path / "lang=en").mkdir()
    Dataset.from_list(TEXTS).to_parquet(tmp_path / "lang=en" / "pool.parquet")
    assert load_table(tmp_path / "lang=en" / "pool.parquet").column_names == ["text"]


# ------------------------------------------------------------------ columns


@pytest.mark.parametrize(
    ("record", "kind"),
    [
        ({"instruction": "a", "output": "b"}, {"prompt": "instruction", "response": "output"}),
        ({"question": "a", "answer": "b"}, {"prompt": "question", "response": "answer"}),
        ({"prompt": "a", "completion": "b"}, {"prompt": "prompt", "response": "completion"}),
        ({"prompt": "a", "question": "x", "response": "b"}, {"prompt": "prompt", "response": "response"}),
        ({"text": "a", "question": "x", "query": "y"}, {"text": "text"}),
        ({"text": "a", "label": 1}, {"text": "text", "label": "label"}),
    ],
)
def test_well_known_names_are_recognised(tmp_path, record, kind):
    examples = read_examples(write_jsonl(tmp_path / "pool.jsonl", [record]))
    assert examples.columns == kind
    assert {field: examples[0].fields[field] for field in kind} == {f: record[own] for f, own in kind.items()}


@pytest.mark.parametrize("image", ["image_path", "img", "file_name"])
def test_text_beside_an_image_is_its_caption(tmp_path, image):
    write_images(tmp_path, 1)
    path = write_jsonl(tmp_path / "pool.jsonl", [{image: "images/0.png", "text": "c"}])
    assert read_examples(path).columns == {"image": image, "caption": "text"}


def test_an_image_beside_a_question_is_part_of_the_example(tmp_path):
    write_images(tmp_path, 1)
    path = write_jsonl(tmp_path / "pool.jsonl", [{"image": "images/0.png", "question": "q", "answer": "a"}])
    assert set(read_examples(path).columns) == {"image", "prompt", "response"}
    assert set(read_examples(path, {"prompt": "question", "response": "answer"}).columns) == {
        "prompt",
        "response",
    }


def test_given_columns_win_and_read_back_the_same(tmp_path):
    record = {"text": "x", "prompt": "y", "q": "a", "answer": "b", "origin": "web", "id": 7}
    path = write_jsonl(tmp_path / "pool.jsonl", [record])
    first = read_examples(path, {"prompt": "q", "source": "origin"})
    assert first.columns == {"prompt": "q", "response": "answer", "source": "origin"}
    assert first[0].fields == {"prompt": "a", "response": "b", "source": "web", "id": 7}
    assert first[0].source == "web"
    assert first[0].id == content_id({"prompt": "a", "response": "b"})
    again = read_examples(path, first.columns)
    assert (again.columns, ids(again)) == (first.columns, ids(first))


def test_other_columns_are_kept_and_not_hashed(tmp_path):
    path = write_jsonl(tmp_path / "pool.jsonl", PAIRS)
    example = read_examples(path)[3]
    assert example.fields["extra"] == 3
    assert example.id == content_id({"prompt": "p3", "response": PAIRS[3]["response"]})


def test_source_is_the_column_else_the_stem(tmp_path):
    path = write_jsonl(tmp_path / "my.pool.jsonl", [{"text": "a", "source": "web"}, {"text": "b"}])
    assert [e.source for e in read_examples(path)] == ["web", "my.pool"]
    Dataset.from_list(TEXTS).to_parquet(tmp_path / "shard.parquet")
    assert {e.source for e in read_examples(tmp_path / "shard.parquet")} == {"shard"}


def test_class_labels_keep_their_numbers(tmp_path):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})
    Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features).save_to_disk(tmp_path / "folder")
    path = write_jsonl(tmp_path / "pool.jsonl", [{"text": "a", "label": 1}, {"text": "b", "label": 0}])
    assert ids(read_examples(tmp_path / "folder")) == ids(read_examples(path))


def test_messages_lose_keys_that_other_rows_brought(tmp_path):
    chats = [
        {"messages": [{"role": "user", "content": "a", "name": "x"}]},
        {"messages": [{"role": "user", "content": "b"}]},
    ]
    path = write_jsonl(tmp_path / "pool.jsonl", chats)
    Dataset.from_list(chats).to_parquet(tmp_path / "pool.parquet")
    assert ids(read_examples(path)) == ids(read_examples(tmp_path / "pool.parquet"))
    assert read_examples(path)[0].fields["messages"] == [{"role": "user", "content": "a"}]


@pytest.mark.parametrize(
    ("record", "needs"),
    [
        ({"instruction": "a", "input": "b", "output": "c"}, ["prompt=instruction|input response=output"]),
        (
            {"instruction": "a", "output": "b", "text": "c"},
            ["prompt=instruction response=output", "text=text"],
        ),
        ({"messages": [], "prompt": "a", "response": "b"}, ["messages=messages", "prompt=prompt"]),
    ],
)
def test_ambiguous_columns_are_listed_with_their_readings(tmp_path, record, needs):
    message = refused(write_jsonl(tmp_path / "pool.jsonl", [record]))
    assert f"the columns {', '.join(record)} are ambiguous" in message
    assert all(need in message for need in needs)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"prompt": "q", "response": "extra"},
            "no column 'q' for 'prompt'; the columns are prompt, response",
        ),
        ({"answer": "response"}, "no field 'answer'; the fields are messages, prompt"),
        ({"prompt": "prompt", "caption": "response"}, "prompt+caption is no kind of example"),
        ({"caption": "response"}, "hold no image+caption; say which to use"),
    ],
)
def test_wrong_columns_are_named(tmp_path, columns, message):
    assert message in refused(write_jsonl(tmp_path / "pool.jsonl", PAIRS), columns)


def test_a_file_without_a_usable_column_says_what_it_has(tmp_path):
    message = refused(write_jsonl(tmp_path / "pool.jsonl", [{"title": "a", "prompt": "b"}]))
    assert "the columns title, prompt hold no prompt+response or messages or text" in message


# ------------------------------------------------------------------ errors


@pytest.mark.parametrize("name", ["none.jsonl", "none.parquet", "none.jsonl.gz"])
def test_missing_file(tmp_path, name):
    assert refused(tmp_path / name) == f"{tmp_path / name}: no such file"


def test_missing_folder_unknown_format_and_foreign_folder(tmp_path):
    assert "no such file or folder" in refused(tmp_path / "none")
    (tmp_path / "pool.csv").write_text("text\na\n")
    assert "unknown format" in refused(tmp_path / "pool.csv")
    assert "not a dataset folder" in refused(tmp_path)


def test_a_hub_id_that_cannot_be_had(monkeypatch):
    import datasets
    import huggingface_hub

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for name in ("backcast-nobody/none", "backcast-nobody/none:train"):
        assert refused(name).startswith(f"{name}: no such file, and no such dataset on the hub")


def test_splits_that_are_not_there(tmp_path):
    table = Dataset.from_list(TEXTS)
    DatasetDict({"a": table, "b": table}).save_to_disk(tmp_path / "splits")
    table.save_to_disk(tmp_path / "folder")
    write_jsonl(tmp_path / "pool.jsonl", TEXTS)
    assert refused(tmp_path / "splits").endswith("no split 'train'; it has a, b")
    assert refused(f"{tmp_path}/splits:c").endswith("no split 'c'; it has a, b")
    assert "has no splits; leave ':a' out" in refused(f"{tmp_path}/folder:a")
    assert "has no splits; leave ':a' out" in refused(f"{tmp_path}/pool.jsonl:a")


def test_empty_pools(tmp_path):
    (tmp_path / "pool.jsonl").write_text("\n\n")
    Dataset.from_dict({"text": []}).to_parquet(tmp_path / "pool.parquet")
    for name in ("pool.jsonl", "pool.parquet"):
        assert "no rows" in refused(tmp_path / name)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "b"', "not JSON (Expecting ',' delimiter at column 13)"),
        (b"text", "not JSON"),
        (b'["b"]', "not a JSON object but list"),
        (b'{"text": "\xff"}', "not UTF-8"),
        (b'{"text": "b", "n": ' + b"9" * 5000 + b"}", "not JSON"),
        (b"[" * 100_000, "not JSON"),
    ],
)
def test_an_unreadable_line_is_named(tmp_path, line, reason):
    path = tmp_path / "pool.jsonl"
    path.write_bytes(b'{"text": "a"}\n\n' + line + b'\n{"text": "c"}\n')
    assert refused(path).startswith(f"{path}:3: {reason}")
    with pytest.raises(InputError, match=re.escape(f"{path}:3: {reason}")):
        load_table(path)


def test_files_that_are_not_what_their_names_say(tmp_path):
    (tmp_path / "pool.parquet").write_bytes(b"hello")
    assert "not a Parquet file" in refused(tmp_path / "pool.parquet")
    (tmp_path / "pool.jsonl.gz").write_bytes(b"hello")
    assert "cannot be unpacked" in refused(tmp_path / "pool.jsonl.gz")
    (tmp_path / "pool.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}\n' * 1000)[:-20])
    assert "cannot be unpacked" in refused(tmp_path / "pool.jsonl.gz")


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ({"prompt": "a"}, "no 'response'"),
        ({"prompt": "a", "response": None}, "no 'response'"),
        ({"prompt": "a", "response": " \n"}, "'response' is empty"),
        ({"prompt": 3, "response": "b"}, "'prompt' must be text, not int"),
        ({"prompt": "a", "response": ["b"]}, "'response' must be text, not list"),
        ({"prompt": "a", "response": "\ud800"}, "'response' holds half of a surrogate pair"),
        ({"prompt": "a", "response": "b", "label": [1]}, "'label' must be a number or text, not list"),
    ],
)
def test_a_bad_row_is_named_with_its_line(tmp_path, bad, reason):
    path = tmp_path / "pool.jsonl"
    path.write_text("\n" + "".join(json.dumps(r) + "\n" for r in [*PAIRS, bad, *PAIRS]))
    assert refused(path).startswith(f"{path}:7 (row 5): {reason}")


def test_a_bad_row_of_a_table_is_named(tmp_path):
    Dataset.from_dict({"text": ["a", "b", ""]}).to_parquet(tmp_path / "pool.parquet")
    assert refused(tmp_path / "pool.parquet") == f"{tmp_path / 'pool.parquet'}: row 2: 'text' is empty"


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ("hello", "must be a list of messages, not str"),
        ([], "is empty"),
        (["hello"], r"\[0\]' must have a role and a content"),
        ([{"role": "user"}], r"\[0\]' must have a role and a content"),
        ([{"from": "human", "content": "x"}], r"\[0\]' must have a role and a content"),
        (
            [{"from": "robot", "value": "x"}],
            r"\[0\].value' is from 'robot'; it must be from human, gpt or system",
        ),
        ([{"from": ["human"], "value": "x"}], r"\[0\].value' is from \['human'\]"),
        (
            [{"role": "user", "content": "x"}, {"role": "assistant", "content": None}],
            r"\[1\].content' must be text",
        ),
        ([{"role": "user", "content": ""}], r"\[0\].content' is empty"),
    ],
)
def test_bad_messages_are_named(tmp_path, messages, reason):
    path = write_jsonl(tmp_path / "pool.jsonl", [*CHATS, {"messages": messages}])
    assert re.match(rf"{re.escape(str(path))}:4 \(row 3\): 'messages.*{reason}", refused(path))


def test_mixed_kinds_name_the_first_row_that_differs(tmp_path):
    message = refused(write_jsonl(tmp_path / "pool.jsonl", [*PAIRS, *TEXTS]))
    assert message.startswith(f"{tmp_path / 'pool.jsonl'}:6 (row 5): mixed kinds: this row is text")
    assert "the first is prompt+response" in message


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        ("images/none.png", "does not exist"),
        ("images/broken.png", "cannot be decoded"),
        ("images/cut.png", "cannot be decoded"),
        ("", "'image' is empty"),
        (7, "'image' must be a path or encoded bytes, not int"),
        (None, "no 'image'"),
    ],
)
def test_a_broken_image_is_named_with_its_row(tmp_path, image, reason):
    paths = write_images(tmp_path, 2)
    (tmp_path / "images" / "broken.png").write_bytes(b"hello")
    (tmp_path / "images" / "cut.png").write_bytes(paths[0].read_bytes()[:-30])
    good = {"image": "images/0.png", "caption": "c"}
    path = write_jsonl(tmp_path / "pool.jsonl", [good, {"image": image, "caption": "c"}, good])
    message = refused(path)
    assert message.startswith(f"{path}:2 (row 1): ")
    assert reason in message


def test_a_broken_image_in_parquet_is_named_with_its_row(tmp_path):
    good = write_images(tmp_path, 1)[0].read_bytes()
    table = pyarrow.table({"image": [good, good[:40]], "caption": ["a", "b"]})
    pyarrow.parquet.write_table(table, tmp_path / "pool.parquet")
    assert f"{tmp_path / 'pool.parquet'}: row 1: image cannot be decoded from its bytes" in refused(
        tmp_path / "pool.parquet"
    )


def test_a_column_of_several_types_keeps_its_values(tmp_path):
    records = [{"text": "a", "n": 1, "of": [1]}, {"text": "b", "n": "4", "of": ["4", {"c": None}]}]
    path = write_jsonl(tmp_path / "pool.jsonl", records)
    assert load_table(path).to_list() == records
    load_table(path).save_to_disk(tmp_path / "folder")
    load_table(path).to_parquet(tmp_path / "pool.parquet")
    for name in ("pool.jsonl", "folder", "pool.parquet"):
        assert [dict(e.fields) for e in read_examples(tmp_path / name)] == records


def test_a_number_that_no_table_holds_is_refused(tmp_path):
    path = write_jsonl(tmp_path / "pool.jsonl", [{"text": "a", "n": 2**80}])
    assert read_examples(path)[0].fields["n"] == 2**80
    with pytest.raises(InputError, match="do not fit one type"):
        load_table(path)
