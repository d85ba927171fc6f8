"""Content ids and the containers of examples."""

import hashlib
import json

import numpy as np
import pytest

from backcast.data import Example, Examples, Rows, content_id
from backcast.errors import InputError


def test_id_is_the_sha256_of_canonical_json():
    fields = {"response": "b", "prompt": "a"}
    expected = hashlib.sha256(b'{"prompt":"a","response":"b"}').hexdigest()
    assert content_id(fields) == expected


def test_id_of_non_ascii_text_is_over_utf8():
    assert content_id({"text": "é√"}) == hashlib.sha256('{"text":"é√"}'.encode()).hexdigest()


def test_key_order_and_other_columns_do_not_matter():
    first = content_id({"prompt": "a", "response": "b"})
    assert content_id({"response": "b", "prompt": "a"}) == first
    assert content_id({"response": "b", "prompt": "a", "source": "x", "score": 3, "text": None}) == first


@pytest.mark.parametrize(
    "other",
    [
        {"prompt": "a ", "response": "b"},
        {"prompt": "a", "response": "b\n"},
        {"prompt": "A", "response": "b"},
        {"prompt": "b", "response": "a"},
        {"prompt": "a", "response": "b", "label": 1},
        {"prompt": "ab", "response": ""},
    ],
)
def test_content_matters_to_the_last_space(other):
    assert content_id(other) != content_id({"prompt": "a", "response": "b"})


def test_image_counts_by_its_bytes_wherever_it_lies(tmp_path):
    (tmp_path / "a").mkdir()
    for path in (tmp_path / "x.png", tmp_path / "a" / "y.png"):
        path.write_bytes(b"the image")
    ids = {
        content_id({"image": image, "caption": "c"})
        for image in (b"the image", str(tmp_path / "x.png"), str(tmp_path / "a" / "y.png"))
    }
    digest = hashlib.sha256(b"the image").hexdigest()
    assert ids == {hashlib.sha256(f'{{"caption":"c","image":"{digest}"}}'.encode()).hexdigest()}


def test_messages_keep_their_order():
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    same = [dict(reversed(turn.items())) for turn in turns]
    assert content_id({"messages": turns}) == content_id({"messages": same})
    assert content_id({"messages": turns}) != content_id({"messages": turns[::-1]})


def test_slices_keep_origin_rows_and_ids():
    examples = Examples(
        [Example({"text": str(i)}, row=i, source="s") for i in range(5)], "pool.jsonl", {"text": "body"}
    )
    for part in (examples[[3, 1]], examples[np.array([3, 1])], examples[3:0:-2]):
        assert part.index.rows.tolist() == [3, 1]
        assert part.index.ids == (examples[3].id, examples[1].id)
        assert (part.dataset, part.columns) == ("pool.jsonl", {"text": "body"})


def test_rows_survive_json_and_fingerprint_sees_order():
    rows = Examples.from_fields([{"text": "a", "source": "x"}, {"text": "b"}]).index
    again = Rows.from_json(json.loads(json.dumps(rows.to_json())))
    assert again.ids == rows.ids
    assert again.sources == ("x", "memory")
    assert again.rows.dtype == np.int64
    assert again.fingerprint == rows.fingerprint
    assert Examples.from_fields([{"text": "b"}, {"text": "a"}]).index.fingerprint != rows.fingerprint


def test_no_fields_is_an_input_error():
    with pytest.raises(InputError, match="no examples"):
        Examples.from_fields([])
