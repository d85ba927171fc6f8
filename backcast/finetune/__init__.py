"""One run on one subset, and sweeps over budgets × selectors × seeds."""

from backcast.finetune.by_modality import aligned, by_modality, laws_by_modality
from backcast.finetune.runs import Run, random_runs
from backcast.finetune.sweep import sweep
from backcast.finetune.train import FinetuneConfig, finetune

__all__ = [
    "FinetuneConfig",
    "Run",
    "aligned",
    "by_modality",
    "finetune",
    "laws_by_modality",
    "random_runs",
    "sweep",
]
