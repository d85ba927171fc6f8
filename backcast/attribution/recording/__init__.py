"""Training runs, recorded step by step."""

from backcast.attribution.recording.recorder import Recorder
from backcast.attribution.recording.recording import OptimizerSpec, Recording, Step

__all__ = ["OptimizerSpec", "Recorder", "Recording", "Step"]
