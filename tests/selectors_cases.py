"""Small pools for the tests of this folder."""

from __future__ import annotations

import numpy as np

from backcast.attribution.scores import Scores
from backcast.data.examples import Rows
from backcast.files import sha256
from backcast.selectors import Allowance, Evidence, Selector

RNG = np.random.Generator(np.random.PCG64(0))  # for selectors that draw nothing


def rows(n: int, sources: str = "ab", ids: list[str] | None = None) -> Rows:
    """n examples with ids that are in no order."""
    return Rows(
        ids=tuple(ids or [sha256(str(i)) for i in range(n)]),
        rows=np.arange(n),
        sources=tuple(sources[i % len(sources)] for i in range(n)),
    )


def scores(values: np.ndarray, pool: Rows | None = None) -> Scores:
    values = np.asarray(values, dtype=np.float32)
    n, m = values.shape
    return Scores(
        values, pool or rows(n), tuple(f"target {t}" for t in range(m)), "grad_cos", {}, {"model": "m"}
    )


def points(n: int, d: int, seed: int = 0) -> np.ndarray:
    """(n, d) random unit rows in a few clusters."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(4, d))
    x = centres[rng.integers(0, 4, n)] + 0.7 * rng.normal(size=(n, d))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def parts(n: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Signed parts in which every class and every sign occurs, and one row in nine has no split."""
    rng = np.random.default_rng(seed + 2)
    found = {name: rng.normal(size=n) * rng.integers(0, 4, n) for name in ("image", "text", "interaction")}
    for part in found.values():
        part[4::9] = np.nan
    return found


def evidence(n: int, m: int = 3, d: int = 6, seed: int = 0) -> Evidence:
    values = np.random.default_rng(seed + 1).normal(size=(n, m))
    return Evidence.of(scores(values), points(n, d, seed), parts(n, seed))


def room(count: int, pool: Evidence) -> Allowance:
    """Room for so many of the pool."""
    return Allowance.of(count, len(pool))


def check_allowance(selector: Selector, rng: np.random.Generator = RNG) -> None:
    """Its picks break neither a budget of costs nor a ceiling, and nothing more would fit."""
    pool = evidence(150, d=6, seed=7)
    costs = np.random.default_rng(0).integers(1, 40, 150).astype(float)
    allowance = Allowance(costs, 300, pool.rows.sources, at_most={"a": 90})
    chosen = selector.select(pool, allowance, rng)
    assert costs[chosen.indices].sum() <= 300
    assert costs[chosen.indices][[s == "a" for s in chosen.rows.sources]].sum() <= 90
    assert len(set(chosen.indices.tolist())) == len(chosen)
    assert not any(allowance.fits(j) for j in np.setdiff1d(np.arange(150), chosen.indices))


def check_order(selector: Selector, seed: int, d: int = 16) -> None:
    """A shuffle of the pool changes neither its picks nor their gains."""
    pool = evidence(200, d=d, seed=seed)
    mine, theirs = (selector.select(p, room(60, p), RNG) for p in (pool, shuffled(pool, seed)))
    assert mine.rows.ids == theirs.rows.ids
    np.testing.assert_array_equal(mine.gains, theirs.gains)


def shuffled(pool: Evidence, seed: int) -> Evidence:
    return pool.take(np.random.default_rng(seed).permutation(len(pool)))
