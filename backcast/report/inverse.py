"""What a report says of an inverse problem, beyond its curves and its answers, as data."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Density(_Part):
    """Where n* lies: ``density[i]`` is that of log n* at ``n[i]``; it adds up to 1 - ``never``.

    ``n_max`` is the largest n that was run.
    """

    selector: str
    target: float
    n: list[Positive]
    density: list[Annotated[float, Field(ge=0)]]
    never: Share
    n_max: Positive

    @model_validator(mode="after")
    def _equally_long(self) -> Self:
        if len(self.n) != len(self.density):
            raise ValueError("n and density must be equally long")
        return self


class Pairs(_Part):
    """The profile likelihood over floor and exponent.

    Attributes:
        form: the law's.
        floors: (G,) rising, exponents: (H,) rising.
        log_likelihood: (G, H) less the best pair's.
        best: its floor and exponent.
        regions: (probability, by how much the log likelihood falls to the region's end), the least first.
        sentence: what it says.
    """

    selector: str
    form: str
    higher_is_better: bool
    floors: list[float]
    exponents: list[Positive]
    log_likelihood: list[list[float]]
    best: tuple[float, Positive]
    regions: list[tuple[Share, float]] = Field(min_length=1)
    sentence: str

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if [len(row) for row in self.log_likelihood] != [len(self.exponents)] * len(self.floors):
            raise ValueError("log_likelihood must hold a row for each floor, a number for each exponent")
        return self


class Source(_Part):
    """A selector's amounts of data that give a score; no end is None."""

    selector: str
    p: Share
    n: Positive | None
    low: Positive | None
    high: Positive | None


class Same(_Part):
    """The inputs that give one score, within the tolerance."""

    target: float
    tolerance: float
    sources: list[Source]
    sentence: str


class Inverse(_Part):
    """How well the data that give a score are known.

    Attributes:
        densities: for each answer, in the order of the answers.
        pairs: for each curve.
        same: for each target.
        savings: sentences.
        warnings: (curve, sentence).
    """

    densities: list[Density]
    pairs: list[Pairs] = []
    same: list[Same] = []
    savings: list[str] = []
    warnings: list[tuple[str, str]] = []
