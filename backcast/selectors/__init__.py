"""Scores and sketches → a budgeted subset, and the manifest that says which and why."""

from backcast.selectors.budget import parse_budget
from backcast.selectors.evidence import Evidence
from backcast.selectors.manifest import Manifest, Report, check, load_subset, meta_path
from backcast.selectors.pipeline import FILTERS, SELECTORS, parse_method, select
from backcast.selectors.selection import Filter, Selection, Selector

__all__ = [
    "FILTERS",
    "SELECTORS",
    "Evidence",
    "Filter",
    "Manifest",
    "Report",
    "Selection",
    "Selector",
    "check",
    "load_subset",
    "meta_path",
    "parse_budget",
    "parse_method",
    "select",
]
