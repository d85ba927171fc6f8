"""What differs between the demo's data sets; the loop is the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from backcast.data import Example, Examples
from backcast.finetune import FinetuneConfig
from backcast.kernels import SketchSpec


@dataclass(frozen=True)
class Plan:
    """How much of everything a run of the loop does.

    Attributes:
        warmup: fine-tune of the fresh model on the clean handful; every later run starts from its result.
        scoring: fine-tune on the pool, during which the two checkpoints are taken at which gradients are compared.
        runs: fine-tune of the sweep.
        spec: the sketch.
        budgets: of the selectors.
        fitted: the budgets from which n* is predicted, to be compared with what the others show.
        seeds: runs of each subset.
    """

    warmup: FinetuneConfig
    scoring: FinetuneConfig
    runs: FinetuneConfig
    spec: SketchSpec
    budgets: tuple[str, ...]
    fitted: tuple[str, ...]
    seeds: int


@dataclass(frozen=True)
class Truth:
    """What is known of a pool that was spoilt on purpose.

    Attributes:
        kinds: each pool row's kind, in words.
        spoilt: (n,) bool.
        pairs: the near-duplicates, rows i < j.
    """

    kinds: Sequence[str]
    spoilt: np.ndarray
    pairs: frozenset[tuple[int, int]]


class Setting(Protocol):
    """A data set, a model for it, and how the report words them."""

    name: str
    title: str
    metric: str
    higher_is_better: bool
    bounds: tuple[float, float]

    def plan(self, quick: bool) -> Plan:
        """How much to do."""

    def write(self, folder: Path, seed: int, quick: bool) -> None:
        """Write ``warmup``, ``pool``, ``target`` and ``test`` (.jsonl) and ``model/`` into ``folder``."""

    def groups(self, target: Examples) -> list[str]:
        """The target group of each target example."""

    def truth(self, folder: Path) -> Truth | None:
        """What is known of the pool; None where nothing was spoilt."""

    def text(self, example: Example) -> str:
        """An example in one line."""


#: The selectors that the loop compares: name → method of `backcast.selectors.select`.
SELECTORS: Mapping[str, str] = {
    "random": "random",
    "top_k": "top_k",
    "round_robin": "round_robin",
    "facility_location": "dedup | facility_location",
}

Summary = dict[str, Any]
