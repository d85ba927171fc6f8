"""Scores and sketches → a budgeted subset, and the manifest that says which and why."""

from backcast.selectors.budget import parse_budget
from backcast.selectors.evidence import Evidence
from backcast.selectors.manifest import Manifest, Report, check, load_subset, meta_path
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
    "Manifest",
    "Report",
    "Selection",
    "Selector",
    "check",
    "driven",
    "load_subset",
    "meta_path",
    "parse_budget",
    "parse_method",
    "select",
]
