"""What a stored score is linear in: the direction w, in weight space, along which an example's gradient is measured.

A method whose scores can be split is a function here and a line in `DIRECTIONS`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from backcast.attribution import SketchStore
from backcast.attribution.estimators.solve import damped_solve, slopes, wanted
from backcast.attribution.problem import Problem
from backcast.errors import InputError


@dataclass(frozen=True)
class Direction:
    """One checkpoint's term of a score: factors_i ⟨w_j, ∇ℓ(x_i)⟩ of training example i for target group j, where

        w_j = Σ_t target_jt ∇ℓ(z_t) + Σ_i pool_ji ∇ℓ(x_i).

    It is in the gradients themselves what the score is in their sketches.

    Attributes:
        checkpoint: which.
        target: (g, m).
        factors: (n,) frozen at the stored sketches: rates and norms.
        pool: (g, n), what a preconditioner takes from the direction; None without one.
    """

    checkpoint: int
    target: np.ndarray
    factors: np.ndarray
    pool: np.ndarray | None = None


def grad_dot(problem: Problem) -> Iterator[Direction]:
    """The last checkpoint's ⟨∇ℓ(x), mean_z ∇ℓ(z)⟩."""
    train = problem.stores[0]
    yield Direction(len(train.checkpoints) - 1, problem.member.astype(np.float64), np.ones(len(train)))


def grad_cos(problem: Problem) -> Iterator[Direction]:
    """The last checkpoint's cosines; both norms are the sketches'."""
    last = len(problem.stores[0].checkpoints) - 1
    yield Direction(last, _unit_target(problem, last), _inverse_norms(problem.stores[0], last))


def tracin(problem: Problem, cosine: bool = False) -> Iterator[Direction]:
    """Every checkpoint's, times its learning rate."""
    train = problem.stores[0]
    for c, rate in enumerate(train.learning_rates):
        if cosine:
            yield Direction(c, _unit_target(problem, c), rate * _inverse_norms(train, c))
        else:
            yield Direction(c, problem.member.astype(np.float64), np.full(len(train), rate))


def influence(problem: Problem, damping: float = 1.0) -> Iterator[Direction]:
    """(H + λI)⁻¹ mean_z ∇ℓ(z), without a matrix in weight space.

    With v = (H + λI)⁻¹ t in sketch space and H = Σ_i a_i φ_i φ_iᵀ, of loss gradients φ_i, λv = t − Hv, so that

        w = (1/λ) [∇ℓ(z) − Σ_i a_i ⟨φ_i, v⟩ ∇ℓ(x_i)]

    is a combination of whole gradients whose sketch is v. Where the store holds outputs, `influence`'s H has the
    weight |slope| on ∇f, and so 1/|slope| on ∇ℓ = slope ∇f.
    """
    train = problem.stores[0]
    count = len(train.checkpoints)
    for c in range(count):
        own = slopes(train, c).astype(np.float64)
        v = damped_solve(train, c, np.abs(own), wanted(problem, c), damping)
        weight = np.divide(1, np.abs(own), out=np.zeros_like(own), where=own != 0)
        scale = sum((np.abs(own[r]) * _squares(s)).sum() for r, s in train.shards(c)) / len(train) or 1.0
        along = np.concatenate([own[r, None] * (s @ v) for r, s in train.shards(c)])
        yield Direction(
            c,
            problem.member / (damping * scale),
            np.full(len(train), 1 / count),
            -(weight[:, None] * along).T / (damping * scale),
        )


#: By the estimator's name.
DIRECTIONS: dict[str, Callable[..., Iterator[Direction]]] = {
    "grad_dot": grad_dot,
    "grad_cos": grad_cos,
    "tracin": tracin,
    "influence": influence,
}


def directions(problem: Problem, params: Mapping[str, Any]) -> list[Direction]:
    """The terms that add up to the problem's method's score.

    Raises:
        InputError: a method whose scores are not of this form, or stores of another direction than the gradient's.
    """
    train = problem.stores[0]
    if problem.method not in DIRECTIONS:
        raise InputError(
            f"scores of method {problem.method!r} cannot be split: choose one of {', '.join(sorted(DIRECTIONS))}"
        )
    if train.header.origin["direction"] != "gradient":
        raise InputError(
            f"{train.path}: holds steps of Adam, which are no linear function of a gradient; "
            "collect gradients to split scores"
        )
    known = list(inspect.signature(DIRECTIONS[problem.method]).parameters)[1:]
    for name in params:
        if name not in known:
            raise InputError(
                f"method {problem.method!r} has no parameter {name!r}; it takes {', '.join(known) or 'none'}"
            )
    return list(DIRECTIONS[problem.method](problem, **params))


def _unit_target(problem: Problem, checkpoint: int) -> np.ndarray:
    """(g, m) means over the groups, each divided by the length of its sketch."""
    norms = np.sqrt(_squares(wanted(problem, checkpoint)))
    return problem.member * _inverse(norms)[:, None]


def _inverse_norms(store: SketchStore, checkpoint: int) -> np.ndarray:
    """(n,) 1/‖∇ℓ‖ of the sketched loss gradients."""
    own = np.abs(slopes(store, checkpoint).astype(np.float64))
    return np.concatenate([_inverse(own[r] * np.sqrt(_squares(s))) for r, s in store.shards(checkpoint)])


def _squares(rows: np.ndarray) -> np.ndarray:
    return np.square(rows, dtype=np.float64).sum(axis=1)


def _inverse(norms: np.ndarray) -> np.ndarray:
    """1/norm, and 0 where there is no gradient."""
    return np.divide(1, norms, out=np.zeros_like(norms), where=norms > 0)
