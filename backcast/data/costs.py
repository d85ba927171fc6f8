"""What each example costs: a column's values, or its tokens."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from backcast.data.conversations import Message, conversation
from backcast.data.examples import Example, Examples
from backcast.errors import InputError
from backcast.progress import progress

#: The cost that is counted where no column bears its name.
TOKENS = "tokens"

#: The fields that are text, or messages, of an example that is no conversation.
TEXTS = ("text", "caption", "prompt", "chosen", "rejected")


def costs(examples: Examples, name: str, count: Callable[[str], int] | None = None) -> np.ndarray:
    """(n,) float64, each example's cost.

    Args:
        examples: the n examples.
        name: a column of positive numbers; or ``tokens``, which are counted where there is no such column: the sum over
            an example's texts, without a chat template's own and without images.
        count: a text's tokens, e.g. ``lambda text: len(tokenizer(text)["input_ids"])``.

    O(n) reads of the data.

    Raises:
        InputError: there is no such column, or a value is missing or not a finite number above 0 (with the row).
    """
    values: Iterator[object]
    if any(name in example.fields for example in examples):
        values = (example.fields.get(name) for example in examples)
    elif name == TOKENS and count is not None:
        values = (sum(map(count, _texts(example))) for example in examples)
    else:
        known = ", ".join(sorted({field for example in examples for field in example.fields}))
        raise InputError(
            f"{examples.dataset or 'memory'}: no column {name!r} to take costs from; it has {known}"
        )
    found = np.empty(len(examples))
    with progress(f"costs ({name})", len(examples)) as advance:
        for i, (example, value) in enumerate(zip(examples, values, strict=True)):
            found[i] = _checked(value, name, example)
            advance(1)
    return found


def _checked(value: object, name: str, example: Example) -> float:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (number and 0 < value <= sys.float_info.max):  # type: ignore[operator]
        raise InputError(
            f"row {example.row} of {example.source}: {name!r} is {value!r:.40}; a cost is a finite number above 0"
        )
    return float(value)  # type: ignore[arg-type]


def _texts(example: Example) -> Iterator[str]:
    fields = example.fields
    if "messages" in fields or "response" in fields:
        yield from _said(conversation(example)[0])
        return
    for name in TEXTS:
        value = fields.get(name, ())
        yield from [value] if isinstance(value, str) else _said(value)


def _said(messages: Sequence[Message]) -> Iterator[str]:
    """The texts of messages, those between images each by itself."""
    for message in messages:
        content = message["content"]
        yield from (
            [content] if isinstance(content, str) else (part["text"] for part in content if "text" in part)
        )
