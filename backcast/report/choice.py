"""What a report says of one selection, as data."""

from __future__ import annotations

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, model_validator


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Mix(_Part):
    """How many examples of a source are in the pool, where that is known, and in the subset."""

    source: str
    pool: int | None
    subset: int


class Summary(_Part):
    """Some numbers, summed up; ``quantiles`` are the 5th, 25th, 50th, 75th and 95th percentile."""

    name: str
    count: int
    mean: float
    quantiles: tuple[float, float, float, float, float]


class Histogram(_Part):
    """Numbers of several groups of rows, counted in the same bins; those beyond an end are in its bin.

    Attributes:
        of: what the numbers are, e.g. "mean score".
        edges: (b + 1,) the bins' edges, rising.
        counts: (b,) for each group, what the choice is set against first, the chosen last.
        groups: what is counted, in the same order.
    """

    of: str
    edges: list[float]
    counts: list[list[int]]
    groups: list[Summary]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if {len(counts) for counts in self.counts} != {len(self.edges) - 1} or len(self.counts) != len(
            self.groups
        ):
            raise ValueError("counts must hold, for each of the groups, one number for each bin")
        return self


class Gain(_Part):
    """The summed gain of the first picks: ``total[i]`` is that of the first ``rank[i]``."""

    rank: list[int]
    total: list[float]

    @model_validator(mode="after")
    def _equally_long(self) -> Self:
        if len(self.rank) != len(self.total):
            raise ValueError("rank and total must be equally long")
        return self


class Nearness(_Part):
    """Cosines to the nearest chosen row, the chosen set against random subsets of the same size.

    Attributes:
        cosines: "random" and "chosen", the random subsets' counted together.
        random_means: the mean of each of the random subsets.
        asked: how many rows were asked for their nearest, of how many; for each subset.
    """

    cosines: Histogram
    random_means: list[float]
    asked: tuple[int, int]


class Cost(_Part):
    """What the subset costs in some unit; its limit and the pool's cost, where they are known; the latter may be an
    estimate (``about``)."""

    unit: str
    subset: float
    pool: float | None = None
    limit: float | None = None
    about: bool = False


class Row(_Part):
    """An example, in the subset or left out of it.

    Attributes:
        row: its place in the data set.
        text: its caption or text, or what was answered to ``prompt``; None where the data were not read.
        image: its picture, a path relative to the folder that the page is made in; of several images, one of all.
        note: why it was left out, where that is known.
    """

    row: int
    source: str
    rank: int | None = None
    score: float | None = None
    gain: float | None = None
    weight: float | None = None
    cost: float | None = None
    prompt: str | None = None
    text: str | None = None
    image: str | None = None
    note: str | None = None


class Gallery(_Part):
    """Examples that have something in common."""

    name: str
    about: str = ""
    rows: list[Row]


class Choice(_Part):
    """One selection from a pool.

    Attributes:
        made: what was chosen and how, (what, value).
        dropped: (filter, reason, rows that it took out).
        sources: the most frequent in the pool first.
        scores: of pool and subset: their means, then by group of targets where there are few.
        gain: over rank, where the selector has gains.
        redundancy: of each chosen row to the nearest other one.
        coverage: of each of the pool's rows to the nearest chosen one.
        costs: in examples and in other units.
        chosen: examples of the subset.
        left: examples that were left out.
        missing: what the page leaves out, and what would add it.
    """

    made: list[tuple[str, str]]
    dropped: list[tuple[str, str, int]] = []
    sources: list[Mix]
    scores: list[Histogram] = []
    gain: Gain | None = None
    redundancy: Nearness | None = None
    coverage: Nearness | None = None
    costs: list[Cost]
    chosen: list[Gallery] = []
    left: list[Gallery] = []
    missing: list[str] = []

    def to_json(self) -> dict[str, Any]:
        """All of it but the pictures, which are the page's."""
        pictures = {"__all__": {"rows": {"__all__": {"image"}}}}
        return self.model_dump(mode="json", exclude={"chosen": pictures, "left": pictures})
