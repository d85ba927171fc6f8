"""What selects by the parts of a score, against the definitions in exact fractions, row by row."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from selectors_cases import RNG, evidence, parts, points, room, rows, scores, shuffled

from backcast.errors import InputError
from backcast.selectors import FILTERS, SELECTORS, Evidence, Method, select
from backcast.selectors.filters.image_needed import ImageNeeded
from backcast.selectors.filters.one_sided_harm import OneSidedHarm
from backcast.selectors.method import BY_TRIAL
from backcast.selectors.methods.modality_balance import ModalityBalance
from backcast.selectors.modality import driven, shares

NAN = float("nan")


def split(image: list[float], text: list[float]) -> dict[str, np.ndarray]:
    return {"image": np.array(image, dtype=float), "text": np.array(text, dtype=float)}


@st.composite
def pools(draw: st.DrawFn) -> Evidence:
    """Few distinct parts, scores and ids, so that ties, zeros and shares on a border are everywhere; some rows without
    a split."""
    n = draw(st.integers(1, 14))
    part = arrays(np.float64, n, elements=st.sampled_from([*range(-9, 10), NAN]))
    values = draw(arrays(np.int8, (n, 2), elements=st.integers(-2, 2)))
    ids = [str(i) for i in draw(arrays(np.int8, n, elements=st.integers(0, 5)))]
    return Evidence.of(scores(values, rows(n, ids=ids)), parts={"image": draw(part), "text": draw(part)})


def exact(pool: Evidence) -> list[tuple[Fraction, Fraction] | None]:
    """Each row's parts; None where it has no split."""
    assert pool.parts is not None
    both = zip(pool.parts["image"], pool.parts["text"], strict=True)
    return [None if np.isnan(i + t) else (Fraction(i), Fraction(t)) for i, t in both]


def share(pair: tuple[Fraction, Fraction]) -> Fraction:
    """Of the image; 1/2 where there is nothing to share."""
    image, text = map(abs, pair)
    return image / (image + text) if image + text else Fraction(1, 2)


def naive_driven(pair: tuple[Fraction, Fraction] | None) -> str:
    if pair is None or Fraction(1, 3) < share(pair) < Fraction(2, 3):
        return "mixed"
    return "image" if share(pair) > Fraction(1, 2) else "text"


# ------------------------------------------------------------------ which modality drives a row


@settings(deadline=None)
@given(pools())
def test_driven_is_its_definition(pool: Evidence) -> None:
    assert pool.parts is not None
    assert driven(pool.parts).tolist() == [naive_driven(pair) for pair in exact(pool)]


def test_driven_on_the_borders() -> None:
    """Exactly two thirds are enough; signs do not matter; a row without an image is text-driven."""
    found = driven(split([2, -2, 1.99, -1, 0, 0, NAN, 0], [1, 1, -1, 2, 0.1, 0, 5, NAN]))
    assert found.tolist() == ["image", "image", "mixed", "text", "text", "mixed", "mixed", "mixed"]


def test_a_margin_sets_the_border() -> None:
    halves = split([9, 3, 1], [1, 1, 9])
    assert driven(halves, 0.9).tolist() == ["image", "mixed", "text"]
    assert driven(halves, 1).tolist() == ["mixed"] * 3
    assert driven(split([1, 0], [0, 1]), 1).tolist() == ["image", "text"]


@pytest.mark.parametrize("margin", [0.5, 0, 1.01, NAN])
def test_a_margin_out_of_range_is_refused(margin: float) -> None:
    with pytest.raises(InputError, match=r"margin=.* above 1/2 and at most 1"):
        driven(split([1], [1]), margin)


def test_shares_add_up_to_one_where_there_is_anything_to_share() -> None:
    found = shares(split([3, -1, 0, NAN], [-1, 0, 0, 1]))
    np.testing.assert_array_equal(found["image"], [0.75, 1, 0, NAN])
    np.testing.assert_array_equal(found["text"], [0.25, 0, 0, NAN])


# ------------------------------------------------------------------ the filters


@settings(deadline=None)
@given(pools(), st.sampled_from([Fraction(1, 10), Fraction(1, 4), Fraction(1, 2), Fraction(1)]))
def test_image_needed_drops_what_it_says(pool: Evidence, threshold: Fraction) -> None:
    dropped = ImageNeeded(float(threshold)).drop(pool)
    expected = [
        k
        for k, pair in enumerate(exact(pool))
        if pair is not None and (pair == (0, 0) or share(pair) < threshold)
    ]
    assert {reason: found.tolist() for reason, found in dropped.items()} == {
        "image contributes nothing": expected
    }


