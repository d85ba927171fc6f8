"""`select`: names, parameters, seeds, and what is written down about them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from selectors_cases import parts, points, rows, scores

from backcast.errors import InputError
from backcast.selectors import FILTERS, SELECTORS, select
from backcast.selectors.method import BY_TRIAL

POOL = scores(np.random.default_rng(0).normal(size=(40, 3)))
X = points(40, 8)
PARTS = parts(40)


#: Those that need no training; the others' own tests give them some.
PLAIN = [name for name in SELECTORS if name not in BY_TRIAL]


@pytest.mark.parametrize(
    "method", [*PLAIN, *(f"{name}|{then}" for name in FILTERS for then in PLAIN if name != then)]
)
def test_one_seed_one_subset(method: str) -> None:
    first, second = (select(POOL, "25%", method, seed=7, features=X, parts=PARTS) for _ in range(2))
    assert len(first) == 10 == len(set(first.indices.tolist()))
    assert first.indices.tolist() == second.indices.tolist()
    np.testing.assert_array_equal(first.gains, second.gains)
    np.testing.assert_array_equal(first.scores, POOL.values.mean(axis=1, dtype=np.float64)[first.indices])
    assert first.rows.rows.tolist() == first.indices.tolist()


def test_seeds_and_methods_draw_apart() -> None:
    picks = {
        tuple(select(rows(40), 10, method, seed=seed, features=X).indices.tolist())
        for method in ("random", "dedup | random")
        for seed in range(5)
    }
    assert len(picks) == 10


def test_why_tells_all_parameters_defaults_included() -> None:
    why = select(
        POOL, "10%", " dedup|facility_location ", 3, features=X, quality=1.5, dedup={"threshold": 0.95}
    ).why
    assert why == {
        "budget": {"asked": "10%", "got": 4},
        "selector": {
            "method": "dedup | facility_location",
            "params": {
                "dedup": {"threshold": 0.95, "whiten": True},
                "facility_location": {"quality": 1.5, "epsilon": 0.0, "neighbours": None},
            },
        },
        "seed": 3,
        "scores": {"method": "grad_cos", "params": {}},
        "origin": {"model": "m"},
    }
    assert select(rows(9), 2, "random").why["selector"]["params"] == {"random": {"balance": None}}


def test_a_stage_takes_its_parameters_by_its_name_or_loose() -> None:
    loose = select(POOL, 10, "facility_location", features=X, quality=0.5)
    named = select(POOL, 10, "facility_location", features=X, facility_location={"quality": 0.5})
    assert loose.why == named.why
    assert loose.indices.tolist() == named.indices.tolist()


@pytest.mark.parametrize(
    ("method", "params", "says"),
    [
        ("best", {}, "'best' is no selector; a method is a selector .random, top_k, "),
        ("", {}, "'' is no selector"),
        ("dedup", {}, "'dedup' is no selector; .* after any filters .dedup, "),
        ("top_k | random", {}, "'top_k' is no filter"),
        ("dedup | | random", {}, "'' is no filter"),
        ("top_k", {"threshold": 0.9}, "top_k: no parameter 'threshold'; it has none"),
        ("random", {"blance": "source"}, "random: no parameter 'blance'; it has balance"),
        ("dedup | top_k", {"dedup": {"cosine": 1}}, "dedup: no parameter 'cosine'; it has threshold"),
        ("dedup | top_k", {"dedup": 0.9}, "dedup=0.9: give its parameters by name"),
        ("dedup | top_k", {"dedup": {"threshold": "high"}}, "dedup: a parameter of the wrong type"),
    ],
)
def test_a_slip_is_named_in_one_line(method: str, params: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says) as refused:
        select(POOL, 5, method, features=X, **params)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("seed", [-1, 0.5, True, "0"])
def test_a_seed_that_is_none_is_refused(seed: Any) -> None:
    with pytest.raises(InputError, match="whole number from 0 up"):
        select(POOL, 5, seed=seed)


def test_the_budget_is_a_share_of_the_pool_before_a_filter() -> None:
    doubled = np.repeat(X[:20], 2, axis=0)
    assert len(select(POOL, "25%", "dedup | top_k", features=doubled)) == 10
    assert len(select(POOL, 30, "dedup | top_k", features=doubled)) == 20
    with pytest.raises(InputError, match="only 40"):
        select(POOL, 41, "dedup | top_k", features=doubled)
