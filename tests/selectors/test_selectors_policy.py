"""policy: the gradient against enumeration, its baselines, and what is learnt."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from selectors_cases import evidence, points, room, rows, scores, shuffled

from backcast.errors import InputError
from backcast.selectors import Allowance, Evidence, Selection, select
from backcast.selectors.methods.policy import BASELINES, Drawn, Past, Policy, estimates, walk


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


class Tiny:
    """A pool small enough that every order can be drawn, and a reward with no structure."""

    def __init__(
        self, seed: int, n: int = 5, k: int = 2, classes: int | None = None, dear: bool = False
    ) -> None:
        rng = np.random.default_rng(seed)
        self.n, self.k = n, k
        self.theta, self.scores = rng.normal(size=n), rng.normal(size=n)
        self.classes = np.arange(n) if classes is None else np.arange(n) % classes
        self.costs = rng.integers(1, 4, n).astype(float) if dear else np.ones(n)
        self.sources = ["ab"[i % 2] for i in range(n)]
        self.reward = {
            s: float(rng.normal()) + 3 for size in range(n + 1) for s in combinations(range(n), size)
        }
        orders = [np.array(order) for order in permutations(range(n))]
        self.all = [(order, self.drawn(order)) for order in orders]

    def allowance(self) -> Allowance:
        dear = self.costs.max() > 1
        return Allowance(self.costs, self.k, self.sources, {"a": 1} if dear else {})

    def drawn(self, order: np.ndarray) -> Drawn:
        ranks = np.arange(self.n)
        return walk(order, ranks, self.theta, self.scores, self.classes, self.allowance())

    def chance(self, order: np.ndarray, theta: np.ndarray) -> float:
        """Of this order, straight from the definition."""
        odds = np.exp(theta[order])
        return float(np.prod([odds[t] / odds[t:].sum() for t in range(self.n)]))

    def value(self, drawn: Drawn) -> float:
        return self.reward[tuple(sorted(drawn.subset.tolist()))]

    def expected(self, theta: np.ndarray) -> float:
        """The reward, over all orders."""
        return sum(self.chance(order, theta) * self.value(drawn) for order, drawn in self.all)

    def gradient(self) -> np.ndarray:
        """Of the expected reward in the classes' logits, by central differences."""
        step, found = 1e-5, []
        for c in range(self.classes.max() + 1):
            up, down = (self.theta + sign * step * (self.classes == c) for sign in (1, -1))
            found.append((self.expected(up) - self.expected(down)) / (2 * step))
        return np.array(found)

    def outcomes(self) -> list[tuple[float, Drawn]]:
        """What can be drawn, and the chance of each."""
        found: dict[tuple[bytes, ...], tuple[float, Drawn]] = {}
        for order, drawn in self.all:
            key = (drawn.slope.tobytes(), drawn.subset.tobytes(), np.float64(drawn.pull).tobytes())
            chance, _ = found.get(key, (0.0, drawn))
            found[key] = chance + self.chance(order, self.theta), drawn
        return list(found.values())


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([None, 2, 3]), st.booleans())
def test_the_gradient_is_that_of_the_expected_reward(seed: int, classes: int | None, dear: bool) -> None:
    tiny = Tiny(seed, n=4 if dear else 5, k=4 if dear else 2, classes=classes, dear=dear)
    chances, draws = zip(*tiny.outcomes(), strict=True)
    assert sum(chances) == pytest.approx(1, abs=1e-12)
    estimate = sum(c * tiny.value(d) * d.slope for c, d in zip(chances, draws, strict=True))
    np.testing.assert_allclose(estimate, tiny.gradient(), atol=1e-8)
    # what the baselines add has no expectation
    for nothing in (
        sum(c * d.slope for c, d in zip(chances, draws, strict=True)),
        sum(c * d.pull for c, d in zip(chances, draws, strict=True)),
        sum(c * (d.pull * d.slope - d.covariance) for c, d in zip(chances, draws, strict=True)),
    ):
        np.testing.assert_allclose(nothing, 0, atol=1e-12)


