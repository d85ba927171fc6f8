"""The room that is left: never overspent, floors met, and greedy within it the best there is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from selectors_cases import parts, points, rows, scores

from backcast.errors import InputError
from backcast.selectors import SELECTORS, Allowance, select


@dataclass
class Case:
    """n candidates, a limit, floors and ceilings."""

    costs: np.ndarray
    limit: int
    sources: list[str]
    at_least: dict[str, float] = field(default_factory=dict)
    at_most: dict[str, float] = field(default_factory=dict)

    def allowance(self) -> Allowance:
        return Allowance(self.costs, self.limit, self.sources, self.at_least, self.at_most)

    def spent(self, chosen: Iterator[int] | np.ndarray | tuple[int, ...]) -> dict[str, float]:
        found = dict.fromkeys("abc", 0.0)
        for j in chosen:
            found[self.sources[j]] += self.costs[j]
        return found

    def within(self, chosen: np.ndarray | tuple[int, ...]) -> bool:
        """Whether limit and ceilings hold."""
        spent = self.spent(chosen)
        return sum(spent.values()) <= self.limit and all(spent[s] <= most for s, most in self.at_most.items())

    def met(self, chosen: np.ndarray | tuple[int, ...]) -> bool:
        """Whether every floor holds, as far as the source does."""
        spent, held = self.spent(chosen), self.spent(np.arange(len(self.costs)))
        return all(spent[s] >= min(least, held[s]) for s, least in self.at_least.items())


@st.composite
def cases(draw: st.DrawFn, alike: bool = False) -> Case:
    n = draw(st.integers(1, 9))
    costs = [1 if alike else draw(st.integers(1, 4)) for _ in range(n)]
    limit = draw(st.integers(1, sum(costs)))
    case = Case(np.array(costs, dtype=float), limit, [draw(st.sampled_from("abc")) for _ in range(n)])
    left = limit
    for source in draw(st.sets(st.sampled_from("abc"))):
        case.at_least[source] = draw(st.integers(0, left))
        left -= int(case.at_least[source])
    for source in draw(st.sets(st.sampled_from("abc"))):
        case.at_most[source] = draw(st.integers(int(case.at_least.get(source, 0)), limit))
    return case


@settings(max_examples=300, deadline=None)
@given(cases(), st.data())
def test_every_prefix_is_within_and_what_does_not_fit_never_fits_again(
    case: Case, data: st.DataObject
) -> None:
    allowance, chosen, gone = case.allowance(), [], set()
    for j in data.draw(st.permutations(range(len(case.costs)))):
        fitting = {i for i in range(len(case.costs)) if allowance.fits(i)}
        assert not fitting & gone
        gone |= set(range(len(case.costs))) - fitting
        if j in fitting:
            assert not allowance.full
            allowance.take(j)
            chosen.append(j)
            assert case.within(tuple(chosen))
            assert not allowance.fits(j)
    assert not any(allowance.fits(i) for i in range(len(case.costs)))


@settings(max_examples=300, deadline=None)
@given(cases(alike=True), st.data())
def test_with_unit_costs_floors_are_met_and_the_sum_is_the_best_of_all(
    case: Case, data: st.DataObject
) -> None:
    n = len(case.costs)
    scores = np.array(data.draw(st.lists(st.integers(-3, 3), min_size=n, max_size=n)))
    chosen = case.allowance().first(np.argsort(-scores, kind="stable").tolist())
    feasible = [
        s for size in range(n + 1) for s in combinations(range(n), size) if case.within(s) and case.met(s)
    ]
    assert case.within(chosen)
    assert case.met(chosen)
    assert len(chosen) == max(map(len, feasible))
    assert scores[chosen].sum() == max(scores[list(s)].sum() for s in feasible if len(s) == len(chosen))


@settings(max_examples=200, deadline=None)
@given(cases(), st.integers(1, 30), st.data())
def test_a_part_spends_the_whole(case: Case, limit: int, data: st.DataObject) -> None:
    n = len(case.costs)
    positions = np.array(data.draw(st.lists(st.integers(0, n - 1), min_size=1, unique=True)))
    whole, alone = case.allowance(), case.allowance()
    part = whole.part(limit, positions)
    chosen = positions[part.first(range(len(positions)))]
    expected, left = [], min(limit, case.limit)
    for j in positions:
        if case.costs[j] <= left and alone.fits(j):
            alone.take(j)
            expected.append(j)
            left -= case.costs[j]
    assert chosen.tolist() == expected
    assert whole.left == pytest.approx(alone.left)
    assert [whole.fits(j) for j in range(n)] == [alone.fits(j) for j in range(n)]


@settings(max_examples=100, deadline=None)
@given(cases(), st.data())
def test_a_copy_is_for_trying(case: Case, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(case.costs))))
    whole = case.allowance()
    part = whole.part(case.limit)
    before = [part.fits(j) for j in order]
    tried = part.copy().first(order)
    assert [part.fits(j) for j in order] == [whole.fits(j) for j in order] == before
    assert part.first(order).tolist() == tried.tolist() == case.allowance().first(order).tolist()


def test_bounds_are_what_is_left_of_them() -> None:
    allowance = Allowance(np.array([2.0, 1, 1, 3]), 6, "aabb", {"a": 2.5}, {"b": 3})
    assert allowance.bounds("a") == (2.5, np.inf)
    assert allowance.bounds("b") == (0, 3)
    assert allowance.bounds("c") == (0, np.inf)
    allowance.take(0)
    allowance.take(2)
    assert allowance.bounds("a") == (0.5, np.inf)
    assert allowance.bounds("b") == (0, 2)
    # 3 is past the ceiling of b, 1 is still owed to a
    assert [allowance.fits(j) for j in range(4)] == [False, True, False, False]


def test_a_source_that_holds_less_gives_all_that_it_has() -> None:
    allowance = Allowance(np.ones(5), 4, "aabbb", {"a": 3})
    assert allowance.first([4, 3, 2, 1, 0]).tolist() == [4, 3, 1, 0]


def test_sums_of_fractions_are_not_cut_short() -> None:
    assert len(Allowance(np.full(10, 0.1), 1).first(range(10))) == 10
    assert len(Allowance(np.full(10, 0.1), 0.95).first(range(10))) == 9


@pytest.mark.parametrize(("costs", "limit", "size"), [([1] * 9, 4, 4), ([2, 4, 6], 8, 2), ([5, 5], 1, 1)])
def test_size_is_about_how_many_fit(costs: list[int], limit: int, size: int) -> None:
    assert Allowance(np.array(costs, dtype=float), limit).size == size


@pytest.mark.parametrize(
    ("bounds", "says"),
    [
        (({"a": 2, "b": 2}, {}), "at_least asks for 4 in all, the budget is 3; lower the floors"),
        (({"a": 2}, {"a": 1}), "source 'a': at_least 2 is more than at_most 1"),
    ],
)
def test_bounds_that_cannot_hold_are_refused(bounds: tuple[dict, dict], says: str) -> None:
    with pytest.raises(InputError, match=says):
        Allowance(np.ones(6), 3, "ababab", *bounds)


#: What a method cannot do without, or would take long with.
PARAMS = {"greedy_law": {"price": 1e-9, "slices": 2}, "policy": {"rounds": 1, "samples": 2}}


@pytest.mark.parametrize("alike", [True, False])
@pytest.mark.parametrize("method", sorted(SELECTORS))
def test_every_selector_keeps_to_it(method: str, alike: bool) -> None:
    rng = np.random.default_rng(0)
    pool = rows(60, "aaabbc")
    costs = np.ones(60) if alike else rng.integers(1, 6, 60).astype(float)
    chosen = select(
        scores(rng.normal(size=(60, 3)), pool),
        "30 tokens",
        method,
        features=points(60, 5),
        parts=parts(60),
        costs={"tokens": costs},
        at_least={"c": 7},
        at_most={"a": "30%"},
        trial=lambda positions: 1 - 0.5 * len(positions) ** -0.5,
        **PARAMS.get(method, {}),
    )
    picks = chosen.indices.tolist()
    spent = {s: costs[[i for i in picks if pool.sources[i] == s]].sum() for s in "abc"}
    assert len(set(picks)) == len(picks) == len(chosen.gains)
    assert spent["a"] <= 9
    assert sum(spent.values()) <= 30
    if alike:
        assert spent["c"] >= 7
        assert sum(spent.values()) == 30
