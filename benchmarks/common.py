"""What every benchmark shares: its arguments, honest timing, and a result file that says where it was measured."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from backcast.files import write_json

HERE = Path(__file__).parent
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PACKAGES = ("backcast", "torch", "numpy", "transformers", "open_clip_torch")

Row = dict[str, Any]


def arguments(question: str) -> argparse.Namespace:
    """``--quick``, ``--json`` and ``--data DIR`` from the command line."""
    parser = argparse.ArgumentParser(description=question)
    parser.add_argument("--quick", action="store_true", help="small inputs and few rounds: a few minutes")
    parser.add_argument("--json", action="store_true", help="print the results as one JSON object")
    parser.add_argument("--data", type=Path, metavar="DIR", help="take the examples from this folder")
    return parser.parse_args()


def machine() -> str:
    """The kind of machine, e.g. ``x86-64, 2 cores, CPU``."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    device = torch.cuda.get_device_name() if DEVICE.type == "cuda" else "CPU"
    return f"{platform.machine().replace('_', '-')}, {cores} cores, {device}"


def versions() -> dict[str, str]:
    """Of Python and of the packages that a figure depends on."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def commit() -> str | None:
    """The commit that was measured, ``-dirty`` where the working tree differs; None where there is no git checkout."""
    if shutil.which("git") is None:
        return None
    head = _git("rev-parse", "--short=12", "HEAD")
    changes = _git("status", "--porcelain", "--untracked-files=no", "--", ":!benchmarks/results")
    return f"{head}-dirty" if head and changes else head or None


def _git(*command: str) -> str:
    done = subprocess.run(["git", *command], cwd=HERE.parent, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def interleave(functions: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each function in each round, after one round that is not counted.

    The functions take turns, so that whatever else the machine does falls on all of them alike.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for measured in [False] + [True] * rounds:
        for name, function in functions.items():
            _wait_for_device()
            start = time.perf_counter()
            function()
            _wait_for_device()
            if measured:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def _wait_for_device() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def write(name: str, rows: Sequence[Row], as_json: bool) -> None:
    """Write ``results/NAME.json`` and print the rows, as a table or as that JSON."""
    result: Row = {"machine": machine(), "versions": versions(), "commit": commit(), "rows": list(rows)}
    write_json(HERE / "results" / f"{name}.json", result)
    if as_json:
        print(json.dumps(result))
        return
    Console().print(_table(name, result["machine"], rows))


def _table(name: str, kind: str, rows: Sequence[Row]) -> Table:
    """The columns that differ between rows; what all rows share goes under the table."""
    differ = [key for key in rows[0] if len({row[key] for row in rows} - {None}) > 1]
    shared = ", ".join(f"{key} {value}" for key, value in rows[-1].items() if key not in differ)
    table = Table(title=f"{name}: {kind}", caption=shared.replace("_", " "))
    for key in differ:
        number = isinstance(rows[-1][key], (int, float))
        table.add_column(key.replace("_", " "), justify="right" if number else "left", no_wrap=not number)
    for row in rows:
        table.add_row(*(_cell(row[key]) for key in differ))
    return table


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return "" if value is None else str(value)