@pytest.mark.parametrize("past", [Past(), Past(average=2.5, squares=2.0, products=-1.3)])
@pytest.mark.parametrize("samples", [2, 3])
def test_no_baseline_changes_the_expectation(samples: int, past: Past) -> None:
    tiny = Tiny(3, n=4, k=2)
    total = {name: np.zeros(4) for name in BASELINES}
    for joint in product(tiny.outcomes(), repeat=samples):
        chances, draws = zip(*joint, strict=True)
        rewards = np.array([tiny.value(d) for d in draws])
        for name, terms in estimates(rewards, list(draws), past).items():
            total[name] += np.prod(chances) * terms.mean(axis=0)
    for name in BASELINES:
        np.testing.assert_allclose(total[name], tiny.gradient(), atol=1e-8, err_msg=name)


def learner(values: np.ndarray, known: bool = False, offset: float = 0.0) -> Evidence:
    """A pool whose subsets are worth the sum of their rows' values; with ``known`` these are the scores."""
    pool = scores(values[:, None] if known else np.zeros((len(values), 1)))
    return Evidence.of(pool, trial=lambda chosen: float(values[chosen].sum()) + offset)


@pytest.mark.parametrize("baseline", ["leave_one_out", "moving", "linear"])
@pytest.mark.parametrize("seed", range(3))
def test_an_additive_reward_is_learnt_to_its_best_subset(baseline: str, seed: int) -> None:
    values = np.random.default_rng(seed).permutation(np.linspace(-1, 1, 8))
    pool = learner(values, offset=5)
    method = Policy(rounds=60, samples=12, baseline=baseline, by="row")
    chosen = method.select(pool, room(3, pool), generator(seed))
    best = max(combinations(range(8), 3), key=lambda s: values[list(s)].sum())
    assert sorted(chosen.indices.tolist()) == list(best)
    rewards = [told["reward"] for told in chosen.notes["rounds"]]
    assert np.mean(rewards[-10:]) > np.mean(rewards[:3]) + 1


def variances(chosen: Selection) -> dict[str, float]:
    """Of each baseline, the mean over the rounds."""
    told = chosen.notes["rounds"]
    return {name: float(np.mean([t["gradient"][name]["variance"] for t in told])) for name in BASELINES}


def test_what_each_baseline_saves_is_told() -> None:
    values = np.random.default_rng(0).normal(size=40)
    pool = learner(values, known=True, offset=10)
    found = [
        variances(Policy(rounds=8, baseline=name).select(pool, room(10, pool), generator(1)))
        for name in BASELINES
    ]
    for each in found:
        assert each["linear"] < 0.5 * each["leave_one_out"] < 0.1 * each["none"]
        assert each["moving"] < 0.3 * each["none"]


def test_the_variance_told_is_that_of_the_estimate() -> None:
    """Against the spread of the estimates themselves, of many first rounds."""
    pool, told, steps = learner(np.random.default_rng(0).normal(size=12), known=True, offset=2), [], []
    for seed in range(300):
        first = Policy(rounds=1, samples=6, baseline="none", buckets=3).select(
            pool, room(4, pool), generator(seed)
        )
        told.append(first.notes["rounds"][0]["gradient"]["none"])
        steps.append(told[-1]["norm"] ** 2)
    # E‖ĝ‖² = ‖∇‖² + variance, and ‖∇‖² is small beside it
    assert np.mean([t["variance"] for t in told]) == pytest.approx(np.mean(steps), rel=0.15)


