"""The profile likelihood over floor and exponent: how many pairs of them explain the runs equally well.

A law y(n) = c + A s(n; θ) is linear in (c, A). Given θ both have a closed form, and only θ is searched for (variable
projection: Golub and Pereyra 1973, "The differentiation of pseudo-inverses and nonlinear least squares problems whose
variables separate"). Where floor and exponent are held, what is left of θ is fitted at every node of the grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from scipy.stats import f as f_distribution

from backcast.errors import InputError
from backcast.scaling.budgets import Budgets
from backcast.scaling.law import BELOW, HORIZON, Law
from backcast.scaling.posterior import Model

#: Random starts of the fit, and the part of them that must end at the best value found.
STARTS, AGREED = 32, 0.25
#: Two fits whose -2 log likelihoods differ by less than this are one.
SAME = 0.01
#: Shape parameters stay within this many of their priors' standard deviations; starts within that many.
BOX, AROUND = 3.5, 2.0
#: Nodes along either side of the grid; starts at each, beside the best fit; rounds in which neighbours help.
NODES, EXTRA, ROUNDS = 25, 3, 2
#: A metric without a best value has its floor looked for this many spreads below the best mean.
FAR = 10.0
#: Steps of a descent, and its finite difference.
STEPS, DIFFERENCE = 40, 1e-6
#: A best fit that misses by more than the known noise would in all but this share of tables is not believed.
BELIEVED = 0.95
#: Degrees of freedom of standard errors that are given: as good as known.
GIVEN = 1e6
#: How often the search for a profile's ends zooms in on them.
ZOOMS = 6


@dataclass(frozen=True)
class Profile:
    """Every (floor, exponent) pair that explains the runs about as well as the best one does.

    The exponent is the one that the curve has in the end: b of a power law, Hill and M4, b1 after the break, and the
    exponential's stretch. Floors are in the metric's own direction, ceilings where higher is better.

    Attributes:
        form: the law's form.
        level: the region's probability.
        floor, exponent: the best fit's.
        floor_ends, exponent_ends: of the region: of floors the one that is the better value comes last.
        floor_open, exponent_open: (2,) whether the region goes on past that end of what was looked through: the
            metric's best value, or `FAR` spreads past the best mean; `BOX` of the prior's standard deviations.
        floors: (G,) the grid's, exponents: (H,); log_likelihood: (G, H) less the best fit's.
        freedom: degrees of freedom of the noise.
        spread: how far the budgets' means lie apart.
        starts: of the fit, agreed: those that ended at the best value found.
        correlation: (3, 3) of (log A, c, log b) at the best fit, the other parameters fitted along.
        region: the curves of the region's pairs.
        bounded: whether the metric has a best value.
    """

    form: str
    level: float
    higher_is_better: bool
    floor: float
    exponent: float
    floor_ends: tuple[float, float]
    exponent_ends: tuple[float, float]
    floor_open: tuple[bool, bool]
    exponent_open: tuple[bool, bool]
    floors: np.ndarray = field(repr=False)
    exponents: np.ndarray = field(repr=False)
    log_likelihood: np.ndarray = field(repr=False)
    freedom: float
    spread: float
    bounded: bool
    starts: int
    agreed: int
    correlation: np.ndarray = field(repr=False)
    region: Region = field(repr=False, compare=False)

    def drop(self, level: float | None = None) -> float:
        """By how much the log likelihood falls to the end of the region of a probability; its own when None."""
        return _drop(self.level if level is None else level, self.freedom)

    @property
    def converged(self) -> bool:
        """Whether at least a part `AGREED` of the starts ended at the same best value."""
        return self.agreed >= AGREED * self.starts

    @property
    def floor_width(self) -> float:
        """How wide the floor's interval is, in observed spreads; inf where it has no end."""
        return (
            math.inf
            if any(self.floor_open) and not self.bounded
            else abs(self.floor_ends[1] - self.floor_ends[0]) / self.spread
        )

    @property
    def exponent_ratio(self) -> float:
        """The largest exponent over the least; inf where either has no end."""
        return math.inf if any(self.exponent_open) else self.exponent_ends[1] / self.exponent_ends[0]

    @cached_property
    def condition(self) -> float:
        """Condition number of the correlation of (log A, c, log b): 1 where each is known apart from the others."""
        eigenvalues = np.linalg.eigvalsh(self.correlation)
        return float(eigenvalues[-1] / eigenvalues[0]) if eigenvalues[0] > 0 else math.inf

    def n_ends(self, target: float) -> tuple[float, float]:
        """The least and the largest n* over the region's pairs; inf where a pair's floor lies above the target."""
        n = self.region.n_at(-target if self.higher_is_better else target)
        return float(n.min()), float(n.max())

    def n_spread(self, target: float) -> float:
        """The factor between them: by how much n* differs between pairs that explain the runs equally well."""
        low, high = self.n_ends(target)
        return high / low if math.isfinite(low) else math.inf

    def sentence(self) -> str:
        """The answer in plain words."""
        floors = "ceilings" if self.higher_is_better else "floors"
        first, last = (_number(end) for end in self.floor_ends)
        if self.floor_open[1]:
            last = f"{last}, the best there is," if self.bounded else "no end"
        slow, fast = (_number(end) for end in self.exponent_ends)
        width = f"{self.floor_width:.2g}" if math.isfinite(self.floor_width) else "more than any number"
        ratio = (
            f"a factor {self.exponent_ratio:.2g}"
            if math.isfinite(self.exponent_ratio)
            else "no factor at all"
        )
        fit = (
            f"{self.agreed} of {self.starts} starts reached the best fit"
            if self.converged
            else f"only {self.agreed} of {self.starts} starts reached the best fit: it may not be the best there is"
        )
        return (
            f"As a law of the form {self.form}, {floors} from {first} to {last} with exponents from {slow} to {fast} "
            f"explain the runs equally well ({100 * self.level:.0f} % region): the one is known to within {width} of "
            f"the observed spread, the other to {ratio}; {fit}."
        )

    def to_json(self, target: float | None = None) -> dict[str, Any]:
        """A JSON object, without the grid; what is infinite is null. With ``target``, n*'s ends and their factor."""
        found: dict[str, Any] = {
            "form": self.form,
            "level": self.level,
            "floor": self.floor,
            "exponent": self.exponent,
            "floor_ends": list(self.floor_ends),
            "floor_open": list(self.floor_open),
            "exponent_ends": list(self.exponent_ends),
            "exponent_open": list(self.exponent_open),
            "floor_width": _finite(self.floor_width),
            "exponent_ratio": _finite(self.exponent_ratio),
            "correlation": self.correlation.tolist(),
            "condition": _finite(self.condition),
            "starts": self.starts,
            "agreed": self.agreed,
            "converged": self.converged,
            "sentence": self.sentence(),
        }
        if target is not None:
            low, high = self.n_ends(target)
            found |= {
                "n_low": _finite(low),
                "n_high": _finite(high),
                "n_spread": _finite(self.n_spread(target)),
            }
        return found


