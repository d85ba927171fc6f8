"""Recorded training runs, run again with other weights of the examples, and differentiated."""

from backcast.attribution.replay.adjoint import example_derivatives
from backcast.attribution.replay.trajectory import Trajectory

__all__ = ["Trajectory", "example_derivatives"]
