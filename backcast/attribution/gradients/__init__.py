"""From a backward pass to each example's gradient: hooks, and what every type of module contributes."""

from backcast.attribution.gradients.capture import GradientCapture, tracked_parts
from backcast.attribution.gradients.opened import opened

__all__ = ["GradientCapture", "opened", "tracked_parts"]
