"""Training runs, recorded step by step."""

from backcast.attribution.recording.recording import OptimizerSpec, Recording, Step

__all__ = ["OptimizerSpec", "Recording", "Step"]