def profile(law: Law, form: str | None = None, level: float = 0.9) -> Profile:
    """The profile likelihood of a law's budgets over floor and exponent, and what it leaves open.

    With -2 log L = Σ_k (ȳ_k - f(n_k))² / (s² v_k), the region is where it lies within 2 F of its least value, F the
    quantile of the F distribution with 2 and ν degrees of freedom. Budgets' variances s² v_k are those of the seeds or
    of the standard errors given, s² = 1, unless the best fit misses by more than these allow (an F test): then, and
    without either, s² is what the best fit leaves over, with ν = K less the law's parameters.

    Cost: O(G H (starts + rounds)) small fits of the shape's other parameters, all of them at once.

    Args:
        law: as `fit_law` makes it.
        form: one of the law's forms; when None, the one with the largest weight of those with fewer parameters than
            there are budgets.
        level: the region's probability.

    Raises:
        InputError: a form that the law does not have; fewer budgets than tell any noise; a level outside (0, 1).
    """
    if not 0 < level < 1:
        raise InputError(f"level {level:g} is not a probability; give one between 0 and 1, e.g. 0.9")
    models = {posterior.model.form.name: posterior.model for posterior in law.posteriors}
    if form is not None and form not in models:
        raise InputError(f"the law has no form {form!r}; choose from {', '.join(models)}")
    return Fits(models[form or _heaviest(law)]).profile(level, law.higher_is_better)


