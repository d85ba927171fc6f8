"""Scaling laws, worked backwards: tables of results in, the data needed for a score out. Knows nothing of models."""

from backcast.scaling.exponents import Comparison, compare_laws
from backcast.scaling.fit import fit_law
from backcast.scaling.inversion import Inversion
from backcast.scaling.joint import JointInversion, JointLaw, fit_joint_law
from backcast.scaling.law import Law, Prediction
from backcast.scaling.laws import LAWS
from backcast.scaling.next_run import NextRun, next_run
from backcast.scaling.pooling import pool
from backcast.scaling.preimage import Preimage, preimage
from backcast.scaling.profile import Profile, profile
from backcast.scaling.rounds import Round, plan_round
from backcast.scaling.savings import Savings, savings, savings_curve
from backcast.scaling.table import Observation, read_results

__all__ = [
    "LAWS",
    "Comparison",
    "Inversion",
    "JointInversion",
    "JointLaw",
    "Law",
    "NextRun",
    "Observation",
    "Prediction",
    "Preimage",
    "Profile",
    "Round",
    "Savings",
    "compare_laws",
    "fit_joint_law",
    "fit_law",
    "next_run",
    "plan_round",
    "pool",
    "preimage",
    "profile",
    "read_results",
    "savings",
    "savings_curve",
]
