"""Makes the table of residuals that the inverter's intervals are calibrated on.

The development curves: all of `llm_finetune`, `prompt_vs_head` and `few_shot`, and 80 of `lcdb`, each cut 2, 4 and 8
times below its last size (`scaling_curves.cases`). To be run again when the fit changes.

Writes ``backcast/scaling/calibration.csv``: source, reach, residual (see `backcast.scaling.calibration`).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from common import HERE, arguments
from joblib import Parallel, delayed
from scaling_curves import Case, cases, read_curves, sample_of

from backcast.progress import progress
from backcast.scaling import fit_law
from backcast.scaling.calibration import Residual, residual, write_residuals

TABLE = HERE.parent / "backcast" / "scaling" / "calibration.csv"
#: Curves of the largest source, and the seed of their draw.
LCDB, SEED = 80, 0


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


def main() -> None:
    args = arguments(__doc__ or "")
    if args.data is None:
        raise SystemExit("--data DIR: the folder that holds learning_curves/")
    found: list[Residual] = []
    asked = development(args.data)
    with progress("residuals", len(asked)) as done:
        for one in Parallel(n_jobs=-1, return_as="generator")(delayed(of)(case) for case in asked):
            found += [one] if one is not None else []
            done(1)
    write_residuals(str(TABLE), found)
    print(f"{len(found)} residuals of {len(asked)} cases: {TABLE.name}")


if __name__ == "__main__":
    main()
