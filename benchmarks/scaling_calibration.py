"""Makes the table of residuals that the inverter's intervals are calibrated on.

The development curves: all of `llm_finetune`, `prompt_vs_head` and `few_shot`, and 50 of `lcdb`, each cut 2, 4 and 8
times below its last size (`scaling_curves.cases`). To be run again when the fit changes.

Writes ``backcast/scaling/calibration.csv``: source, reach, residual (see `backcast.scaling.calibration`); with
``--keep`` it keeps the table that is there. Then prints how often a 90 % interval holds on each source when it is
calibrated on the three others. Rows: benchmark, source, measure, value, cases.
"""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path

import numpy as np
from common import HERE, Row, write
from joblib import Parallel, delayed
from scaling_curves import Case, cases, read_curves, sample_of

from backcast.progress import progress
from backcast.scaling import fit_law
from backcast.scaling.calibration import STRETCH, Calibration, Residual, residual, write_residuals

TABLE = HERE.parent / "backcast" / "scaling" / "calibration.csv"
#: Curves of the largest source, and the seed of their draw.
LCDB, SEED = 50, 0


def development(folder: Path) -> list[Case]:
    """The cases of the development curves."""
    curves = read_curves(folder)
    return cases([c for c in curves if c.source != "lcdb"] + sample_of(curves, "lcdb", LCDB, SEED))


def of(case: Case) -> Residual | None:
    """The case's residual under the law of what it shows."""
    law = fit_law(case.runs, higher_is_better=case.curve.higher_is_better, bounds=case.curve.bounds)
    with np.errstate(divide="ignore"):
        log_ratio = np.log(law.n_at(case.target) / case.n_max)
    return residual(log_ratio, float(np.log(case.n_true / case.n_max)), case.curve.source)


def held(table: Calibration, source: str, level: float = 0.9) -> Row:
    """How often the intervals hold on one source's cases, calibrated on the others'."""
    others, mine = table.without(source), [r for r in table.residuals if r.source == source]
    ends = np.array([0.5 * (1 - level), 0.5 * (1 + level)])
    hit = []
    for r in mine:
        low, high = STRETCH * others.quantiles(r.reach, ends)
        hit.append(low <= r.value <= high)
    return {
        "benchmark": "calibration",
        "source": source,
        "measure": "90 % interval holds, source left out",
        "value": float(np.mean(hit)),
        "cases": len(mine),
    }


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument(
        "--data", type=Path, required=True, metavar="DIR", help="the folder that holds learning_curves/"
    )
    parser.add_argument("--keep", action="store_true", help="make no new table")
    parser.add_argument("--json", action="store_true", help="print the results as one JSON object")
    asked = parser.parse_args()
    if not asked.keep:
        found: list[Residual] = []
        questions = development(asked.data)
        with progress("residuals", len(questions)) as done:
            for one in Parallel(n_jobs=-1, return_as="generator")(delayed(of)(case) for case in questions):
                found += [one] if one is not None else []
                done(1)
        write_residuals(str(TABLE), found)
    table = Calibration.shipped()
    rows = [held(table, source) for source in dict.fromkeys(r.source for r in table.residuals)]
    write("scaling_calibration", rows, asked.json)


if __name__ == "__main__":
    main()
