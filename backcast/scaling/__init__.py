"""Scaling laws, worked backwards: tables of results in, the data needed for a score out. Knows nothing of models."""

from backcast.scaling.exponents import Comparison, compare_laws
from backcast.scaling.fit import fit_law
from backcast.scaling.inversion import Inversion
from backcast.scaling.law import Law, Prediction
from backcast.scaling.laws import LAWS
from backcast.scaling.next_run import NextRun, next_run
from backcast.scaling.table import Observation, read_results

__all__ = [
    "LAWS",
    "Comparison",
    "Inversion",
    "Law",
    "NextRun",
    "Observation",
    "Prediction",
    "compare_laws",
    "fit_law",
    "next_run",
    "read_results",
]
