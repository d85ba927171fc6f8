"""What a report says, as data: written beside the page, so that the page can be made again."""

from __future__ import annotations

import math
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from backcast.report.choice import Choice
from backcast.report.inverse import Inverse
from backcast.scaling.inversion import Status


def _none_for_infinity(value: Any) -> Any:
    return None if isinstance(value, float) and math.isinf(value) else value


Positive = Annotated[float, Field(gt=0)]
#: A number of examples; None stands for infinity, which JSON cannot write.
Count = Annotated[Positive | None, BeforeValidator(_none_for_infinity)]
Share = Annotated[float, Field(ge=0, le=1)]


def shown(n: float) -> str:
    """A number of examples to three digits: 1,230."""
    rounded = float(f"{n:.3g}")
    return f"{rounded:,.0f}" if rounded >= 10 else f"{rounded:g}"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Figure(_Part):
    """A number worth a line of its own, e.g. ``Figure(name="AUROC", value="0.94", wanted="≥ 0.90", met=True)``."""

    name: str
    value: str
    wanted: str | None = None
    met: bool | None = None


class Observation(_Part):
    """One run: a selector's subset of n examples, and the metric that it reached."""

    selector: str
    n: Positive
    seed: int
    metric: float


class Fitted(_Part):
    """A selector's learning curve at K values of n, ascending, with its central band of probability ``level``.

    ``upto`` is the largest n of the runs that it was fitted to, where that is not every run.
    """

    selector: str
    n: list[Positive]
    mean: list[float]
    low: list[float]
    high: list[float]
    level: Share
    upto: Positive | None = None

    @model_validator(mode="after")
    def _equally_long(self) -> Self:
        if len({len(self.n), len(self.mean), len(self.low), len(self.high)}) > 1:
            raise ValueError("n, mean, low and high must be equally long")
        return self


class Answer(_Part):
    """How much data a selector needs for a target: an `Inversion` without its samples; no end is None."""

    selector: str
    target: float
    n: Count
    low: Count
    high: Count
    p_unreachable: Share
    status: Status
    sentence: str

    @property
    def found(self) -> bool:
        """Whether n means something."""
        return self.n is not None and self.status in ("reached", "extrapolated")

    @property
    def words(self) -> str:
        """n* for a glance: the number, or why there is none."""
        if self.found:
            return f"≈ {shown(self.n or 0)}"
        return "out of reach" if self.status == "unreachable" else "cannot tell yet"

    @property
    def interval(self) -> str:
        """The interval in words."""
        if self.low is None:
            return "no amount is enough"
        return (
            f"{shown(self.low)} or more" if self.high is None else f"{shown(self.low)} to {shown(self.high)}"
        )


class Curves(_Part):
    """Runs, fitted curves and answers of every selector; ``full`` is the metric of the whole pool."""

    metric: str
    higher_is_better: bool
    target: float | None = None
    observed: list[Observation] = Field(min_length=1)
    fitted: list[Fitted] = []
    answers: list[Answer] = []
    full: float | None = None

    @property
    def selectors(self) -> list[str]:
        """In order of first appearance; a selector's place gives its colour and its marker."""
        everywhere: list[Observation | Fitted | Answer] = [*self.observed, *self.fitted, *self.answers]
        return list(dict.fromkeys(item.selector for item in everywhere))


