"""What a task has made of its last examples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from backcast.data import Example

T = TypeVar("T")

#: Examples that are kept.
CACHE = 2**12


class Encoded(Generic[T]):
    """A function of examples that remembers the last ones by their ids: a batch asks for their lengths before.

    Args:
        encode: the function.
        room: the most that is kept, in all: of examples, or of what ``size`` measures.
        size: of what the function gave, e.g. its bytes.
    """

    def __init__(
        self, encode: Callable[[Example], T], room: int = CACHE, size: Callable[[T], int] | None = None
    ) -> None:
        self._encode, self._room, self._size = encode, room, size
        self._kept: dict[str, T] = {}
        self._free = room

    def __call__(self, example: Example) -> T:
        if example.id in self._kept:
            return self._kept[example.id]
        made = self._encode(example)
        size = 1 if self._size is None else self._size(made)
        if size > self._free:
            self._kept.clear()
            self._free = self._room
        if size <= self._free:
            self._kept[example.id] = made
            self._free -= size
        return made