def _heaviest(law: Law) -> str:
    """The form with the largest weight of those with fewer parameters than there are budgets, if there are any."""
    size = {p.model.form.name: 2 + len(p.model.form.parameters) for p in law.posteriors}
    few = [name for name in size if size[name] < len(law.budgets)] or [min(size, key=lambda name: size[name])]
    return max(few, key=lambda name: law.weights[name])


class Fits:
    """A form's curves, fitted by least squares to budgets' means.

    Shapes are given by their coordinates z, (G, q), standard normal a priori, and are taken relative to the smallest
    budget: s(n_1) = 1, and the gain is the way from there down to the floor.
    """

    def __init__(self, model: Model) -> None:
        self.model, self.budgets = model, model.budgets
        self.names = [p.name for p in model.form.parameters]
        self.steepness = self.names.index("b1" if "b1" in self.names else "b")
        self.bounded = math.isfinite(self.budgets.best)
        mean = self.budgets.mean
        self.lowest = self.budgets.best if self.bounded else mean.min() - FAR * self.budgets.spread
        self.highest = mean.max()
        self.variance, self.known = _noise(self.budgets)
        self.weight = 1.0 / self.variance

    # ------------------------------------------------------------------ curves

    def log_shape(self, z: np.ndarray, log_n: np.ndarray) -> np.ndarray:
        """(G, K) log s(n) / s(n_1)."""
        x = np.concatenate([np.zeros((len(z), 2)), z], axis=1)
        shape = self.model.shape(x)
        first = self.budgets.log_n[:1]
        return self.model.form.log_shape(log_n, *shape) - self.model.form.log_shape(first, *shape)

    def exponent(self, coordinate: float) -> float:
        """The exponent, from its coordinate."""
        p = self.model.form.parameters[self.steepness]
        return math.exp(p.mean + p.sd * coordinate)

    def linear(self, s: np.ndarray, floor: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Floors and gains (G,) of least squares given shapes (G, K) at the budgets, and floors where held.

        A floor is at least the metric's best value, a gain at least 0: where one of the two is at its end, the other is
        what is best there.
        """
        y, w = self.budgets.mean, self.weight
        if floor is None:
            centre, mean = s @ w / w.sum(), float(y @ w / w.sum())
            around = s - centre[:, None]
            slope = (around * (y - mean)) @ w / np.maximum(around**2 @ w, 1e-300)
            floor = np.clip(mean - np.maximum(slope, 0.0) * centre, self.lowest, self.highest)
        gain = ((y - floor[:, None]) * s) @ w / np.maximum(s**2 @ w, 1e-300)
        return floor, np.maximum(gain, 0.0)

    def residual(self, z: np.ndarray, floor: np.ndarray | None) -> np.ndarray:
        """(G, K) what the best floors and gains leave over, in standard deviations."""
        s = np.exp(self.log_shape(z, self.budgets.log_n))
        c, gain = self.linear(s, floor)
        return (self.budgets.mean - c[:, None] - gain[:, None] * s) * np.sqrt(self.weight)

    # ------------------------------------------------------------------ fits

    def fitted(self, z: np.ndarray, floor: np.ndarray | None, held: bool) -> tuple[np.ndarray, np.ndarray]:
        """Coordinates (G, q) and sums of squares (G,) of the fits that begin at z; the exponent may be held."""
        free = [i for i in range(z.shape[1]) if not (held and i == self.steepness)]
        return _descend(lambda z, of: self.residual(z, None if floor is None else floor[of]), z, free)

    def best_of(
        self, starts: np.ndarray, floor: np.ndarray | None, steep: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """For each of G held floors, exponents' coordinates or both, the best fit of those from ``starts``, (S, q)."""
        size = len(floor if floor is not None else steep)  # type: ignore[arg-type]
        z = np.tile(starts, (size, 1))
        if steep is not None:
            z[:, self.steepness] = np.repeat(steep, len(starts))
        held = None if floor is None else np.repeat(floor, len(starts))
        z, squares = self.fitted(z, held, steep is not None)
        first = squares.reshape(size, -1).argmin(axis=1) + np.arange(size) * len(starts)
        return z[first], squares[first]

    def profile(self, level: float, higher_is_better: bool, better: np.ndarray | None = None) -> Profile:
        """See the function of that name; ``better``, (1, q), is a start that no random one came to."""
        size = len(self.names)
        random = np.random.default_rng(0).uniform(-AROUND, AROUND, (STARTS, size))
        z, squares = self.fitted(random if better is None else np.vstack([random, better]), None, held=False)
        best, least = z[squares.argmin()], squares.min()
        scale, freedom = self.scale(least)
        limit = least + 2.0 * scale * _drop(level, freedom)
        starts = np.vstack([best, random[:EXTRA]])

        s = np.exp(self.log_shape(best[None], self.budgets.log_n))
        (floor,), (gain,) = self.linear(s, None)
        over_floor = _trace(lambda x: self.best_of(starts, x, None), self.lowest, self.highest, floor, limit)
        steep = best[self.steepness]
        over_steep = _trace(lambda x: self.best_of(starts, None, x), -BOX, BOX, steep, limit)
        floors = np.linspace(*_wider(over_floor.ends, self.lowest, self.highest), NODES)
        steeps = np.linspace(*_wider(over_steep.ends, -BOX, BOX), NODES)
        grid_z, grid = self._grid(floors, steeps, starts)
        if grid.min() < least - SAME * scale:
            return self.profile(level, higher_is_better, grid_z.reshape(-1, size)[[grid.argmin()]])
        inside = (grid <= limit).ravel()
        region = self._region(
            np.vstack([grid_z.reshape(-1, size)[inside], over_floor.z]),
            np.concatenate([np.repeat(floors, NODES)[inside], over_floor.x]),
            over_steep.z,
        )
        sign = -1.0 if higher_is_better else 1.0
        return Profile(
            form=self.model.form.name,
            level=level,
            higher_is_better=higher_is_better,
            floor=sign * float(floor),
            exponent=self.exponent(steep),
            floor_ends=(sign * over_floor.ends[1], sign * over_floor.ends[0]),
            exponent_ends=(self.exponent(over_steep.ends[0]), self.exponent(over_steep.ends[1])),
            floor_open=(over_floor.open[1], over_floor.open[0]),
            exponent_open=over_steep.open,
            floors=sign * floors,
            exponents=np.array([self.exponent(steep) for steep in steeps]),
            log_likelihood=-0.5 * (grid - least) / scale,
            freedom=freedom,
            spread=self.budgets.spread,
            bounded=self.bounded,
            starts=STARTS,
            agreed=int((squares[:STARTS] <= least + SAME * scale).sum()),
            correlation=self._correlation(best, float(floor), float(gain)),
            region=region,
        )

    def _region(self, held: np.ndarray, floor: np.ndarray, free: np.ndarray) -> Region:
        """The curves of shapes with held floors, and of shapes with the floors that are best for them."""
        log_n = self.budgets.log_n
        fits = [(self.linear(np.exp(self.log_shape(z, log_n)), c)) for z, c in ((held, floor), (free, None))]
        floors, gains = (np.concatenate(each) for each in zip(*fits, strict=True))
        return Region(self, floors, gains, np.vstack([held, free]))

    def scale(self, least: float) -> tuple[float, float]:
        """s² and its degrees of freedom ν."""
        left = len(self.budgets) - 2 - len(self.names)  # degrees of freedom
        misfit = max(least / left, (1e-6 * self.budgets.spread) ** 2 * self.weight.max()) if left > 0 else 0.0
        if self.known and misfit <= (f_distribution.ppf(BELIEVED, left, self.known) if left > 0 else 1.0):
            return 1.0, self.known
        if left <= 0:
            raise InputError(
                f"{len(self.budgets)} budgets and no repeated runs tell no noise beside the "
                f"{2 + len(self.names)} parameters of a law of the form {self.model.form.name}; run seeds or more sizes"
            )
        return misfit, float(left)

    def _grid(
        self, floors: np.ndarray, steeps: np.ndarray, starts: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """(G, H, q) coordinates and (G, H) sums of squares of the best fits at every node."""
        shape = (len(floors), len(steeps))
        floor, steep = (each.ravel() for each in np.meshgrid(floors, steeps, indexing="ij"))
        z, squares = self.best_of(starts, floor, steep)
        if len(self.names) == 1:
            return z.reshape(*shape, -1), squares.reshape(shape)
        for _ in range(ROUNDS):
            node = np.arange(floor.size).reshape(shape)
            for axis in (0, 1):
                for way in (1, -1):
                    start = z[np.roll(node, way, axis).ravel()]
                    start[:, self.steepness] = steep
                    tried, found = self.fitted(start, floor, held=True)
                    better = found < squares
                    z, squares = np.where(better[:, None], tried, z), np.where(better, found, squares)
        return z.reshape(*shape, -1), squares.reshape(shape)

    def _correlation(self, z: np.ndarray, floor: float, gain: float) -> np.ndarray:
        """(3, 3) of (log A, c, log b): the inverse of what the budgets tell of all parameters."""
        log_n, first = self.budgets.log_n, self.budgets.log_n[:1]
        log_a = math.log(max(gain, 1e-300)) - self._plain(z, first)[0]

        def curve(theta: np.ndarray) -> np.ndarray:
            return theta[1] * self.budgets.spread + np.exp(theta[0] + self._plain(theta[2:], log_n))

        theta = np.concatenate([[log_a, floor / self.budgets.spread], z])
        step = 1e-5 * np.eye(len(theta))
        slopes = np.array([(curve(theta + h) - curve(theta - h)) / 2e-5 for h in step])
        covariance = np.linalg.pinv((slopes * self.weight) @ slopes.T, rcond=1e-14, hermitian=True)
        kept = [0, 1, 2 + self.steepness]
        covariance = covariance[np.ix_(kept, kept)]
        sd = np.sqrt(np.maximum(np.diag(covariance), 1e-300))
        return covariance / np.outer(sd, sd)

    def _plain(self, z: np.ndarray, log_n: np.ndarray) -> np.ndarray:
        """(K,) log s(n) of one shape."""
        x = np.concatenate([np.zeros(2), z])[None]
        return self.model.form.log_shape(log_n, *self.model.shape(x))[0]


@dataclass(frozen=True)
class Region:
    """R curves: floors (R,), lower being better, gains (R,) and shapes (R, q) as `Fits` has them."""

    fits: Fits
    floor: np.ndarray
    gain: np.ndarray
    z: np.ndarray

    def n_at(self, value: float) -> np.ndarray:
        """(R,) n at which the curves come down to the value, by bisection; inf where they never do."""
        with np.errstate(divide="ignore", invalid="ignore"):
            wanted = np.log(np.maximum(value - self.floor, 0.0)) - np.log(self.gain)
        first, last = self.fits.budgets.log_n[[0, -1]]
        low = np.full(len(self.z), first + math.log(BELOW))
        high = np.full(len(self.z), last + math.log(HORIZON))

        def above(log_n: np.ndarray) -> np.ndarray:
            return ~(self.fits.log_shape(self.z, log_n[:, None])[:, 0] <= wanted)

        never = above(high)
        for _ in range(50):
            middle = 0.5 * (low + high)
            before = above(middle)
            low, high = np.where(before, middle, low), np.where(before, high, middle)
        return np.where(never, np.inf, np.exp(high))


def _drop(level: float, freedom: float) -> float:
    return float(f_distribution.ppf(level, 2, freedom))


def _noise(budgets: Budgets) -> tuple[np.ndarray, float | None]:
    """(K,) variances of the budgets' means, and their degrees of freedom; None where known but for a factor."""
    variance = budgets.seed_noise**2 / budgets.count + budgets.se**2
    if not variance.any():
        return np.ones(len(budgets)), None
    variance = np.where(variance > 0, variance, variance[variance > 0].mean())
    return variance, float(budgets.freedom) if budgets.seed_noise else GIVEN


def _descend(
    residual: Callable[[np.ndarray, np.ndarray], np.ndarray], z: np.ndarray, free: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """G least-squares problems at once, by Levenberg's and Marquardt's steps in a box: (G, q) and (G,) sums of squares.

    Coordinates at a side of the box that the gradient would push through it are left out of a step.

    Args:
        residual: coordinates (m, q) and the problems (m,) that they belong to → (m, K).
    """
    z, live = z.copy(), np.arange(len(z))
    r = residual(z, live)
    squares, damping = (r**2).sum(axis=1), np.full(len(z), 1e-2)
    for _ in range(STEPS if free else 0):
        at, here = z[live], r[live]
        slopes = np.empty((*here.shape, len(free)))
        for j, i in enumerate(free):
            aside = at.copy()
            aside[:, i] += DIFFERENCE
            slopes[:, :, j] = (residual(aside, live) - here) / DIFFERENCE
        gradient = np.einsum("gkq,gk->gq", slopes, here)
        side = at[:, free]
        loose = ~((side >= BOX) & (gradient < 0) | (side <= -BOX) & (gradient > 0))
        slopes, gradient = slopes * loose[:, None, :], gradient * loose
        curvature = np.einsum("gkp,gkq->gpq", slopes, slopes)
        diagonal = np.einsum("gqq->gq", curvature)
        ridge = damping[live, None] * diagonal + 1e-12 * (1.0 + diagonal.max(axis=1, keepdims=True))
        step = np.linalg.solve(curvature + ridge[:, :, None] * np.eye(len(free)), gradient[:, :, None])
        at[:, free] = np.clip(side - step[:, :, 0], -BOX, BOX)
        there = residual(at, live)
        gained = squares[live] - (there**2).sum(axis=1)
        settled = np.abs(gained) <= 1e-7 * squares[live] + 1e-12
        better = gained > 0
        took = live[better]
        z[took], r[took], squares[took] = at[better], there[better], squares[took] - gained[better]
        damping[live] = np.clip(np.where(better, damping[live] / 5, damping[live] * 5), 1e-9, 1e9)
        live = live[~settled]
        if not live.size:
            break
    return z, squares


@dataclass(frozen=True)
class _Trace:
    """Where a profile is within a limit: nodes (m,) with their shapes (m, q), its ends, and which of them are open."""

    x: np.ndarray
    z: np.ndarray
    ends: tuple[float, float]
    open: tuple[bool, bool]


def _trace(
    over: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
    low: float,
    high: float,
    best: float,
    limit: float,
) -> _Trace:
    """Follow a profile, x → shapes and sums of squares, from its best value to where it passes the limit.

    The nodes close in on the ends from outside, so that a region of any width has about `NODES` of them.
    """
    left, right = low, high
    for _ in range(ZOOMS):
        x = np.union1d(np.linspace(left, right, NODES), [best])
        z, squares = over(x)
        inside = np.flatnonzero((squares <= limit) | (x == best))
        first, last = inside[0], inside[-1]
        if last - first > NODES // 2:
            break
        left, right = x[max(first - 1, 0)], x[min(last + 1, len(x) - 1)]

    def end(i: int, beyond: int) -> float:
        """Between the last node within the limit and the first past it, by linear interpolation."""
        if not 0 <= beyond < len(x):
            return float(x[i])
        share = (limit - squares[i]) / (squares[beyond] - squares[i])
        return float(x[i] + np.clip(share, 0.0, 1.0) * (x[beyond] - x[i]))

    return _Trace(
        x[inside],
        z[inside],
        (end(first, first - 1), end(last, last + 1)),
        (bool(x[first] == low), bool(x[last] == high)),
    )


def _wider(ends: tuple[float, float], low: float, high: float) -> tuple[float, float]:
    """A range and a sixth of it on both sides, within the limits."""
    margin = max((ends[1] - ends[0]) / 6, 1e-9 * (high - low))
    return max(ends[0] - margin, low), min(ends[1] + margin, high)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _number(value: float) -> str:
    return f"{value:.3g}"
