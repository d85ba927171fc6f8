"""What every benchmark shares: its arguments, honest timing, and a result file that says where it was measured."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Collection, Mapping, Sequence
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


def clock(function: Callable[[], object]) -> float:
    """The seconds that the function takes."""
    _wait_for_device()
    start = time.perf_counter()
    function()
    _wait_for_device()
    return time.perf_counter() - start


def interleave(
    ways: Mapping[str, Callable[[], float]], rounds: int, slow: Collection[str] = ()
) -> dict[str, list[float]]:
    """Each way's own seconds in each round, after one round that is not counted.

    The ways take turns, so that whatever else the machine does falls on all of them alike. Those that are ``slow`` take
    turns afterwards, in a third of the rounds and without warming up: a process that waits for minutes finds its
    memory cold.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    quick = [name for name in ways if name not in slow]
    for name in quick:
        ways[name]()
    turns = [quick] * rounds + [[name for name in ways if name in slow]] * max(1, rounds // 3)
    for name in (name for turn in turns for name in turn):
        seconds[name].append(ways[name]())
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
    console = Console(width=max(Console().width, 200))  # a wide table is read in a log, or its lines wrap
    console.print(_table(name, result["machine"], rows))
    for row in rows:
        if row.get("note"):
            name = ", ".join(row[key] for key in ("package", "op", "kind", "peer") if row.get(key))
            console.print(f"{name}: {row['note']}", highlight=False)


def _table(name: str, kind: str, rows: Sequence[Row]) -> Table:
    """The columns that differ between rows; what all rows share goes under it. Quartiles, lists and notes do not."""
    lists = {key for row in rows for key, value in row.items() if isinstance(value, list)}
    shown = [key for key in rows[0] if not key.endswith(("_low", "_high")) and key not in {*lists, "note"}]
    differ = [key for key in shown if len({row[key] for row in rows} - {None}) > 1]
    shared = ", ".join(
        f"{key} {rows[-1][key]}" for key in shown if key not in differ and rows[-1][key] is not None
    )
    table = Table(title=f"{name}: {kind}", caption=shared.replace("_", " "))
    for key in differ:
        number = any(isinstance(row[key], (int, float)) for row in rows)
        table.add_column(key.replace("_", " "), justify="right" if number else "left", no_wrap=not number)
    for row in rows:
        table.add_row(*(_cell(row[key]) for key in differ))
    return table


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return "" if value is None else str(value)
