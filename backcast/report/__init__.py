"""The report of a run: a page for people, and the same as data."""

from backcast.report.document import (
    Answer,
    Curves,
    Figure,
    Fitted,
    Neighbours,
    Observation,
    Pair,
    Report,
)
from backcast.report.html import read_report, render, write_report

__all__ = [
    "Answer",
    "Curves",
    "Figure",
    "Fitted",
    "Neighbours",
    "Observation",
    "Pair",
    "Report",
    "read_report",
    "render",
    "write_report",
]
