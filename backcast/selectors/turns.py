"""Whose turn it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from heapq import heapify, heapreplace


def turns(groups: Iterable[str]) -> list[int]:
    """How many of the same group came before each: its turn, when the groups take turns."""
    seen: Counter[str] = Counter()
    found = []
    for group in groups:
        found.append(seen[group])
        seen[group] += 1
    return found


def weighted_turns(weights: Sequence[float]) -> Iterator[int]:
    """Without end, the group whose turn it is: the one with the highest weight / (1 + turns had), ties to the first.

    So every group has had, at any time, turns in proportion to its weight, rounded; equal weights go round.

    Source: the apportionment of D'Hondt (1882).
    """
    waiting = [(1 / weight, group, 1) for group, weight in enumerate(weights)]
    heapify(waiting)
    while True:
        _, group, had = waiting[0]
        yield group
        heapreplace(waiting, ((had + 1) / weights[group], group, had + 1))