def test_an_image_that_changes_no_score_is_not_needed() -> None:
    """Two-player Shapley of v(nothing), v(image), v(text), v(both), in numbers that add up exactly."""
    games = np.array(
        [
            [0, 0, 8, 8],  # the image changes nothing, alone or beside the text
            [2, 2, -6, -6],
            [0, 8, 0, 8],  # the text changes nothing
            [0, 0, 0, 8],  # either alone is worthless
            [0, 4, 4, 4],  # either alone is enough
        ]
    )
    nothing, image, text, both = games.T
    found = split((image - nothing + both - text) / 2, (text - nothing + both - image) / 2)
    chosen = select(scores(np.ones((5, 1))), 5, "image_needed | top_k", parts=found)
    assert sorted(chosen.indices.tolist()) == [2, 3, 4]
    (dropped,) = chosen.dropped
    assert (dropped.filter, dropped.reason, dropped.indices.tolist()) == (
        "image_needed",
        "image contributes nothing",
        [0, 1],
    )


@settings(deadline=None)
@given(pools())
def test_one_sided_harm_drops_what_it_says(pool: Evidence) -> None:
    expected: dict[str, list[int]] = {"image": [], "text": []}
    for k, pair in enumerate(exact(pool)):
        if pair is not None and sum(pair) < 0:
            negative = [name for name, part in zip(("image", "text"), pair, strict=True) if part < 0]
            if len(negative) == 1:
                expected[negative[0]].append(k)
    assert {name: found.tolist() for name, found in OneSidedHarm().drop(pool).items()} == expected


def test_one_sided_harm_names_the_modality() -> None:
    #              image  text   both   image  outweighed  neither  no split
    found = split([-2.0, 1.0, -1.0, -0.1, -1.0, 1.0, NAN], [1.0, -3, -1, 0, 2, 0, -1])
    dropped = OneSidedHarm().drop(Evidence.of(rows(7), parts=found))
    assert {name: positions.tolist() for name, positions in dropped.items()} == {"image": [0, 3], "text": [1]}


@pytest.mark.parametrize("threshold", [0, -0.5, 1.01, NAN])
def test_a_threshold_out_of_range_is_refused(threshold: float) -> None:
    with pytest.raises(InputError, match="image_needed: threshold="):
        select(rows(4), 1, "image_needed | random", parts=parts(4), image_needed={"threshold": threshold})


