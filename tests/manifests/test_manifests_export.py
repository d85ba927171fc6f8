"""What is exported is read back: by `read_examples`, by ``datasets``, and as the trainers' documents say."""

from __future__ import annotations

import io
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import yaml
from datasets import Dataset, load_dataset
from PIL import Image
from selectors_cases import scores

from backcast.data import Examples, conversation, read_examples
from backcast.errors import InputError
from backcast.manifests import Manifest, export
from backcast.selectors import select

N, K = 9, 4
Row = dict[str, Any]


def png(i: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (4, 4), 20 * int(i)).save(buffer, "PNG")
    return buffer.getvalue()


def picture(folder: Path, i: int) -> str:
    (folder / "shots").mkdir(exist_ok=True)
    (folder / "shots" / f"{i}.png").write_bytes(png(i))
    return f"shots/{i}.png"


def seen(i: int) -> list[Row]:
    """A conversation about two images, or about none."""
    if i % 3 == 0:
        return [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": f"a{i}"}]
    shown = [{"type": "image"}, {"type": "text", "text": f"and {i}"}, {"type": "image"}]
    return [{"role": "user", "content": shown}, {"role": "assistant", "content": f"a{i}"}]


def spoken(i: int) -> list[Row]:
    return [{"role": "system", "content": "be brief"}, {"role": "user", "content": f"q{i}"}]


#: name → the rows of a pool, given its folder
POOLS: dict[str, Callable[[Path], list[Row]]] = {
    "text": lambda _: [{"text": f"text {i}", "note": i} for i in range(N)],
    "instruction": lambda _: [{"question": f"q{i}", "answer": f"a{i}"} for i in range(N)],
    "messages": lambda _: [
        {"messages": [*spoken(i), {"role": "assistant", "content": f"a{i}"}]} for i in range(N)
    ],
    "shown": lambda at: [{"img": picture(at, i), "prompt": f"q{i}", "response": f"a{i}"} for i in range(N)],
    "several": lambda at: [
        {"messages": seen(i), "images": [picture(at, i), picture(at, i + 1)] if i % 3 else []}
        for i in range(N)
    ],
    "captions": lambda at: [{"image": picture(at, i), "caption": f"c{i}"} for i in range(N)],
    "labels": lambda at: [{"image": picture(at, i), "label": i % 2} for i in range(N)],
    "pairs": lambda _: [{"prompt": f"q{i}", "chosen": f"a{i}", "rejected": f"b{i}"} for i in range(N)],
    "spoken pairs": lambda _: [
        {
            "prompt": spoken(i),
            "chosen": [{"role": "assistant", "content": f"a{i}"}],
            "rejected": [*spoken(i), {"role": "assistant", "content": f"b{i}"}],
        }
        for i in range(N)
    ],
}


def chosen(tmp_path: Path, name: str) -> Manifest:
    """A manifest of four rows of a pool in ``tmp_path/data``."""
    folder = tmp_path / "data"
    folder.mkdir()
    pool = folder / "pool.jsonl"
    pool.write_text("".join(json.dumps(row) + "\n" for row in POOLS[name](folder)))
    return selected(tmp_path, pool)


def selected(tmp_path: Path, pool: Path) -> Manifest:
    values = np.random.default_rng(1).normal(size=(N, 1))
    return select(scores(values, read_examples(pool).index), K, "top_k").save(tmp_path / "subset.jsonl")


def examples_of(manifest: Manifest) -> Examples:
    return read_examples(manifest.dataset)[manifest.rows]


def lines(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def weighted(manifest: Manifest, weights: list[float]) -> Manifest:
    told = tuple({**line, "weight": w} for line, w in zip(manifest.lines, weights, strict=True))
    heavier = Manifest(manifest.path, told, manifest.meta)
    heavier.save()
    return heavier


# ------------------------------------------------------------------ materialised


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
@pytest.mark.parametrize("name", POOLS)
def test_the_exported_rows_are_the_chosen_ones(tmp_path: Path, name: str, format: str) -> None:
    """By content, images included, under the data's own names, and from another working directory."""
    manifest = chosen(tmp_path, name)
    out = tmp_path / "out" / f"train.{format}"
    assert export(manifest.path, out, format) == [out]
    back = read_examples(out)
    assert back.index.ids == manifest.ids
    own = {column for row in POOLS[name](tmp_path / "data") for column in row}
    written = lines(out) if format == "jsonl" else pyarrow.parquet.read_table(out).to_pylist()
    assert {column for row in written for column in row} == own
    assert [p.name for p in out.parent.iterdir()] == [out.name]


def test_other_columns_come_along(tmp_path: Path) -> None:
    manifest = chosen(tmp_path, "text")
    export(manifest, tmp_path / "train.jsonl")
    assert [row["note"] for row in lines(tmp_path / "train.jsonl")] == manifest.rows.tolist()


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_weights_are_told_where_some_is_not_one(tmp_path: Path, format: str) -> None:
    manifest = weighted(chosen(tmp_path, "text"), [1, 0.5, 2, 1])
    out = tmp_path / f"train.{format}"
    export(manifest, out, format)
    loaded = load_dataset(format.replace("jsonl", "json"), data_files=str(out))["train"]
    assert loaded["weight"][:] == [1, 0.5, 2, 1]


def test_a_weight_of_the_data_is_not_hidden(tmp_path: Path) -> None:
    pool = tmp_path / "pool.jsonl"
    pool.write_text("".join(json.dumps({"text": f"t{i}", "weight": i}) + "\n" for i in range(N)))
    manifest = selected(tmp_path, pool)
    export(manifest, tmp_path / "train.jsonl")
    assert [row["weight"] for row in lines(tmp_path / "train.jsonl")] == manifest.rows.tolist()
    with pytest.raises(InputError, match="own column 'weight'"):
        export(weighted(manifest, [2, 1, 1, 1]), tmp_path / "other.jsonl")
    assert not (tmp_path / "other.jsonl").exists()


def test_image_bytes_go_to_files_beside_json_lines(tmp_path: Path) -> None:
    pool = tmp_path / "pool.parquet"
    Dataset.from_list([{"image": png(i), "caption": f"c{i}"} for i in range(N)]).to_parquet(pool)
    manifest, out = selected(tmp_path, pool), tmp_path / "out" / "train.jsonl"
    export(manifest, out)
    named = [row["image"] for row in lines(out)]
    assert [(out.parent / name).read_bytes() for name in named] == [png(row) for row in manifest.rows]
    assert all(name.startswith("./train.images/") and name.endswith(".png") for name in named)
    assert read_examples(out).index.ids == manifest.ids


def test_image_bytes_stay_in_parquet(tmp_path: Path) -> None:
    pool = tmp_path / "pool.parquet"
    Dataset.from_list([{"image": png(i), "caption": f"c{i}"} for i in range(N)]).to_parquet(pool)
    manifest, out = selected(tmp_path, pool), tmp_path / "train.parquet"
    export(manifest, out, "parquet")
    stored = pyarrow.parquet.read_table(out)["image"].to_pylist()
    assert stored == [{"bytes": png(row), "path": None} for row in manifest.rows]
    decoded = load_dataset("parquet", data_files=str(out))["train"]
    assert [image.getpixel((0, 0)) for image in decoded["image"]] == [20 * row for row in manifest.rows]


def test_paths_are_relative_near_by_and_absolute_elsewhere(tmp_path: Path) -> None:
    manifest = chosen(tmp_path, "captions")
    export(manifest, near := tmp_path / "train.jsonl")
    export(manifest, far := tmp_path / "a" / "b" / "c" / "train.jsonl")
    row = manifest.rows[0]
    assert lines(near)[0]["image"] == f"./data/shots/{row}.png"
    assert lines(far)[0]["image"] == f"{tmp_path}/data/shots/{row}.png"


def test_a_value_that_json_cannot_hold_is_refused(tmp_path: Path) -> None:
    pool = tmp_path / "pool.parquet"
    Dataset.from_list([{"text": f"t{i}", "raw": b"x"} for i in range(N)]).to_parquet(pool)
    manifest = selected(tmp_path, pool)
    with pytest.raises(InputError, match=r"JSON cannot hold .*export parquet"):
        export(manifest, tmp_path / "train.jsonl")
    assert not (tmp_path / "train.jsonl").exists()
    export(manifest, tmp_path / "train.parquet", "parquet")
    assert pyarrow.parquet.read_table(tmp_path / "train.parquet")["raw"].to_pylist() == [b"x"] * K


def test_values_of_no_common_type_are_refused_by_parquet(tmp_path: Path) -> None:
    pool = tmp_path / "pool.jsonl"
    pool.write_text("".join(json.dumps({"text": f"t{i}", "x": [i, "y"][i % 2]}) + "\n" for i in range(N)))
    manifest = select(read_examples(pool).index, N, "random").save(tmp_path / "subset.jsonl")
    with pytest.raises(InputError, match=r"do not fit one type .*export jsonl"):
        export(manifest, tmp_path / "train.parquet", "parquet")
    assert not (tmp_path / "train.parquet").exists()


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("out", "format", "says"),
    [
        ("x.jsonl", "csv", "format 'csv': the formats are jsonl, parquet"),
        ("x.json", "jsonl", r"ends in \.jsonl"),
        ("x.jsonl", "axolotl", r"ends in \.yaml or \.yml"),
        ("subset.jsonl", "jsonl", "is what is to be exported"),
        ("data/pool.jsonl", "jsonl", "is what is to be exported"),
    ],
)
def test_a_name_that_cannot_be_is_refused(tmp_path: Path, out: str, format: str, says: str) -> None:
    manifest = chosen(tmp_path, "text")
    before = (tmp_path / "data" / "pool.jsonl").read_bytes()
    with pytest.raises(InputError, match=says):
        export(manifest, tmp_path / out, format)
    assert (tmp_path / "data" / "pool.jsonl").read_bytes() == before
    assert Manifest.load(manifest.path).ids == manifest.ids


def test_the_rows_of_a_configuration_do_not_replace_the_pool(tmp_path: Path) -> None:
    pool = tmp_path / "a.data.jsonl"
    pool.write_text("".join(json.dumps({"text": f"t{i}"}) + "\n" for i in range(N)))
    manifest = selected(tmp_path, pool)
    with pytest.raises(InputError, match="is what is to be exported"):
        export(manifest, tmp_path / "a.yaml", "axolotl")
    export(manifest, tmp_path / "a.jsonl")


def test_changed_data_are_not_exported(tmp_path: Path) -> None:
    manifest = chosen(tmp_path, "text")
    pool = tmp_path / "data" / "pool.jsonl"
    pool.write_text("".join(reversed(pool.read_text().splitlines(keepends=True))))
    with pytest.raises(InputError, match="moved"):
        export(manifest, tmp_path / "train.jsonl")


@pytest.mark.parametrize("format", ["llamafactory", "axolotl", "trl"])
@pytest.mark.parametrize("name", ["captions", "labels"])
def test_what_a_trainer_has_no_form_for_is_refused(tmp_path: Path, name: str, format: str) -> None:
    out = {"llamafactory": "folder", "axolotl": "x.yaml", "trl": "x.py"}[format]
    with pytest.raises(InputError, match="export jsonl or parquet"):
        export(chosen(tmp_path, name), tmp_path / out, format)
    assert not (tmp_path / out).exists()


@pytest.mark.parametrize(
    ("format", "out"), [("llamafactory", "folder"), ("axolotl", "x.yaml"), ("trl", "x.py")]
)
def test_weights_that_nobody_reads_are_said_to_be_so(
    tmp_path: Path, caplog: Any, format: str, out: str
) -> None:
    manifest = weighted(chosen(tmp_path, "text"), [1, 0.5, 2, 1])
    with caplog.at_level(logging.WARNING, "backcast"):
        *_, data = export(manifest, tmp_path / out, format)
    assert f"{format} does not read them" in caplog.text
    assert [row["weight"] for row in lines(data)] == [1, 0.5, 2, 1]


def test_an_answer_of_several_messages_is_for_trl_alone(tmp_path: Path) -> None:
    pool = tmp_path / "pool.jsonl"
    answer = [{"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}]
    row = {"prompt": spoken(0), "chosen": [*answer, answer[0]], "rejected": answer[:1]}
    pool.write_text("".join(json.dumps({**row, "n": i}) + "\n" for i in range(N)))
    manifest = selected(tmp_path, pool)
    with pytest.raises(InputError, match=r"row \d of pool: 'chosen' is 3 messages, where axolotl takes one"):
        export(manifest, tmp_path / "x.yaml", "axolotl")
    *_, data = export(manifest, tmp_path / "x.py", "trl")
    assert lines(data)[0]["chosen"] == [*answer, answer[0]]


# ------------------------------------------------------------------ LLaMA-Factory


def llamafactory_rows(folder: Path, name: str) -> list[Row]:
    """What LLaMA-Factory's converters make of an entry: turns as (role, content), images, and a pair's answers."""
    entry = json.loads((folder / "dataset_info.json").read_text())[name]
    columns, tags = entry["columns"], entry.get("tags", {})
    found = []
    for row in lines(folder / entry["file_name"]):
        if entry.get("formatting", "alpaca") == "alpaca":
            turns = [("user", row[columns["prompt"]])]
            turns += [("assistant", row[columns["response"]])] if "response" in columns else []
            answers = []
        else:
            messages = row[columns["messages"]]
            turns = [(m[tags["role_tag"]], m[tags["content_tag"]]) for m in messages]
            turns = turns[1:] if turns[0][0] == tags["system_tag"] else turns
            roles = [tags["user_tag"], tags["assistant_tag"]]
            assert [role for role, _ in turns] == [roles[i % 2] for i in range(len(turns))]
            answers = [row[columns[side]] for side in ("chosen", "rejected")] if entry.get("ranking") else []
            assert len(turns) % 2 == (1 if answers else 0)
            assert all(answer[tags["role_tag"]] == tags["assistant_tag"] for answer in answers)
        images = (
            [os.path.join(folder, path) for path in row[columns["images"]]] if "images" in columns else []
        )
        assert sum(text.count("<image>") for _, text in turns) == len(images)
        found.append({"turns": turns, "images": images, "answers": [a[tags["content_tag"]] for a in answers]})
    return found


def test_llamafactory_instructions(tmp_path: Path) -> None:
    manifest = chosen(tmp_path, "instruction")
    export(manifest, tmp_path / "lf", "llamafactory")
    assert [row["turns"] for row in llamafactory_rows(tmp_path / "lf", "subset")] == [
        [("user", f"q{i}"), ("assistant", f"a{i}")] for i in manifest.rows
    ]


def test_llamafactory_text(tmp_path: Path) -> None:
    manifest = chosen(tmp_path, "text")
    export(manifest, tmp_path / "lf", "llamafactory")
    assert [row["turns"] for row in llamafactory_rows(tmp_path / "lf", "subset")] == [
        [("user", f"text {i}")] for i in manifest.rows
    ]


@pytest.mark.parametrize("name", ["messages", "shown", "several"])
def test_llamafactory_conversations(tmp_path: Path, name: str) -> None:
    manifest = chosen(tmp_path, name)
    export(manifest, tmp_path / "lf", "llamafactory")
    for row, example in zip(llamafactory_rows(tmp_path / "lf", "subset"), examples_of(manifest), strict=True):
        messages, images = conversation(example)
        assert [Path(path).read_bytes() for path in row["images"]] == [
            Path(str(i)).read_bytes() for i in images
        ]
        assert row["turns"][-1] == ("assistant", messages[-1]["content"])


@pytest.mark.parametrize("name", ["pairs", "spoken pairs"])
def test_llamafactory_pairs(tmp_path: Path, name: str) -> None:
    manifest = chosen(tmp_path, name)
    export(manifest, tmp_path / "lf", "llamafactory")
    found = llamafactory_rows(tmp_path / "lf", "subset")
    assert [row["answers"] for row in found] == [[f"a{i}", f"b{i}"] for i in manifest.rows]
    assert [row["turns"] for row in found] == [[("user", f"q{i}")] for i in manifest.rows]


def test_other_entries_of_dataset_info_stay(tmp_path: Path) -> None:
    manifest, info = chosen(tmp_path, "text"), tmp_path / "lf" / "dataset_info.json"
    info.parent.mkdir()
    info.write_text(json.dumps({"zebra": {"hf_hub_url": "a/b"}, "ä": {"file_name": "x.json"}}))
    export(manifest, info.parent, "llamafactory")
    export(manifest, info.parent, "llamafactory")
    entries = json.loads(info.read_text())
    assert list(entries) == ["zebra", "ä", "subset"]
    assert (entries["zebra"], entries["ä"]) == ({"hf_hub_url": "a/b"}, {"file_name": "x.json"})
    info.write_text(json.dumps({"subset": {"file_name": "mine.json"}}))
    with pytest.raises(InputError, match="has a data set 'subset' of another file"):
        export(manifest, info.parent, "llamafactory")
    info.write_text("[]")
    with pytest.raises(InputError, match="not an object of data sets"):
        export(manifest, info.parent, "llamafactory")


# ------------------------------------------------------------------ axolotl


def axolotl_rows(path: Path) -> tuple[Row, list[Row]]:
    """The configuration, and the rows that it names as ``datasets`` loads them, by its own words."""
    settings = yaml.safe_load(path.read_text())
    (entry,) = settings["datasets"]
    return settings, load_dataset(entry["ds_type"], data_files=entry["path"], split=entry["split"]).to_list()


def test_axolotl_text(tmp_path: Path) -> None:
    manifest = chosen(tmp_path, "text")
    export(manifest, tmp_path / "x.yaml", "axolotl")
    settings, found = axolotl_rows(tmp_path / "x.yaml")
    assert settings["datasets"][0]["type"] == "completion"
    assert [row[settings["datasets"][0]["field"]] for row in found] == [f"text {i}" for i in manifest.rows]


def test_axolotl_instructions(tmp_path: Path) -> None:
    manifest = chosen(tmp_path, "instruction")
    export(manifest, tmp_path / "x.yml", "axolotl")
    settings, found = axolotl_rows(tmp_path / "x.yml")
    assert settings["datasets"][0]["type"] == "alpaca"
    assert found == [{"instruction": f"q{i}", "output": f"a{i}"} for i in manifest.rows]


def test_axolotl_conversations(tmp_path: Path) -> None:
    manifest = chosen(tmp_path, "messages")
    export(manifest, tmp_path / "x.yaml", "axolotl")
    settings, found = axolotl_rows(tmp_path / "x.yaml")
    (entry,) = settings["datasets"]
    assert (list(settings), entry["type"]) == (["datasets"], "chat_template")
    names = entry["message_property_mappings"]
    for row, example in zip(found, examples_of(manifest), strict=True):
        turns = [{name: m[own] for name, own in names.items()} for m in row[entry["field_messages"]]]
        assert turns == example.fields["messages"]


@pytest.mark.parametrize("name", ["shown", "several"])
def test_axolotl_images_are_paths_in_the_parts(tmp_path: Path, name: str) -> None:
    manifest = chosen(tmp_path, name)
    export(manifest, tmp_path / "x.yaml", "axolotl")
    settings, found = axolotl_rows(tmp_path / "x.yaml")
    assert (settings["skip_prepare_dataset"], settings["sample_packing"]) == (True, False)
    for row, example in zip(found, examples_of(manifest), strict=True):
        pieces = [part for m in row["messages"] for part in m["content"]]
        paths = [part["path"] for part in pieces if part["type"] == "image"]
        assert paths == conversation(example)[1]
        assert all(Path(path).is_absolute() for path in paths)
        assert all(part["text"] for part in pieces if part["type"] == "text")


@pytest.mark.parametrize("name", ["pairs", "spoken pairs"])
def test_axolotl_pairs(tmp_path: Path, name: str) -> None:
    manifest = chosen(tmp_path, name)
    export(manifest, tmp_path / "x.yaml", "axolotl")
    settings, found = axolotl_rows(tmp_path / "x.yaml")
    (entry,) = settings["datasets"]
    assert (settings["rl"], entry["type"]) == ("dpo", "chat_template.default")
    for row, i in zip(found, manifest.rows, strict=True):
        assert row[entry["field_messages"]][-1] == {"role": "user", "content": f"q{i}"}
        assert row[entry["field_chosen"]] == {"role": "assistant", "content": f"a{i}"}
        assert row[entry["field_rejected"]] == {"role": "assistant", "content": f"b{i}"}


# ------------------------------------------------------------------ TRL


def trl_dataset(path: Path) -> Dataset:
    """What the script loads, run as a module: its training part waits for ``__main__``."""
    script = path.read_text()
    names: Row = {"__file__": str(path), "__name__": "exported"}
    exec(compile(script, str(path), "exec"), names)
    return names["dataset"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("text", lambda i: {"text": f"text {i}"}),
        ("instruction", lambda i: {"prompt": f"q{i}", "completion": f"a{i}"}),
        ("messages", lambda i: {"messages": [*spoken(i), {"role": "assistant", "content": f"a{i}"}]}),
        ("pairs", lambda i: {"prompt": f"q{i}", "chosen": f"a{i}", "rejected": f"b{i}"}),
        (
            "spoken pairs",
            lambda i: {
                "prompt": spoken(i),
                "chosen": [{"role": "assistant", "content": f"a{i}"}],
                "rejected": [{"role": "assistant", "content": f"b{i}"}],
            },
        ),
    ],
)
def test_the_trl_script_loads_the_rows(tmp_path: Path, name: str, expected: Callable[[int], Row]) -> None:
    manifest = chosen(tmp_path, name)
    out, data = export(manifest, tmp_path / "train.py", "trl")
    assert data == tmp_path / "train.data.jsonl"
    assert trl_dataset(out).to_list() == [expected(i) for i in manifest.rows]
    assert ("DPOTrainer" if "pairs" in name else "SFTTrainer") in out.read_text()


@pytest.mark.parametrize("name", ["shown", "several"])
def test_the_trl_script_loads_images(tmp_path: Path, name: str) -> None:
    manifest = chosen(tmp_path, name)
    out, _ = export(manifest, tmp_path / "train.py", "trl")
    for row, example in zip(trl_dataset(out), examples_of(manifest), strict=True):
        expected = [Image.open(str(image)).getpixel((0, 0)) for image in conversation(example)[1]]
        assert [image.getpixel((0, 0)) for image in row["images"]] == expected
        places = [part for m in row["messages"] for part in m["content"] if part["type"] == "image"]
        assert len(places) == len(expected)
