"""quota: the shares, the draws within them, and other selectors within them."""

from __future__ import annotations

from collections import Counter
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from selectors_cases import evidence, points, room, rows, scores, shuffled

from backcast.errors import InputError
from backcast.selectors import Allowance, Evidence, select
from backcast.selectors.methods.facility_location import FacilityLocation
from backcast.selectors.methods.quota import Draw, Quota, shares
from backcast.selectors.methods.random import Random
from backcast.selectors.methods.top_k import TopK


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


Problem = tuple[int, list[float], list[int], list[int]]


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Limit, weights, floors and ceilings, of which the floors fit the limit."""
    g = draw(st.integers(1, 5))
    weights = [draw(st.sampled_from([0.5, 1.0, 2.0, 3.0])) for _ in range(g)]
    most = [draw(st.integers(0, 12)) for _ in range(g)]
    least = [draw(st.integers(0, m)) if draw(st.booleans()) else 0 for m in most]
    return draw(st.integers(max(1, sum(least)), 40)), weights, least, most


@settings(max_examples=300, deadline=None)
@given(problems())
def test_whole_shares_are_the_turns_of_dhondt(problem: Problem) -> None:
    limit, weights, least, most = problem
    found = list(least)
    while sum(found) < limit and any(x < m for x, m in zip(found, most, strict=True)):
        open_ = [g for g, m in enumerate(most) if found[g] < m]
        found[max(open_, key=lambda g: (weights[g] / (1 + found[g]), -g))] += 1
    made = shares(limit, np.array(weights), np.array(least, float), np.array(most, float), whole=True)
    assert made.tolist() == found


@settings(max_examples=300, deadline=None)
@given(problems())
def test_shares_are_filled_like_water(problem: Problem) -> None:
    limit, *arrays = problem
    weights, least, most = (np.array(x, dtype=float) for x in arrays)
    found = shares(limit, weights, least, most)
    assert found.sum() == pytest.approx(min(limit, most.sum()), abs=1e-9)
    assert (found >= least - 1e-9).all()
    assert (found <= most + 1e-9).all()
    free = (found > least + 1e-6) & (found < most - 1e-6)
    levels = (found / weights)[free]
    if len(levels):  # one level; who is below it is full, who is above it has its floor
        np.testing.assert_allclose(levels, levels[0], rtol=1e-9)
        rest = ~free
        assert ((found >= most - 1e-6) | (found / weights >= levels[0] - 1e-6))[rest].all()
        assert ((found <= least + 1e-6) | (found / weights <= levels[0] + 1e-6))[rest].all()


def test_the_draw_is_the_softmax_of_scores_in_their_own_unit() -> None:
    values = np.array([[0.0], [1], [2], [5]]) * 37 + 11
    pool, times, rng = Evidence.of(scores(values)), 6000, generator(1)
    odds = np.exp(values[:, 0] / values.std() / 1.5)
    counts = dict.fromkeys(permutations(range(4), 2), 0)
    for _ in range(times):
        counts[tuple(Draw(1.5).select(pool, room(2, pool), rng).indices.tolist())] += 1
    for (i, j), count in counts.items():
        chance = odds[i] / odds.sum() * odds[j] / (odds.sum() - odds[i])
        assert abs(count / times - chance) < 4.5 * np.sqrt(chance / times)


def test_at_temperature_zero_each_source_gives_its_best() -> None:
    pool = evidence(40)
    chosen = Quota(temperature=0).select(pool, room(10, pool), generator())
    by_source = {s: [i for i in pool.ranked(pool.mean) if pool.rows.sources[i] == s][:5] for s in "ab"}
    assert chosen.indices.tolist() == [i for pair in zip(*by_source.values(), strict=True) for i in pair]
    np.testing.assert_array_equal(chosen.gains, pool.mean[chosen.indices])


def test_a_hot_draw_is_uniform() -> None:
    pool, counts = scores(np.arange(12.0)[:, None]), Counter[int]()
    for seed in range(600):
        counts.update(select(pool, 4, "quota", seed=seed, temperature=1e9).indices.tolist())
    assert max(abs(counts[i] - 200) for i in range(12)) < 4.5 * np.sqrt(600 * (1 / 3) * (2 / 3))


@pytest.mark.parametrize("budget", [1, 5, 7, 11, 20])
def test_what_a_small_source_cannot_fill_goes_to_the_others(budget: int) -> None:
    sources = "a" * 13 + "b" * 2 + "c" * 5
    pool = scores(np.random.default_rng(0).normal(size=(20, 2)), rows(20, sources))
    got = dict.fromkeys("abc", 0)
    for _ in range(budget):
        got[min((s for s in "abc" if got[s] < sources.count(s)), key=lambda s: got[s])] += 1
    for method in ("quota", "quota(source) | top_k", "quota(source) | random"):
        chosen = select(pool, budget, method)
        assert len(chosen) == budget == len(set(chosen.indices.tolist()))
        assert chosen.notes["shares"] == got == dict.fromkeys("abc", 0) | Counter(chosen.rows.sources)
        # the shares are kept after any number of picks
        for k in range(1, budget + 1):
            first = Counter(chosen.rows.sources[:k])
            waiting = [first[s] for s in "abc" if first[s] < got[s]]
            assert max(first.values()) - min(waiting, default=k) <= 1


def test_targets_share_by_weight_and_take_their_own_best() -> None:
    values = np.random.default_rng(1).normal(size=(60, 3))
    chosen = select(scores(values), 12, "quota(target) | top_k", weights={"target 0": 2.0})
    assert chosen.notes["shares"] == {"target 0": 6, "target 1": 3, "target 2": 3}
    left = set(range(60))
    expected = []
    for t, share in enumerate((6, 3, 3)):
        expected.append(sorted(left, key=lambda i: -values[i, t])[:share])
        left -= set(expected[-1])
    served = [[i for i in chosen.indices if i in own] for own in expected]
    assert served == expected
    gains = sorted(values[i, t] for t, own in enumerate(expected) for i in own)
    np.testing.assert_allclose(sorted(chosen.gains), gains, rtol=1e-6)


def test_each_share_is_what_the_selector_makes_of_it_alone() -> None:
    pool = Evidence.of(scores(np.random.default_rng(2).random((30, 2)), rows(30, "abc")), points(30, 5))
    chosen = Quota().over(FacilityLocation()).select(pool, room(12, pool), generator())
    for source in "abc":
        own = np.array([i for i in range(30) if pool.rows.sources[i] == source])
        alone = FacilityLocation().select(pool.take(own), Allowance.of(4, 10), generator())
        assert [i for i in chosen.indices if i in own] == own[alone.indices].tolist()


def test_for_one_seed_a_larger_budget_contains_a_smaller_one() -> None:
    pool = scores(np.random.default_rng(0).normal(size=(40, 2)), rows(40, "aabcc"))
    whole = select(pool, 40, "quota", seed=3).indices.tolist()
    assert sorted(whole) == list(range(40))
    for budget in (1, 11, 25):
        assert select(pool, budget, "quota", seed=3).indices.tolist() == whole[:budget]


@pytest.mark.parametrize("by", ["source", "target"])
@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_the_pool_does_not_matter(by: str, seed: int) -> None:
    pool = evidence(80, seed=seed)
    costs = np.random.default_rng(seed).integers(1, 5, 80).astype(float)
    order = np.random.default_rng(seed).permutation(80)
    for method in (Quota(by), Quota(by).over(Random())):
        mine = method.select(pool, Allowance(costs, 61), generator(seed))
        theirs = method.select(pool.take(order), Allowance(costs[order], 61), generator(seed))
        assert mine.rows.ids == theirs.rows.ids
        np.testing.assert_array_equal(mine.gains, theirs.gains)
    assert shuffled(pool, seed).rows.ids != pool.rows.ids


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["source", "target"]), st.booleans(), st.booleans())
def test_costs_and_bounds_hold_and_nothing_more_fits(seed: int, by: str, alike: bool, bounded: bool) -> None:
    rng = np.random.default_rng(seed)
    pool = Evidence.of(scores(rng.normal(size=(25, 3)), rows(25, "aaabbc")))
    costs = np.ones(25) if alike else rng.integers(1, 7, 25).astype(float)
    limit = int(rng.integers(6, 20))
    bounds = ({"c": 3}, {"a": 4}) if bounded else ({}, {})
    allowance = Allowance(costs, limit, pool.rows.sources, *bounds)
    chosen = Quota(by).over(TopK()).select(pool, allowance, generator()).indices
    spent = {s: costs[[i for i in chosen if pool.rows.sources[i] == s]].sum() for s in "abc"}
    assert len(set(chosen.tolist())) == len(chosen)
    assert sum(spent.values()) <= limit
    assert not any(allowance.fits(i) for i in range(25))
    if bounded:
        assert spent["a"] <= 4
        assert spent["c"] >= 3 or not alike
    if alike and not bounded:
        assert len(chosen) == limit


def test_costs_are_shared_alike() -> None:
    """Cheap examples of one source, dear ones of another: both spend the same."""
    costs = np.where(np.arange(60) % 2, 1.0, 5.0)
    pool = scores(np.random.default_rng(0).normal(size=(60, 1)), rows(60, "ab"))
    chosen = select(pool, "40 tokens", "quota", costs={"tokens": costs})
    assert Counter(chosen.rows.sources) == {"a": 4, "b": 20}


def test_weights_and_clusters_within_are_kept_apart() -> None:
    pool = evidence(40)
    chosen = Quota().over(Labelled()).select(pool, room(10, pool), generator())
    assert chosen.weights is not None
    assert chosen.clusters is not None
    for pick, weight, cluster in zip(chosen.indices, chosen.weights, chosen.clusters, strict=True):
        assert weight == pool.mean[pick]
        assert (cluster >= 2) == (pool.rows.sources[pick] == "b")
    assert chosen.notes == {
        "shares": {"a": 5, "b": 5},
        "within": {"a": [{"told": 5}], "b": [{"told": 5}]},
    }


class Labelled:
    """top_k with weights and two clusters."""

    def select(self, evidence: Evidence, allowance: Allowance, rng: np.random.Generator):
        chosen = TopK().select(evidence, allowance, rng)
        labels = np.arange(len(chosen)) % 2
        fields = {"weights": chosen.gains, "clusters": labels, "notes": {"told": len(chosen)}}
        return type(chosen)(evidence, chosen.indices, chosen.gains, **fields)


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"by": "colour"}, "'colour' is unknown; give 'source' or 'target'"),
        ({"temperature": -1}, "from 0 up"),
    ],
)
def test_a_parameter_out_of_range_is_refused(params: dict[str, object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        select(scores(np.ones((4, 1))), 2, "quota", **params)


def test_who_needs_scores_says_so() -> None:
    for method in ("quota", "quota(target) | random"):
        with pytest.raises(InputError, match=r"quota.* needs scores"):
            select(rows(5), 2, method)
    assert len(select(rows(6), 4, "quota(source) | random")) == 4
