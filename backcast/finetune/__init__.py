"""One run on one subset, and sweeps over budgets × selectors × seeds."""

from backcast.finetune.by_modality import aligned, by_modality, laws_by_modality
from backcast.finetune.sweep import Run, sweep
from backcast.finetune.train import FinetuneConfig, finetune

__all__ = ["FinetuneConfig", "Run", "aligned", "by_modality", "finetune", "laws_by_modality", "sweep"]
