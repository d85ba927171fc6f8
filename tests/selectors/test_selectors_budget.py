from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backcast.errors import InputError
from backcast.selectors import parse_budget


@pytest.mark.parametrize(
    ("budget", "n", "count"),
    [
        ("5%", 200, 10),
        (" 12.5 % ", 80, 10),
        ("100%", 7, 7),
        ("0.1%", 7, 1),
        ("50%", 5, 3),
        ("49.9%", 5, 2),
        ("120", 120, 120),
        (1, 1, 1),
        (np.int64(30), 40, 30),
    ],
)
def test_counts_and_percentages(budget: str | int, n: int, count: int) -> None:
    assert parse_budget(budget).limit(n) == count


@pytest.mark.parametrize(
    ("budget", "says"),
    [
        (0, "above zero"),
        ("0", "above zero"),
        ("0%", "above zero"),
        (-3, "give a count"),
        ("-5%", "give a count"),
        ("101%", "100 %"),
        ("100.01%", "100 %"),
        (11, "only 10"),
        ("11", "only 10"),
        ("2.5", "whole number"),
        (0.05, "give a count"),
        (float("nan"), "give a count"),
        (True, "give a count"),
        (None, "give a count"),
        ("", "give a count"),
        ("%", "give a count"),
        ("five", "give a count"),
        ("5 percents of it", "give a count"),
        ("1e3", "give a count"),
        ("٥", "give a count"),
        ("5%\n5%", "give a count"),
    ],
)
def test_anything_else_is_refused_in_one_line(budget: object, says: str) -> None:
    with pytest.raises(InputError, match=says) as refused:
        parse_budget(budget).limit(10)  # type: ignore[arg-type]
    assert "\n" not in str(refused.value)


@settings(deadline=None)
@given(st.integers(1, 10_000), st.integers(1, 10**6))
def test_a_percentage_is_rounded_to_the_nearest_count(hundredths: int, n: int) -> None:
    count = parse_budget(f"{hundredths / 100:.2f}%").limit(n)
    exact = Fraction(hundredths * n, 10_000)
    assert 1 <= count <= n
    assert abs(count - exact) <= Fraction(1, 2) or (count == 1 and exact < 1)
