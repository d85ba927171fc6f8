"""The command line in this process, and a user's files to run it on."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
from cli_cases import Done, Files, image_files, text_files
from transformers.utils import logging

from backcast.cli import main

logging.disable_progress_bar()  # main() asks for it too, but of a fresh process alone


@pytest.fixture
def backcast(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """``backcast("select", "--budget", 5)``: the command, run."""

    def run(*words: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["backcast", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main()
        code = left.value.code
        assert code is None or isinstance(code, int)
        return Done(code or 0, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return text_files(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return image_files(tmp_path_factory.mktemp("images"))
