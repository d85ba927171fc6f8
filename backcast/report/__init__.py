"""The report of a run: a page for people, and the same as data."""

from backcast.report.document import (
    Agreement,
    Answer,
    Curves,
    Figure,
    Fitted,
    Modality,
    Neighbours,
    Observation,
    Pair,
    Report,
)
from backcast.report.html import read_report, render, write_report

__all__ = [
    "Agreement",
    "Answer",
    "Curves",
    "Figure",
    "Fitted",
    "Modality",
    "Neighbours",
    "Observation",
    "Pair",
    "Report",
    "read_report",
    "render",
    "write_report",
]
