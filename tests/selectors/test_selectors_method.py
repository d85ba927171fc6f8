"""The grammar of methods: what is written is what is read, and a slip is named in one line."""

from __future__ import annotations

from keyword import iskeyword
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backcast.errors import InputError
from backcast.selectors import FILTERS, SELECTORS, Method
from backcast.selectors.method import Call, parse_calls
from backcast.selectors.methods import DIVIDERS
from backcast.selectors.methods.facility_location import FacilityLocation
from backcast.selectors.methods.quota import Divided, Quota

WORDS = st.from_regex(r"[a-z_][a-z0-9_]{0,6}", fullmatch=True).filter(lambda word: not iskeyword(word))
LITERALS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-99, 99),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text("ab |,='", max_size=5),
    st.lists(st.integers(0, 9), max_size=3),
)


@st.composite
def calls(draw: st.DrawFn) -> list[Call]:
    names = draw(st.lists(WORDS, min_size=1, max_size=4, unique=True))
    return [
        Call(
            name,
            tuple(draw(st.lists(LITERALS, max_size=2))),
            draw(st.dictionaries(WORDS, LITERALS, max_size=2)),
        )
        for name in names
    ]


def written(call: Call, space: str) -> str:
    inside = [
        *map(repr, call.values),
        *(f"{name}{space}={space}{value!r}" for name, value in call.named.items()),
    ]
    return f"{call.name}{space}({f',{space}'.join(inside)})" if inside else call.name


@settings(max_examples=300, deadline=None)
@given(calls(), st.sampled_from(["", " ", "  "]))
def test_what_is_written_is_what_is_read(stages: list[Call], space: str) -> None:
    assert parse_calls(f"{space}|{space}".join(written(call, space) for call in stages)) == stages


@pytest.mark.parametrize(
    "method",
    [*SELECTORS, "dedup | random", "quota | top_k", "dedup(0.9) | middle(0.1, 0.5) | quota(source) | top_k"],
)
def test_a_method_is_made_again_from_its_name_and_parameters(method: str) -> None:
    required = {"price": 0.5} if method == "greedy_law" else {}
    made = Method.parse(method, required)
    again = Method.parse(made.name, made.params)
    assert again == made
    text = " | ".join(
        f"{name}({', '.join(f'{key}={value!r}' for key, value in params.items())})"
        for name, params in made.params.items()
    )
    assert Method.parse(text) == made


def test_a_bare_word_is_a_string() -> None:
    assert parse_calls("quota(source, temperature=hot)") == [
        Call("quota", ("source",), {"temperature": "hot"})
    ]
    assert Method.parse("quota(target)").selector == Quota("target")


def test_what_divides_stands_around_the_selector() -> None:
    made = Method.parse("dedup | quota(source) | facility_location(quality=1)")
    assert made.name == "dedup | quota | facility_location"
    assert [*made.filters] == ["dedup"]
    assert isinstance(made.selector, Divided)
    assert made.selector.selector == FacilityLocation(quality=1)
    assert isinstance(Method.parse("quota(source)").selector, Quota)


def test_parameters_by_name_overrule_what_is_written() -> None:
    made = Method.parse(
        "dedup(0.9) | quota(target, 2) | random", {"balance": "source", "quota": {"by": "source"}}
    )
    assert made.params["quota"] == {"by": "source", "temperature": 2}
    assert made.params["random"] == {"balance": "source"}
    assert made.params["dedup"]["threshold"] == 0.9


def test_names_are_unambiguous_where_they_stand() -> None:
    assert not set(FILTERS) & set(DIVIDERS)
    assert set(DIVIDERS) <= set(SELECTORS)


@pytest.mark.parametrize(
    ("method", "params", "says"),
    [
        ("", {}, "'' is no selector"),
        ("best", {}, "'best' is no selector; a method is a selector .random, top_k"),
        ("top_k |", {}, "'top_k' is no filter"),
        ("dedup || top_k", {}, "'' is no filter"),
        ("top_k random", {}, "'top_k random' is not a stage; write NAME or NAME.PARAMETER=VALUE."),
        ("top_k(", {}, "is not a stage"),
        ("top_k)", {}, "is not a stage"),
        ("random(1)(2)", {}, "is not a stage"),
        ("random(*[1])", {}, "is not a stage"),
        ("random(balance=print())", {}, "is not a stage"),
        ("random({[1]: 2})", {}, "is not a stage"),
        ("random(balance=source, balance=source)", {}, "is not a stage"),
        (
            "random(source, balance=source)",
            {},
            "random: 'balance' is there twice, by its place and by its name",
        ),
        ("random(source, 1)", {}, "random: 2 parameters; it has balance"),
        ("top_k(1)", {}, "top_k: 1 parameters; it has none"),
        ("random(blance=source)", {}, "random: no parameter 'blance'; it has balance"),
        ("dedup | dedup | top_k", {}, "'dedup' is there twice; once is enough"),
        ("quota(source) | dedup | top_k", {}, "filters .dedup. go before what divides the budget"),
        ("dedup(high) | top_k", {}, "dedup: a parameter of the wrong type"),
        ("dedup | top_k", {"dedup": 0.9}, "dedup=0.9: give its parameters by name"),
        ("top_k\n| random", {}, "'top_k' is no filter"),
    ],
)
def test_a_slip_is_named_in_one_line(method: str, params: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says) as refused:
        Method.parse(method, params)
    assert "\n" not in str(refused.value)