def test_filters_in_a_row_tell_what_each_of_them_dropped() -> None:
    """Positions are the pool's, and a later filter sees only what an earlier one left."""
    n = 60
    x = np.repeat(points(n // 3, 32), 3, axis=0)
    seen, found = scores(np.random.default_rng(5).normal(size=(n, 2))), parts(n)
    chosen = select(seen, n, "dedup | one_sided_harm | image_needed | top_k", features=x, parts=found)

    means = seen.values.mean(axis=1, dtype=np.float64).reshape(-1, 3)
    unique = [3 * group + int(k) for group, k in enumerate(means.argmax(axis=1))]
    pairs = exact(Evidence.of(rows(n), parts=found))
    expected: dict[tuple[str, str], list[int]] = {
        ("dedup", "near-duplicate"): sorted(set(range(n)) - set(unique)),
        ("one_sided_harm", "image"): [],
        ("one_sided_harm", "text"): [],
        ("image_needed", "image contributes nothing"): [],
    }
    left = []
    for k in unique:
        pair = pairs[k]
        if pair is not None and sum(pair) < 0 and min(pair) < 0 <= max(pair):
            expected["one_sided_harm", "image" if pair[0] < 0 else "text"].append(k)
        elif pair is not None and (pair == (0, 0) or share(pair) < Fraction(0.1)):
            expected["image_needed", "image contributes nothing"].append(k)
        else:
            left.append(k)
    assert all(expected.values())
    assert {(d.filter, d.reason): d.indices.tolist() for d in chosen.dropped} == expected
    assert sorted(chosen.indices.tolist()) == left


def test_filters_that_leave_nothing_are_refused() -> None:
    with pytest.raises(InputError, match="image_needed: drops all of the 3 examples that it was given"):
        select(rows(3), 1, "one_sided_harm | image_needed | random", parts=split([0, 0, 0], [1, 2, 3]))


# ------------------------------------------------------------------ the selector


def naive_balance(pool: Evidence, budget: int) -> list[int]:
    def key(i: int) -> tuple[float, str, int]:
        return -float(pool.mean[i]), pool.rows.ids[i], int(pool.rows.rows[i])

    left: dict[str, list[int]] = {"image": [], "text": [], "mixed": []}
    for k, pair in enumerate(exact(pool)):
        left[naive_driven(pair)].append(k)
    chosen: list[int] = []
    while len(chosen) < budget:
        for name in ("image", "text", "mixed"):
            if left[name] and len(chosen) < budget:
                chosen.append(min(left[name], key=key))
                left[name].remove(chosen[-1])
    return chosen


@settings(deadline=None)
@given(pools(), st.data())
def test_modality_balance_is_the_game_it_says(pool: Evidence, data: st.DataObject) -> None:
    budget = data.draw(st.integers(1, len(pool)))
    chosen = ModalityBalance().select(pool, room(budget, pool), RNG)
    assert chosen.indices.tolist() == naive_balance(pool, budget)
    np.testing.assert_array_equal(chosen.gains, pool.mean[chosen.indices])


def test_classes_get_equal_shares_as_long_as_they_last() -> None:
    """However high the scores of one class; 20 image-driven rows, 10 text-driven and 3 mixed."""
    found = split([9] * 20 + [1] * 13, [1] * 20 + [-9] * 10 + [1] * 3)
    seen = scores(np.r_[np.full(20, 5.0), np.arange(13)][:, None] - 7)
    counts = [
        np.bincount(select(seen, n, "modality_balance", parts=found).indices >= 20, minlength=2)[0]
        for n in (1, 6, 9, 15, 25, 33)
    ]
    assert counts == [1, 2, 3, 6, 12, 20]


def test_the_order_of_the_pool_does_not_matter() -> None:
    pool = evidence(50)
    other = shuffled(pool, 1)
    mine, theirs = (ModalityBalance().select(p, room(20, p), RNG) for p in (pool, other))
    assert mine.rows.rows.tolist() == theirs.rows.rows.tolist()
    for stage in (ImageNeeded(), OneSidedHarm()):
        for ours, shuffles in zip(stage.drop(pool).values(), stage.drop(other).values(), strict=True):
            assert {pool.rows.ids[i] for i in ours} == {other.rows.ids[i] for i in shuffles} != set()


# ------------------------------------------------------------------ the parts as evidence


@pytest.mark.parametrize(
    "method", [*sorted(SELECTORS.keys() - BY_TRIAL), *(f"{name} | random" for name in FILTERS)]
)
def test_who_needs_parts_says_so(method: str) -> None:
    seen, features = scores(np.ones((5, 1))), points(5, 3)
    if Method.parse(method).needs_parts:
        with pytest.raises(InputError, match=r"needs parts: give parts=.*'backcast split'"):
            select(seen, 2, method, features=features)
    else:
        assert len(select(seen, 2, method, features=features)) >= 1


def test_parts_of_an_object_and_of_a_mapping_are_alike() -> None:
    pool, found = rows(8), parts(8)
    for given_parts in (
        SimpleNamespace(rows=pool, parts=found),
        SimpleNamespace(ids=pool.ids, parts=found),
        found,
    ):
        seen = Evidence.of(pool, parts=given_parts).parts
        assert seen is not None
        assert list(seen) == ["image", "text", "interaction"]
        for name, part in seen.items():
            np.testing.assert_array_equal(part, found[name])


@pytest.mark.parametrize("ids", [rows(8).ids[:7], rows(8).ids[::-1]])
def test_parts_of_other_examples_are_refused(ids: tuple[str, ...]) -> None:
    n = len(ids)
    with pytest.raises(
        InputError, match=rf"parts are those of {n} other examples than the 8 .*another order"
    ):
        Evidence.of(rows(8), parts=SimpleNamespace(ids=ids, parts=parts(n)))


@pytest.mark.parametrize(
    ("given_parts", "says"),
    [
        ({}, "parts: none; give 'image', 'text'"),
        ({"image": np.ones(5)}, "parts: 'image'; give 'image', 'text'"),
        ({**parts(5), "audio": np.ones(5)}, "'audio'; give 'image', 'text' and, if known, 'interaction'"),
        (parts(4), r"image of shape \(4,\) does not fit a pool of 5"),
        (split([1] * 5, [1] * 4), r"text of shape \(4,\) does not fit"),
        ({"image": np.ones((5, 2)), "text": np.ones(5)}, r"image of shape \(5, 2\)"),
        (split([1] * 5, [1, 1, 1, -np.inf, 1]), "text of row 3 is infinite; give NaN"),
        ({"image": ["a"] * 5, "text": [1] * 5}, "not arrays of numbers"),
    ],
)
def test_broken_parts_are_refused_in_one_line(given_parts: Mapping[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says) as refused:
        Evidence.of(rows(5), parts=given_parts)
    assert "\n" not in str(refused.value)
