"""How well does the inverter extrapolate, how often do its intervals hold, what is it sure of, and how fast is it?

Sections, each a module beside this one that says what is measured: extrapolation, intervals, unreachable, speed.
Fits are kept under runs/scaling, apart for each state of the inverter's code; its calibration is none of them, so that
the table is made anew in seconds where only that changes. About 600 fits.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from common import write
from scaling_curves import read_curves
from scaling_extrapolation import extrapolation
from scaling_intervals import SOURCES, intervals
from scaling_speed import speed
from scaling_unreachable import unreachable


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a few curves of each kind: a few minutes")
    parser.add_argument("--json", action="store_true", help="print the results as one JSON object")
    parser.add_argument("--data", type=Path, metavar="DIR", required=True)
    parser.add_argument(
        "--workers", type=int, default=1, metavar="N", help="processes that fit (one by default)"
    )
    parser.add_argument("--only", choices=("extrapolation", "intervals", "unreachable", "speed"))
    asked = parser.parse_args()
    how = (asked.quick, asked.workers)
    curves = read_curves(asked.data, SOURCES)
    sections = {
        "extrapolation": lambda: extrapolation(asked.data, *how),
        "intervals": lambda: intervals(curves, *how),
        "unreachable": lambda: unreachable(curves, *how),
        "speed": lambda: speed(asked.quick),
    }
    rows = [row for name in ([asked.only] if asked.only else sections) for row in sections[name]()]
    name = "-".join(["scaling", *([asked.only] if asked.only else []), *(["quick"] if asked.quick else [])])
    write(name, rows, asked.json)


if __name__ == "__main__":
    main()
