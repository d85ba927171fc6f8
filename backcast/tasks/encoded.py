"""What a task has made of its last examples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from backcast.data import Example

T = TypeVar("T")

#: Examples that are kept.
CACHE = 2**12


class Encoded(Generic[T]):
    """A function of examples that remembers the last ones by their ids: a batch asks for their lengths before."""

    def __init__(self, encode: Callable[[Example], T]) -> None:
        self._encode = encode
        self._kept: dict[str, T] = {}

    def __call__(self, example: Example) -> T:
        if example.id not in self._kept:
            if len(self._kept) == CACHE:
                self._kept.clear()
            self._kept[example.id] = self._encode(example)
        return self._kept[example.id]
