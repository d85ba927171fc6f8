"""One run on one subset, and sweeps over budgets × selectors × seeds."""

from backcast.finetune.sweep import Run, sweep
from backcast.finetune.train import FinetuneConfig, finetune

__all__ = ["FinetuneConfig", "Run", "finetune", "sweep"]