@pytest.mark.parametrize(("by", "good"), [("source", "b"), ("cluster", 1), ("score", 2)])
def test_classes_are_learnt_whatever_the_scores_say(by: str, good: object) -> None:
    """The scores mislead: what helps are the rows of one source, one cluster, or a middling score."""
    n = 90
    pool = rows(n, "abc")
    ahead = np.repeat(np.arange(3.0), n // 3)[:, None]
    x = np.eye(3)[np.arange(n) % 3] + 0.01 * points(n, 3)
    inside = {
        "source": np.array(pool.sources) == good,
        "cluster": np.arange(n) % 3 == good,
        "score": np.repeat(np.arange(3), n // 3) == 1,
    }[by]
    seen = Evidence.of(scores(ahead, pool), x, trial=lambda chosen: float(inside[chosen].mean()))
    chosen = Policy(rounds=25, by=by, buckets=3).select(seen, room(12, seen), generator(0))
    assert inside[chosen.indices].mean() >= 0.9
    assert chosen.notes["trials"] == 200


@pytest.mark.parametrize("by", ["row", "score", "source", "cluster"])
@pytest.mark.parametrize("seed", range(2))
def test_one_seed_one_subset_in_any_order_of_the_pool(by: str, seed: int) -> None:
    bare = evidence(40, seed=seed)
    pool = replace(bare, trial=lambda chosen: float(bare.best[np.sort(chosen)].sum()))
    method = Policy(rounds=3, samples=4, by=by, buckets=4)
    mine, theirs, other = (
        method.select(p, room(9, p), generator(s))
        for p, s in ((pool, 5), (shuffled(pool, seed), 5), (pool, 6))
    )
    assert mine.rows.ids == theirs.rows.ids
    np.testing.assert_array_equal(mine.gains, theirs.gains)
    assert mine.notes == theirs.notes
    assert mine.notes != other.notes


def test_every_subset_tried_keeps_the_costs_and_bounds() -> None:
    costs = np.random.default_rng(0).integers(1, 6, 30).astype(float)
    tried: list[np.ndarray] = []
    pool = rows(30, "abc")

    def trial(chosen: np.ndarray) -> float:
        tried.append(chosen)
        return len(chosen)

    seen = Evidence.of(scores(np.random.default_rng(1).normal(size=(30, 2)), pool), trial=trial)
    allowance = Allowance(costs, 40, pool.sources, {"b": 10}, {"a": 12})
    last, best = (
        Policy(rounds=2, samples=5, take=take).select(seen, allowance.copy(), generator(0)).indices
        for take in ("probable", "best")
    )
    assert len(tried) == 20
    assert sorted(best) == sorted(max(tried, key=len))
    for chosen in (*tried, last):
        spent = {s: costs[[i for i in chosen if pool.sources[i] == s]].sum() for s in "abc"}
        assert sum(spent.values()) <= 40
        assert spent["a"] <= 12
        assert len(set(chosen.tolist())) == len(chosen)


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"baseline": "best"}, "baseline='best' is none of none, leave_one_out, moving, linear"),
        ({"by": "colour"}, "by='colour' is none of row, score, source, cluster"),
        ({"take": "last"}, "take='last' is none of probable, best"),
        ({"rounds": 0}, "rounds=0 must be a whole number from 1 up"),
        ({"samples": 1}, "samples=1 must be a whole number from 2 up"),
        ({"rate": 0}, "rate=0 must be a number above zero"),
    ],
)
def test_a_parameter_out_of_range_is_refused(params: dict[str, object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        select(scores(np.ones((4, 1))), 2, "policy", trial=len, **params)


def test_equal_rewards_teach_nothing() -> None:
    for baseline in BASELINES:
        pool = Evidence.of(scores(np.arange(20.0)[:, None]), trial=lambda chosen: 0.7)
        chosen = Policy(rounds=3, samples=3, baseline=baseline, take="probable").select(
            pool, room(5, pool), generator(0)
        )
        assert chosen.notes["logits"] == [0] * 10
        assert chosen.indices.tolist() == [19, 18, 17, 16, 15]


def test_a_policy_that_has_run_wild_is_still_one() -> None:
    """Steps so large that most odds vanish: all stays finite, and the draws go on."""
    values = np.random.default_rng(0).normal(size=30)
    pool = learner(values, known=True, offset=100)
    method = Policy(rounds=5, rate=500.0, baseline="none", by="row")
    chosen = method.select(pool, room(20, pool), generator(0))
    assert np.isfinite(chosen.notes["logits"]).all()
    assert np.isfinite(
        [t["gradient"][name]["norm"] for t in chosen.notes["rounds"] for name in BASELINES]
    ).all()
    assert len(set(chosen.indices.tolist())) == 20


def test_what_it_needs_is_said() -> None:
    with pytest.raises(InputError, match="policy needs a trial: give trial="):
        select(scores(np.ones((4, 1))), 2, "policy")
    with pytest.raises(InputError, match="the trial gave nan for 2 examples"):
        select(scores(np.ones((4, 1))), 2, "policy", trial=lambda chosen: float("nan"))
    with pytest.raises(InputError, match="needs scores"):
        select(rows(4), 2, "policy", trial=len)
    with pytest.raises(InputError, match="needs features"):
        select(rows(4), 2, "policy", trial=len, by="cluster")
    assert len(select(rows(4), 2, "policy", trial=len, by="source")) == 2
