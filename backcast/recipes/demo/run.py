"""The demo: the loop on data that installs with the package, and its page."""

from __future__ import annotations

from pathlib import Path

from backcast.errors import InputError
from backcast.recipes.demo.digits import Digits
from backcast.recipes.demo.docstrings import Docstrings
from backcast.recipes.demo.document import document
from backcast.recipes.demo.loop import Loop
from backcast.recipes.demo.setting import Setting, Summary
from backcast.report import Report, write_report

SETTINGS: dict[str, type[Setting]] = {"digits": Digits, "docstrings": Docstrings}


def demo(
    folder: str | Path, data: str = "digits", seed: int = 0, quick: bool = False
) -> tuple[Summary, Report, Path]:
    """Run the loop in ``folder``; returns its summary, its report and the page. Raises `InputError`: see `Loop`."""
    if data not in SETTINGS:
        raise InputError(f"there is no demo on {data!r}; choose one of {', '.join(SETTINGS)}")
    loop = Loop(SETTINGS[data](), Path(folder), seed, quick)
    summary = loop.run()
    report = document(loop)
    return summary, report, write_report(report, loop.folder)
