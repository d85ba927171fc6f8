"""A distribution over subsets that learns from training on some of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from backcast.errors import InputError
from backcast.manifests.manifest import number
from backcast.progress import progress
from backcast.selectors.allowance import Allowance
from backcast.selectors.draws import gumbel, spread
from backcast.selectors.evidence import Evidence
from backcast.selectors.selection import Selection
from backcast.vectors.kmeans import kmeans

BASELINES = ("none", "leave_one_out", "moving", "linear")

#: What an earlier average weighs in the moving one.
MEMORY = 0.7

#: How far θ may lie below the highest: past this, exp θ would be zero.
WIDEST = 600.0

#: Below this, relative to the largest, a spread of the rewards is one of rounding.
ROUNDING = 1e-12

#: How many logits the notes tell.
TOLD = 1000

#: What can share a logit.
CLASSES = ("row", "score", "source", "cluster")

#: What is chosen in the end.
TAKES = ("probable", "best")


@dataclass(frozen=True)
class Policy:
    """REINFORCE over subsets: any metric of the trained model teaches which examples to take.

    Subsets are drawn one example after the other, among those that are left, with probabilities in proportion to
    exp(θ_i) (Plackett 1975; by Gumbel noise as in Kool et al. 2019, "Stochastic beams and where to find them"), and
    what does not fit the allowance is skipped::

        ln P(i_1, …, i_T) = Σ_t [θ_{i_t} − ln Σ_{l not before t} exp θ_l],     θ_i = s_i / (σ · temperature) + φ_{c(i)}

    T is where the last example was taken. So the budget holds exactly, in any unit and with any bounds, and the
    probability of what was drawn is exact; with independent draws one of the two would not be. s is the best score, σ
    its standard deviation. φ is learnt, from zero: one logit for each *class* of examples. There are rounds × samples
    rewards to learn from, tens as a rule, and each logit needs some of them to itself: so not one for each example,
    unless there are few.

    A round draws M subsets, trains on each for its reward R_m = trial(subset), and makes the unbiased estimate ĝ of
    the gradient of the expected reward, whatever the baseline b_m::

        ĝ = (1/M) Σ_m (R_m − b_m) ∇ ln P_m

    ``none`` b = 0. ``leave_one_out`` the mean reward of the round's others (Kool, van Hoof & Welling 2019, "Buy 4
    REINFORCE samples, get a baseline for free!"). ``moving`` an average of the earlier rounds'; in the first, which has
    none, leave_one_out. ``linear`` besides explains the reward by the scores of what was drawn: b_m = a + c h_m, where
    h_m = Σ_t (s_{i_t} − E_t[s]) sums the draws' scores, each less its expectation; h ∇ ln P has the expectation
    Σ_t Cov_t(∇ ln P, s), which is added back, c times, so that ĝ stays unbiased (the covariances of different draws
    vanish, as E_t of either is zero). a and c come from the other samples, and c from the earlier rounds too.

    Then φ ← φ + rate · ĝ / (std of all rewards · rms of ∇ ln P): each logit moves by about ``rate`` times the
    correlation of the reward with its ∇ ln P, whatever the metric's unit and the budget. In the end the examples of the
    highest θ are taken, or those of the best subset that was tried, by θ. A pick's gain is its θ.

    Ties by mean score, then by content id. O(n log n) a subset besides the trials. `Selection.notes` tell of every
    round the mean and best reward, and for *every* baseline, from the same samples, the norm of ĝ and its variance
    Σ_f Var(ĝ_f), estimated from the spread of the M terms as if these were independent.

    Args:
        rounds, samples: the trial is called rounds × samples times.
        rate: the step.
        baseline: one of `BASELINES`.
        by: what a class is: ``"score"`` the rows of like rank by best score, ``"source"``, ``"cluster"`` k-means of the
            features, or ``"row"``, each a class of its own.
        buckets: how many classes by score and by cluster.
        temperature: of the draws before anything is learnt.
        take: ``"probable"``, the most probable examples; they are no typical draw: within a class they are those of the
            highest scores, as alike as those of `TopK`. Or ``"best"``, the subset tried with the highest reward, of
            which that reward is an optimistic estimate.

    Raises:
        InputError: no trial, or one that gives no finite number; by score or by cluster without scores or features.

    Source: Williams 1992, "Simple statistical gradient-following algorithms for connectionist reinforcement learning".
    """

    rounds: int = 10
    samples: int = 8
    rate: float = 0.5
    baseline: str = "leave_one_out"
    by: str = "score"
    buckets: int = 10
    temperature: float = 1.0
    take: str = "best"

    def __post_init__(self) -> None:
        for name, known in (("baseline", BASELINES), ("by", CLASSES), ("take", TAKES)):
            if getattr(self, name) not in known:
                raise InputError(f"policy: {name}={getattr(self, name)!r} is none of {', '.join(known)}")
        for name, least in (("rounds", 1), ("samples", 2), ("buckets", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise InputError(f"policy: {name}={value!r} must be a whole number from {least} up")
        for name in ("rate", "temperature"):
            if not 0 < getattr(self, name) < float("inf"):
                raise InputError(f"policy: {name}={getattr(self, name)!r} must be a number above zero")

    def select(self, evidence: Evidence, allowance: Allowance, rng: np.random.Generator) -> Selection:
        trial = evidence.need_trial("policy")
        scores = evidence.best / spread(evidence.best)
        classes = self._classes(evidence)
        logits = np.zeros(classes.max() + 1)
        rewards: list[float] = []
        tried: list[np.ndarray] = []
        told: list[dict[str, Any]] = []
        past = Past()
        with progress("trials", self.rounds * self.samples) as done:
            for _ in range(self.rounds):
                theta = self._theta(scores, logits[classes])
                draws = []
                for _ in range(self.samples):
                    draws.append(draw(evidence, theta, scores, classes, allowance.copy(), rng))
                    tried.append(draws[-1].subset)
                    rewards.append(_reward(trial(tried[-1]), tried[-1]))
                    done(1)
                now = np.array(rewards[-self.samples :])
                found = estimates(now, draws, past)
                logits = logits + self.rate * _step(
                    found[self.baseline].mean(axis=0), draws, np.array(rewards)
                )
                told.append(_told(now, found))
                past = past.after(now, np.array([drawn.pull for drawn in draws]))
        theta = self._theta(scores, logits[classes])
        best = tried[int(np.argmax(rewards))]
        ordered = best[np.argsort(-theta[best], kind="stable")]
        chosen = allowance.first(ordered if self.take == "best" else evidence.best_first(theta))
        notes = {"trials": len(rewards), "rounds": told, "logits": [number(x) for x in logits[:TOLD]]}
        return Selection(evidence, chosen, theta[chosen], notes=notes)

    def _theta(self, scores: np.ndarray, logits: np.ndarray) -> np.ndarray:
        theta = scores / self.temperature + logits
        return np.maximum(theta, theta.max() - WIDEST)

    def _classes(self, evidence: Evidence) -> np.ndarray:
        """(n,) the class of each example, from 0."""
        n, ids = len(evidence), evidence.by_id
        found = np.empty(n, dtype=np.int64)
        if self.by == "row":
            return evidence.id_rank
        if self.by == "source":
            return np.unique(evidence.rows.sources, return_inverse=True)[1]
        if self.by == "score":
            evidence.need_scores("policy(by='score')")
            found[evidence.ranked(evidence.best)] = np.arange(n) * min(n, self.buckets) // n
        else:
            features = evidence.need_features("policy(by='cluster')").take(ids)
            found[ids] = kmeans(features, min(n, self.buckets)).labels
        return found


@dataclass(frozen=True)
class Drawn:
    """One subset drawn from a policy with logits of F classes.

    Attributes:
        subset: positions, in the order of the content ids.
        slope: (F,) the gradient of the log-probability.
        pull: h, the sum of the scores drawn, each less its expectation.
        covariance: (F,) that of slope and pull, expected of the draws one by one: slope · pull less this has mean zero.
    """

    subset: np.ndarray
    slope: np.ndarray
    pull: float
    covariance: np.ndarray


def draw(
    evidence: Evidence,
    theta: np.ndarray,
    scores: np.ndarray,
    classes: np.ndarray,
    allowance: Allowance,
    rng: np.random.Generator,
) -> Drawn:
    """A subset of Plackett and Luce's, and what `Policy` needs of it; see there.

    Args:
        theta, scores: (n,).
        classes: (n,) whose logits are learnt.
        allowance: spent here.
    """
    keys = theta + gumbel(evidence, rng)
    return walk(evidence.ranked(keys), evidence.id_rank, theta, scores, classes, allowance)


def walk(
    order: np.ndarray,
    id_rank: np.ndarray,
    theta: np.ndarray,
    scores: np.ndarray,
    classes: np.ndarray,
    allowance: Allowance,
) -> Drawn:
    """The subset taken when ``order`` was drawn.

    With the tail sums D_t = Σ_{l ≥ t} exp θ_l of the order, example l was expected e^θ_l Σ_{t ≤ min(l, T)} 1/D_t times,
    so that all T gradients together take O(n). The sums run along the order, which no shuffle of the pool changes.
    """
    taken = allowance.first(order)
    last = int(np.flatnonzero(order == taken[-1])[0]) if len(taken) else -1
    steps = np.minimum(np.arange(len(order)), last)
    odds, value = np.exp(theta[order] - theta.max()), scores[order]
    tail = np.cumsum(odds[::-1])[::-1]
    mean = np.cumsum((odds * value)[::-1])[::-1] / tail
    chances = np.cumsum(1 / tail[: last + 1])[steps]
    seen = np.zeros(len(order))
    seen[: last + 1] = 1
    covariance = odds * (value * chances - np.cumsum(mean[: last + 1] / tail[: last + 1])[steps])
    count = int(classes.max()) + 1
    return Drawn(
        taken[np.argsort(id_rank[taken])],
        np.bincount(classes[order], seen - odds * chances, minlength=count),
        float((value - mean)[: last + 1].sum()),
        np.bincount(classes[order], covariance, minlength=count),
    )


@dataclass(frozen=True)
class Past:
    """What earlier rounds leave for the baselines.

    Attributes:
        average: the moving average of their rewards; None before the first.
        squares, products: sums over samples of pull², and of pull times reward, each less its round's mean.
    """

    average: float | None = None
    squares: float = 0.0
    products: float = 0.0

    def after(self, rewards: np.ndarray, pulls: np.ndarray) -> Past:
        """With one more round."""
        mean = float(rewards.mean())
        average = mean if self.average is None else MEMORY * self.average + (1 - MEMORY) * mean
        squares, products = _sums(rewards, pulls)
        return Past(average, self.squares + squares, self.products + products)

    def steepness(self, rewards: np.ndarray, pulls: np.ndarray) -> float:
        """c, the slope of the rewards in the pulls, of the past and these samples."""
        squares, products = _sums(rewards, pulls)
        return (self.products + products) / ((self.squares + squares) or 1)


def _sums(rewards: np.ndarray, pulls: np.ndarray) -> tuple[float, float]:
    between = pulls - pulls.mean()
    return float((between * between).sum()), float((between * rewards).sum())


def estimates(rewards: np.ndarray, draws: list[Drawn], past: Past) -> dict[str, np.ndarray]:
    """baseline → (M, F) the terms whose mean is the estimate ĝ of `Policy`."""
    slopes, pulls = np.array([d.slope for d in draws]), np.array([d.pull for d in draws])
    others = [np.delete(np.arange(len(draws)), m) for m in range(len(draws))]
    left_out = np.array([rewards[own].mean() for own in others])
    moving = left_out if past.average is None else np.full(len(draws), past.average)
    # a + c h, fitted without the sample that it is for
    steep = np.array([past.steepness(rewards[own], pulls[own]) for own in others])
    level = left_out - steep * np.array([pulls[own].mean() for own in others])
    back = steep[:, None] * np.array([d.covariance for d in draws])
    return {
        "none": rewards[:, None] * slopes,
        "leave_one_out": (rewards - left_out)[:, None] * slopes,
        "moving": (rewards - moving)[:, None] * slopes,
        "linear": (rewards - level - steep * pulls)[:, None] * slopes + back,
    }


def _step(gradient: np.ndarray, draws: list[Drawn], rewards: np.ndarray) -> np.ndarray:
    """The gradient in units of the rewards' spread and of the slopes' size; nothing where all rewards are equal."""
    between = float(np.std(rewards))
    if between <= ROUNDING * np.abs(rewards).max():
        return np.zeros_like(gradient)
    return gradient / (between * np.sqrt(np.mean([drawn.slope**2 for drawn in draws])) or 1)


def _told(rewards: np.ndarray, found: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """A round, for the notes."""
    gradient = {
        name: {
            "norm": number(float(np.linalg.norm(terms.mean(axis=0)))),
            "variance": number(terms.var(axis=0, ddof=1).sum() / len(terms)),
        }
        for name, terms in found.items()
    }
    return {
        "reward": number(float(np.mean(rewards))),
        "best": number(float(rewards.max())),
        "gradient": gradient,
    }


def _reward(value: float, subset: np.ndarray) -> float:
    if not np.isfinite(value):
        raise InputError(
            f"policy: the trial gave {value} for {len(subset)} examples; it must give a finite number"
        )
    return float(value)