class Pair(_Part):
    """A training example and its score.

    Attributes:
        row: its place in the pool.
        text: its caption, or prompt and response as ``prompt → response``.
        image: its picture, a path relative to the run's folder; of several images, one picture of all.
        parts: modality → its signed part of the score.
        baseline: the score of the example without its contents: with the parts it adds up to the score.
        interaction: what the modalities do together that neither does alone.
        verdict: what the parts say, e.g. "harms through its image alone".
        image_map: the image's part by patch, (h, w), over the whole picture.
        tokens: the text's part by token, as they are to be read: the response's, where there is a prompt.
        tokens_in_prompt: they are the prompt's instead.
        note: what is known about it, e.g. "wrong caption".
    """

    row: int
    score: float
    text: str
    image: str | None = None
    parts: dict[str, float] | None = None
    baseline: float | None = None
    interaction: float | None = None
    verdict: str | None = None
    image_map: list[list[float]] | None = None
    tokens: list[tuple[str, float]] | None = None
    tokens_in_prompt: bool = False
    note: str | None = None

    @model_validator(mode="after")
    def _rectangular(self) -> Self:
        if self.image_map is not None and (not self.image_map or len({len(r) for r in self.image_map}) > 1):
            raise ValueError("image_map must be a grid of equally long rows")
        return self


class Agreement(_Part):
    """How far a modality's parts against two baselines agree, over ``rows`` rows: None where that is not defined.

    ``sign`` is the share of rows whose two parts have one sign, ``rank`` Spearman's correlation.
    """

    baselines: tuple[str, str]
    modality: str
    sign: Share | None
    rank: float | None
    rows: int


class Modality(_Part):
    """The scores of many rows, split between their image and their text.

    Attributes:
        driven: class (image, text, mixed) → how many rows it has, without those flagged.
        flagged: rows whose parts do not add up, and are left out of everything else.
        one_sided: modality → the rows that are harmful through it alone.
        points: class → (image's part, text's part) of the rows to draw.
        agreement: between baselines.
        interaction: the median over rows of |interaction| / (|image alone| + |text alone| + |interaction|).
        about: sentences: what the parts are of, and what is not claimed.
    """

    driven: dict[str, int]
    flagged: int = 0
    one_sided: dict[str, int] = {}
    points: dict[str, list[tuple[float, float]]] = {}
    agreement: list[Agreement] = []
    interaction: Share | None = None
    about: list[str] = []

    @property
    def rows(self) -> int:
        """All that were split."""
        return sum(self.driven.values()) + self.flagged

    @model_validator(mode="after")
    def _known_classes(self) -> Self:
        if not self.points.keys() <= self.driven.keys():
            raise ValueError("points must be of the classes in driven")
        return self


class Neighbours(_Part):
    """A target and the training examples whose gradients are nearest to its own, as (cosine, example)."""

    query: Pair
    found: list[tuple[float, Pair]]


class Report(_Part):
    """A run's whole report.

    Attributes:
        answer: sentences; the first is the headline.
        modality: the pool's scores, split by modality.
        best, worst: the examples with the highest and the lowest scores, the extreme ones first.
        duplicates: the pairs to show, as (cosine, example, example), of ``duplicates_found`` in all.
        next_run: the run to make next, in words.
        timings: (step, seconds), in the order in which they ran.
        sources: column (the pool, then each selector) → source → how many examples.
        selection: one selection from a pool, on a page of its own.
        inverse: how well the data that give a score are known; of the selectors of ``curves``.
    """

    title: str
    answer: list[str] = Field(min_length=1)
    figures: list[Figure] = []
    curves: Curves | None = None
    modality: Modality | None = None
    best: list[Pair] = []
    worst: list[Pair] = []
    neighbours: list[Neighbours] = []
    duplicates: list[tuple[float, Pair, Pair]] = []
    duplicates_found: int = 0
    next_run: str | None = None
    timings: list[tuple[str, Annotated[float, Field(ge=0)]]] = []
    sources: dict[str, dict[str, int]] | None = None
    selection: Choice | None = None
    inverse: Inverse | None = None

    @model_validator(mode="after")
    def _all_found(self) -> Self:
        if self.duplicates_found < len(self.duplicates):
            raise ValueError("duplicates_found is less than the number of pairs in duplicates")
        if self.inverse is not None:
            known = set(self.curves.selectors) if self.curves else set()
            drawn = {each.selector for each in self.inverse.densities}
            if not drawn | {each.selector for each in self.inverse.pairs} <= known:
                raise ValueError("inverse must be of the selectors of curves")
        return self
