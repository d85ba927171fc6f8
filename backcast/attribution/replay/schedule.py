"""Which states of a run to keep, so that it can be gone through backwards in little memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import comb
from typing import TypeVar

S = TypeVar("S")


def backwards(start: S, steps: int, kept: int, advance: Callable[[S, int], S]) -> Iterator[tuple[int, S]]:
    """(t, the state before step t) for t = steps − 1, ..., 0, with at most ``kept`` states in memory beside it.

    Binomial checkpointing, the least work for that memory: with s states no step runs more than r times, where
    C(s + r, s) ≥ steps; so log₂(steps) states take log₂(steps) times the work of one run, or less.

    Args:
        start: the state before step 0.
        advance: (the state before step t, t) → the state before step t + 1; it must leave its argument as it is.

    Source: Griewank & Walther 2000, Algorithm 799: revolve.
    """
    stack = [(0, start)]
    for last in range(steps - 1, -1, -1):
        t, state = stack[-1]
        while t < last:
            if len(stack) < kept:
                target = t + _stride(last + 1 - t, kept - len(stack) + 1)
                state = _run(state, t, target, advance)
                stack.append((target, state))
            else:
                target = last
                state = _run(state, t, target, advance)
            t = target
        yield last, state
        if stack[-1][0] == last:
            stack.pop()


def _run(state: S, first: int, last: int, advance: Callable[[S, int], S]) -> S:
    for t in range(first, last):
        state = advance(state, t)
    return state


def _stride(length: int, states: int) -> int:
    """How far to go before the next state is kept: ``length`` steps with ``states`` states, the first among them."""
    times = 1
    while comb(states + times, states) < length:
        times += 1
    return min(comb(states + times - 1, states), length - 1)
