"""One report with images and one without, written once."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
from report_sample import digits_report, docstrings_report

from backcast.report import Report, write_report


class Written(NamedTuple):
    report: Report
    folder: Path
    page: Path

    @property
    def html(self) -> str:
        return self.page.read_text(encoding="utf-8")


def _write(report: Report, folder: Path) -> Written:
    return Written(report, folder, write_report(report, folder))


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Written:
    folder = tmp_path_factory.mktemp("digits")
    return _write(digits_report(folder), folder)


@pytest.fixture(scope="session")
def docstrings(tmp_path_factory: pytest.TempPathFactory) -> Written:
    return _write(docstrings_report(), tmp_path_factory.mktemp("docstrings"))
