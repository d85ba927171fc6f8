"""Scores and sketches → a budgeted subset."""

from backcast.selectors.allowance import Allowance
from backcast.selectors.budget import parse_budget
from backcast.selectors.evidence import Evidence
from backcast.selectors.filters import FILTERS
from backcast.selectors.method import Method
from backcast.selectors.methods import SELECTORS
from backcast.selectors.modality import driven
from backcast.selectors.pipeline import select
from backcast.selectors.selection import Dropped, Filter, Selection, Selector

__all__ = [
    "FILTERS",
    "SELECTORS",
    "Allowance",
    "Dropped",
    "Evidence",
    "Filter",
    "Method",
    "Selection",
    "Selector",
    "driven",
    "parse_budget",
    "select",
]
