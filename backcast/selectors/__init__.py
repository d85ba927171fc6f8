"""Scores and sketches → a budgeted subset."""

from backcast.selectors.budget import parse_budget
from backcast.selectors.evidence import Evidence
from backcast.selectors.modality import driven
from backcast.selectors.pipeline import BY_PARTS, FILTERS, SELECTORS, parse_method, select
from backcast.selectors.selection import Dropped, Filter, Selection, Selector

__all__ = [
    "BY_PARTS",
    "FILTERS",
    "SELECTORS",
    "Dropped",
    "Evidence",
    "Filter",
    "Selection",
    "Selector",
    "driven",
    "parse_budget",
    "parse_method",
    "select",
]
