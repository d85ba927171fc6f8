"""Costs: a column's values, or the tokens of an example's texts."""

import numpy as np
import pytest

from backcast.data import Examples, costs
from backcast.errors import InputError


def words(text: str) -> int:
    return len(text.split())


def test_a_column_of_numbers():
    examples = Examples.from_fields([{"text": "a", "price": value} for value in (1, 0.5, 10**300)])
    found = costs(examples, "price")
    assert found.dtype == np.float64
    assert found.tolist() == [1.0, 0.5, 1e300]


def test_a_column_named_tokens_is_not_counted():
    examples = Examples.from_fields([{"text": "a b c", "tokens": 7}])
    assert costs(examples, "tokens", words).tolist() == [7]


def test_tokens_are_those_of_every_text():
    image = b"not decoded here"
    examples = Examples.from_fields(
        [
            {"text": "a b c"},
            {"prompt": "a b", "response": "c"},
            {"messages": [{"role": "user", "content": "a b"}, {"role": "assistant", "content": "c d e"}]},
            {"image": image, "prompt": "<image>\na b", "response": "c"},
            {"image": image, "caption": "a b c d"},
            {"prompt": "a", "chosen": "b c", "rejected": [{"role": "assistant", "content": "d"}]},
        ]
    )
    assert costs(examples, "tokens", words).tolist() == [3, 3, 5, 3, 4, 4]


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), 10**400, "3", True, None, [1]])
def test_a_value_that_is_no_cost_is_named_with_its_row(value):
    examples = Examples.from_fields([{"text": "a", "price": 1}, {"text": "b", "price": value}], "shop")
    with pytest.raises(
        InputError, match=r"^row 1 of shop: 'price' is .*; a cost is a finite number above 0$"
    ):
        costs(examples, "price")


def test_rows_without_a_cost_and_names_of_no_column():
    examples = Examples.from_fields([{"text": "a", "price": 1}, {"text": "b"}, {"text": "c", "label": 2}])
    with pytest.raises(InputError, match="row 1 of memory: 'price' is None"):
        costs(examples, "price")
    for name in ("cost", "tokens"):
        with pytest.raises(
            InputError, match=f"no column '{name}' to take costs from; it has label, price, text"
        ):
            costs(examples, name)
    with pytest.raises(InputError, match="no column 'cost'"):
        costs(examples, "cost", words)
