"""Image-text rows: one conversation in every form has one id, and every fault names its row."""

import base64
import hashlib
import io
import json
import logging
import re
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as PILImage

from backcast.data import Example, Examples, content_id, conversation, load_table, read_examples
from backcast.errors import InputError


def png(shade: int) -> bytes:
    file = io.BytesIO()
    PILImage.new("RGB", (4, 4), (shade, 0, 0)).save(file, "PNG")
    return file.getvalue()


PNG = [png(i) for i in range(3)]
IMAGE = {"type": "image"}


def text(string: str) -> dict:
    return {"type": "text", "text": string}


def turns(*contents: str | list) -> list[dict]:
    return [{"role": ("user", "assistant")[i % 2], "content": c} for i, c in enumerate(contents)]


#: Three rows in canonical form: one image, two images in two turns, none.
MESSAGES = [
    turns([IMAGE, text("What is this?")], "A cat."),
    turns(
        [text("Left "), IMAGE, text(" or right "), IMAGE, text("?")],
        "Left.",
        [text("And this?"), IMAGE],
        "Up.",
    ),
    turns("What is 2 + 2?", "4"),
]
IMAGES: list[list[int]] = [[0], [0, 1, 2], []]
EXPECTED = [
    content_id({"messages": messages} | ({"images": [PNG[i] for i in images]} if images else {}))
    for messages, images in zip(MESSAGES, IMAGES, strict=True)
]
MARKED = [
    ["<image>\nWhat is this?", "A cat."],
    ["Left <image> or right <image>?", "Left.", "And this?\n<image>", "Up."],
    ["What is 2 + 2?", "4"],
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with images 0.png to 2.png, two that are broken, and nothing else."""
    (tmp_path / "images").mkdir()
    for i, data in enumerate(PNG):
        (tmp_path / "images" / f"{i}.png").write_bytes(data)
    (tmp_path / "images" / "broken.png").write_bytes(b"hello")
    (tmp_path / "images" / "cut.png").write_bytes(PNG[0][:-30])
    return tmp_path


def paths(images: list[int]) -> list[str]:
    return [f"images/{i}.png" for i in images]


def data_url(i: int) -> str:
    return f"data:image/png;base64,{base64.b64encode(PNG[i]).decode()}"


def with_images(messages: list[dict], images: list[int], part) -> list[dict]:
    """The messages with ``part(i)`` in place of each image part."""
    left = iter(images)
    return [
        {**m, "content": [part(next(left)) if p == IMAGE else p for p in m["content"]]}
        if isinstance(m["content"], list)
        else m
        for m in messages
    ]


def llava(marked: list[str], images: list[int]) -> dict:
    row = {
        "id": "x",
        "conversations": [{"from": ("human", "gpt")[i % 2], "value": v} for i, v in enumerate(marked)],
    }
    named = paths(images)
    return row | ({} if not named else {"image": named[0] if len(named) == 1 else named})


def write_json(path: Path, rows: list) -> Path:
    path.write_text(json.dumps(rows, indent=1))
    return path


def write_jsonl(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows_as(form: str) -> list[dict]:
    pairs = list(zip(MESSAGES, MARKED, IMAGES, strict=True))
    match form:
        case "llava":
            return [llava(marked, images) for _, marked, images in pairs]
        case "path parts":
            part = lambda i: {"type": "image", "path": f"images/{i}.png"}  # noqa: E731
        case "data parts":
            part = lambda i: {"type": "image", "image": data_url(i)}  # noqa: E731
        case "openai":
            part = lambda i: {"type": "image_url", "image_url": {"url": data_url(i), "detail": "low"}}  # noqa: E731
        case "bare parts":
            return [{"messages": m, "images": paths(i)} for m, _, i in pairs]
        case "marks":
            return [{"messages": turns(*marked), "images": paths(i)} for _, marked, i in pairs]
        case "text parts":
            parts = [[{**m, "content": [text(m["content"])]} for m in turns(*marked)] for marked in MARKED]
            return [{"messages": m, "images": paths(i)} for m, i in zip(parts, IMAGES, strict=True)]
    return [{"messages": with_images(m, i, part)} for m, _, i in pairs]


FORMS = ["llava", "path parts", "data parts", "openai", "bare parts", "marks", "text parts"]


# ------------------------------------------------------------------ one form


@pytest.mark.parametrize("form", FORMS)
def test_a_conversation_has_one_id_in_every_form(folder, form):
    rows = rows_as(form)
    for path in (write_json(folder / "pool.json", rows), write_jsonl(folder / "pool.jsonl", rows)):
        examples = read_examples(path)
        assert [e.id for e in examples] == EXPECTED
        assert [e.fields["messages"] for e in examples] == MESSAGES
        assert [len(e.fields.get("images", ())) for e in examples] == [1, 3, 0]
        assert "images" not in examples[2].fields
        assert read_examples(path, examples.columns).index.ids == examples.index.ids


@pytest.mark.parametrize("form", FORMS)
def test_its_table_read_again_has_the_same_ids(folder, form):
    table = load_table(write_json(folder / "pool.json", rows_as(form)))
    table.to_parquet(folder / "pool.parquet")
    assert [e.id for e in read_examples(folder / "pool.parquet")] == EXPECTED


def test_parquet_with_image_bytes(folder):
    marked = [turns(*contents) for contents in MARKED]
    data = [[PNG[i] for i in images] for images in IMAGES]
    structs = [[{"bytes": b, "path": None} for b in images] for images in data]
    outside = [[{"bytes": None, "path": p} for p in paths(images)] for images in IMAGES]
    nulls = [*structs[:2], None]
    for images in (data, structs, outside, nulls):
        table = pyarrow.table({"messages": marked, "images": images})
        pyarrow.parquet.write_table(table, folder / "pool.parquet")
        assert [e.id for e in read_examples(folder / "pool.parquet")] == EXPECTED

    message = {"role": Value("string"), "content": Value("string")}
    features = Features({"messages": List(message), "images": List(Image())})
    full = [[str(folder / p) for p in paths(images)] for images in IMAGES]
    Dataset.from_dict({"messages": marked, "images": full}, features).save_to_disk(folder / "saved")
    assert [e.id for e in read_examples(folder / "saved")] == EXPECTED


def test_parquet_with_images_inside_the_parts(folder):
    all_parts = [
        [
            {**m, "content": m["content"] if isinstance(m["content"], list) else [text(m["content"])]}
            for m in messages
        ]
        for messages in MESSAGES
    ]
    rows = [
        with_images(m, i, lambda i: {"type": "image", "image": {"bytes": PNG[i], "path": None}})
        for m, i in zip(all_parts, IMAGES, strict=True)
    ]
    pyarrow.parquet.write_table(pyarrow.table({"messages": rows}), folder / "pool.parquet")
    examples = read_examples(folder / "pool.parquet")
    assert [e.id for e in examples] == EXPECTED
    assert examples[1].fields["images"] == PNG


def test_images_enter_the_id_by_their_bytes_in_order():
    digests = [hashlib.sha256(data).hexdigest() for data in PNG[:2]]
    canonical = f'{{"images":["{digests[0]}","{digests[1]}"],"messages":[]}}'
    assert content_id({"messages": [], "images": PNG[:2]}) == hashlib.sha256(canonical.encode()).hexdigest()
    assert content_id({"messages": [], "images": PNG[1::-1]}) != content_id(
        {"messages": [], "images": PNG[:2]}
    )
    assert content_id({"text": "a", "images": []}) == content_id({"text": "a"})


def test_images_without_marks_go_before_the_first_users_turn(folder):
    row = {
        "image": paths([0, 1]),
        "conversations": [
            {"from": "system", "value": "Be brief."},
            {"from": "human", "value": "Compare."},
            {"from": "gpt", "value": "Same."},
        ],
    }
    (example,) = read_examples(write_json(folder / "pool.json", [row]))
    assert example.fields["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [IMAGE, IMAGE, text("Compare.")]},
        {"role": "assistant", "content": "Same."},
    ]
    assert example.fields["images"] == [str(folder / p) for p in paths([0, 1])]
    assert example.fields.keys() == {"messages", "images"}


def test_a_mark_is_plain_text_where_no_column_holds_images(folder):
    messages = turns("In HTML, what is <image>?", "Not a tag.")
    (example,) = read_examples(write_jsonl(folder / "pool.jsonl", [{"messages": messages}]))
    assert example.fields == {"messages": messages}
    assert example.id == content_id({"messages": messages})


def test_text_parts_are_joined(folder):
    messages = turns([text("a"), text(" b")], [text("c")])
    (example,) = read_examples(write_jsonl(folder / "pool.jsonl", [{"messages": messages}]))
    assert example.fields["messages"] == turns("a b", "c")


def test_parts_that_bear_images_and_parts_that_do_not_keep_their_order(folder):
    content = [IMAGE, {"type": "image", "path": "images/1.png"}, IMAGE, text("Which?")]
    row = {"messages": turns(content, "None."), "images": paths([0, 2])}
    (example,) = read_examples(write_jsonl(folder / "pool.jsonl", [row]))
    assert example.fields["images"] == [str(folder / p) for p in paths([0, 1, 2])]


# ------------------------------------------------------------------ prompt and response


def test_a_question_may_lack_its_image(folder):
    rows = [{"image": "images/0.png"}, {"image": None}, {}]
    path = write_jsonl(folder / "pool.jsonl", [{**row, "question": "q", "answer": "a"} for row in rows])
    examples = read_examples(path)
    assert set(examples.columns) == {"image", "prompt", "response"}
    assert [set(e.fields) for e in examples] == [
        {"image", "prompt", "response"},
        *[{"prompt", "response"}] * 2,
    ]
    assert examples[1].id == content_id({"prompt": "q", "response": "a"})


def test_a_prompt_with_a_list_of_images_is_a_conversation(folder):
    rows = [
        {"prompt": "Compare.", "response": "Same.", "images": paths([0, 1])},
        {"prompt": "First <image>, then <image>.", "response": "Yes.", "images": paths([2, 0])},
        {"prompt": "Hello", "response": "Hi", "images": None},
    ]
    examples = read_examples(write_jsonl(folder / "pool.jsonl", rows))
    assert [e.fields["messages"] for e in examples] == [
        turns([IMAGE, IMAGE, text("Compare.")], "Same."),
        turns([text("First "), IMAGE, text(", then "), IMAGE, text(".")], "Yes."),
        turns("Hello", "Hi"),
    ]
    assert examples[1].fields["images"] == [str(folder / p) for p in paths([2, 0])]
    assert all("prompt" not in e.fields and "response" not in e.fields for e in examples)


def test_conversation_is_one_form_of_every_kind(folder):
    asked = turns([IMAGE, text("What is this?")], "A cat.")
    kinds = [
        ({"messages": asked, "images": [PNG[0]]}, asked, [PNG[0]]),
        ({"image": PNG[0], "prompt": "What is this?", "response": "A cat."}, asked, [PNG[0]]),
        ({"image": PNG[0], "prompt": "<image>\nWhat is this?", "response": "A cat."}, asked, [PNG[0]]),
        ({"image": None, "prompt": "a", "response": "b"}, turns("a", "b"), []),
        ({"prompt": "a <image>", "response": "b"}, turns("a <image>", "b"), []),
        ({"messages": turns("a", "b")}, turns("a", "b"), []),
    ]
    for fields, messages, images in kinds:
        assert conversation(Example(fields, 0, "s")) == (messages, images)
    for example in read_examples(write_json(folder / "pool.json", rows_as("llava"))):
        assert conversation(example) == (example.fields["messages"], example.fields.get("images", []))


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"text": "a"}, "no conversation (text); give messages, or prompt and response"),
        ({"messages": turns([IMAGE], "b")}, "no image for its 1 <image> marks or image parts"),
        ({"messages": turns("a", "b"), "images": PNG[:1]}, "0 <image> marks or image parts for 1 images"),
        (
            {"image": PNG[0], "prompt": "<image><image>", "response": "b"},
            "2 <image> marks or image parts for 1",
        ),
    ],
)
def test_what_is_no_conversation_is_named(fields, reason):
    with pytest.raises(InputError, match=re.escape(f"row 3 of web: {reason}")):
        conversation(Example(fields, 3, "web", "id"))


# ------------------------------------------------------------------ errors


def refused(path: Path, **options) -> str:
    with pytest.raises(InputError) as caught:
        read_examples(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


BAD = [
    (turns("<image> <image>", "b"), ["images/0.png"], "2 <image> marks or image parts for 1 images"),
    (turns("<image>", "b"), paths([0, 1]), "1 <image> marks or image parts for 2 images"),
    (turns([IMAGE, IMAGE], "b"), paths([0]), "2 <image> marks or image parts for 1 images"),
    ([{"role": "assistant", "content": "b"}], paths([0]), "no place for its images"),
    (
        turns("a", "b"),
        ["http://a.org/0.png"],
        "'images[0]' is the address http://a.org/0.png; download images first",
    ),
    (
        turns([{"type": "image", "url": "https://a.org/0.png"}], "b"),
        [],
        "'messages[0].content[0]' is the address",
    ),
    (
        turns([{"type": "video", "path": "a.mp4"}], "b"),
        [],
        "'messages[0].content[0]' must be a part of type text or",
    ),
    (
        turns([text("a"), "b"], "b"),
        [],
        "'messages[0].content[1]' must be a part of type text or image, not str",
    ),
    (turns([{"type": "text"}], "b"), [], "'messages[0].content[0].text' must be text, not NoneType"),
    (turns([text(" "), text("")], "b"), [], "'messages[0].content' is empty"),
    (turns([], "b"), [], "'messages[0].content' is empty"),
    (turns("a", "b"), [7], "'images[0]' must be a path or encoded bytes, not int"),
]


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize(("messages", "images", "reason"), BAD)
def test_a_bad_row_is_named_and_never_skipped(folder, messages, images, reason, skip):
    good = {"messages": turns("<image>", "b"), "images": paths([0])}
    rows = [good, {"messages": messages, "images": images}, good]
    for path, where in (
        (write_jsonl(folder / "pool.jsonl", rows), f"{folder}/pool.jsonl:2 (row 1): "),
        (write_json(folder / "pool.json", rows), f"{folder}/pool.json: row 1: "),
    ):
        assert refused(path, skip_broken=skip).startswith(where + reason)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b'[\n{"text": "a"},\n{"text": }\n]',
            ":3: not JSON (Expecting value at column 10); the file must be one list",
        ),
        (
            b'\n [{"text": "a"}, 7]',
            ": row 1: not a JSON object but int; the file must be one list of JSON objects",
        ),
        (b'[\n{"text": "\xff"}]', ":2: not UTF-8"),
        (b'[{"text": "a"}]\n[{"text": "b"}]\n', ":2: not JSON (Extra data at column 1)"),
        (b"[]", ": no rows"),
    ],
)
def test_a_list_that_cannot_be_read_is_named_with_its_line(tmp_path, content, message):
    (tmp_path / "pool.json").write_bytes(content)
    assert refused(tmp_path / "pool.json").startswith(f"{tmp_path}/pool.json{message}")


def test_a_json_file_of_lines_and_one_with_a_byte_order_mark_are_read(tmp_path):
    write_jsonl(tmp_path / "lines.json", [{"text": "a"}, {"text": "b"}])
    (tmp_path / "list.json").write_bytes(b'\xef\xbb\xbf\r\n [{"text": "a"},\n\n{"text": "b"}]\n')
    for name in ("lines.json", "list.json"):
        assert [e.fields["text"] for e in read_examples(tmp_path / name)] == ["a", "b"]
        assert load_table(tmp_path / name)["text"][:] == ["a", "b"]


def test_preference_pairs_show_no_images(folder):
    row = {"prompt": turns([{"type": "image", "path": "images/0.png"}]), "chosen": "a", "rejected": "b"}
    assert "'prompt' shows an image" in refused(write_jsonl(folder / "pool.jsonl", [row]))


def test_both_an_image_and_images_column_are_ambiguous(folder):
    row = {"prompt": "a", "response": "b", "image": "images/0.png", "images": paths([0])}
    assert "are ambiguous" in refused(write_jsonl(folder / "pool.jsonl", [row]))


# ------------------------------------------------------------------ broken images

BROKEN = [
    ("images/none.png", "does not exist"),
    ("images/broken.png", "(not an image)"),
    ("images/cut.png", "cannot be decoded"),
    ("", "is empty"),
    ("data:image/png;base64,@@@", "is no data URL of an image"),
    ("data:image/png,abc", "is no data URL of an image (not in base64)"),
    (data_url(0)[:62], "cannot be decoded from its bytes"),
    ({"bytes": None, "path": None}, "is empty"),
]


def kinds_with(image) -> dict[str, dict]:
    """A row of every kind that shows an image."""
    return {
        "caption": {"image": image, "caption": "c"},
        "question": {"image": image, "prompt": "p", "response": "r"},
        "prompt and images": {"images": ["images/0.png", image], "prompt": "p", "response": "r"},
        "llava": {"image": image, "conversations": [{"from": "human", "value": "<image>\nWhat?"}]},
        "images": {"messages": turns("<image>", "b"), "images": [image]},
        "part": {"messages": turns([{"type": "image", "image": image}], "b")},
    }


@pytest.mark.parametrize(("image", "reason"), BROKEN)
def test_a_broken_image_stops_or_is_skipped_and_listed(folder, caplog, image, reason):
    good, bad = kinds_with("images/1.png"), kinds_with(image)
    for kind, row in bad.items():
        path = write_jsonl(folder / "pool.jsonl", [row, good[kind], good[kind], row, good[kind]])
        assert reason in refused(path)
        assert refused(path).startswith(f"{path}:1 (row 0): ")
        caplog.clear()
        with caplog.at_level(logging.WARNING, "backcast"):
            examples = read_examples(path, skip_broken=True)
        assert [e.row for e in examples] == [1, 2, 4]
        assert examples.index.rows.tolist() == [1, 2, 4]
        assert [row for row, _ in examples.skipped] == [0, 3]
        assert all(reason in why for _, why in examples.skipped)
        assert examples[1:].skipped == examples.skipped
        (record,) = caplog.records
        assert record.getMessage().startswith(
            f"{path}: 2 of 5 rows skipped, their images being broken or missing: rows 0, 3; the first: "
        )


def test_a_place_without_an_image_is_skipped(folder):
    rows = [
        {"messages": turns("<image>", "b"), "images": []},
        {"messages": turns([IMAGE], "b"), "images": None},
        {"messages": turns("<image>", "b"), "images": paths([0])},
    ]
    path = write_jsonl(folder / "pool.jsonl", rows)
    assert "no image for its 1 <image> marks or image parts; name one for each" in refused(path)
    examples = read_examples(path, skip_broken=True)
    assert ([e.row for e in examples], [row for row, _ in examples.skipped]) == ([2], [0, 1])


def test_a_caption_without_an_image_is_skipped(folder):
    rows = [{"image": None, "caption": "c"}, {"image": "images/0.png", "caption": "c"}]
    examples = read_examples(write_jsonl(folder / "pool.jsonl", rows), skip_broken=True)
    assert examples.skipped == ((0, "no 'image'; every row needs image"),)


def test_no_row_left_is_an_error(folder):
    path = write_jsonl(folder / "pool.jsonl", [{"image": "images/none.png", "caption": "c"}] * 2)
    assert refused(path, skip_broken=True).startswith(
        f"{path}: no row has a whole image; the first: {path}:1 (row 0)"
    )


def test_nothing_is_skipped_or_logged_where_nothing_is_broken(folder, caplog):
    path = write_json(folder / "pool.json", rows_as("llava"))
    with caplog.at_level(logging.WARNING, "backcast"):
        assert read_examples(path, skip_broken=True).skipped == ()
    assert not caplog.records
    assert Examples.from_fields([{"text": "a"}]).skipped == ()


def test_many_rows_about_one_file_decode_it_once(folder, monkeypatch):
    rows = [{"image": f"images/{i % 2}.png", "prompt": str(i), "response": "r"} for i in range(10)]
    opened = []
    pillow = PILImage.open
    monkeypatch.setattr(PILImage, "open", lambda *given: (opened.append(given), pillow(*given))[1])
    few = read_examples(write_jsonl(folder / "few.jsonl", rows[:2]))
    once = len(opened)
    many = read_examples(write_jsonl(folder / "many.jsonl", rows))
    assert once > 0
    assert len(opened) == 2 * once
    assert many.index.ids[:2] == few.index.ids
    assert len(set(many.index.ids)) == 10
