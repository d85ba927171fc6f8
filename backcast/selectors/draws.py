"""What random choices by score are made of: noise, and the scores' spread."""

from __future__ import annotations

import numpy as np

from backcast.selectors.evidence import Evidence
from backcast.vectors import fixed


def gumbel(evidence: Evidence, rng: np.random.Generator) -> np.ndarray:
    """(n,) standard Gumbel noise, one raw draw an example in the order of the content ids."""
    raw = rng.bit_generator.random_raw(len(evidence))
    noise = np.empty(len(evidence))
    noise[evidence.by_id] = -np.log(-np.log(((raw >> np.uint64(12)) + 0.5) * 2.0**-52))
    return noise


def exact_sum(values: np.ndarray) -> float:
    """The sum of n numbers between 0 and 1, rounded to multiples of 2^-(52 − ⌈log2 n⌉) so that no order changes it."""
    return float(fixed(values, 52 - len(values).bit_length()).sum())


def spread(values: np.ndarray) -> float:
    """The standard deviation, the same in any order; 1 where there is none."""
    low, high = float(values.min()), float(values.max())
    if low == high:
        return 1.0
    between = (values - low) / (high - low)
    between -= exact_sum(between) / len(between)
    return (high - low) * float(np.sqrt(exact_sum(between * between) / len(between)))
