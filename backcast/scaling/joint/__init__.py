"""Joint laws: L(n, epochs), L(n, model size), L(n, share of a source), and the cheapest combination for a target."""

from backcast.scaling.joint.fit import INPUTS, fit_joint_law
from backcast.scaling.joint.inversion import Combination, JointInversion
from backcast.scaling.joint.law import JointLaw, JointPrediction

__all__ = ["INPUTS", "Combination", "JointInversion", "JointLaw", "JointPrediction", "fit_joint_law"]
