"""Collect → store → scores, and the index over a store."""

from backcast.attribution.attribute import attribute
from backcast.attribution.checkpoints import Checkpoint
from backcast.attribution.collect import collect
from backcast.attribution.duplicates import near_duplicates
from backcast.attribution.estimators import ESTIMATORS
from backcast.attribution.index import GradientIndex
from backcast.attribution.recording import Recorder, Recording
from backcast.attribution.scores import Scores
from backcast.attribution.store import SketchStore

__all__ = [
    "ESTIMATORS",
    "Checkpoint",
    "GradientIndex",
    "Recorder",
    "Recording",
    "Scores",
    "SketchStore",
    "attribute",
    "collect",
    "near_duplicates",
]
