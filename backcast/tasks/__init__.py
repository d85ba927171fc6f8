"""What one example's loss is, for each family of models."""

from backcast.tasks.causal_lm import CausalLMTask, load_causal_lm
from backcast.tasks.classification import (
    ClassificationTask,
    ImageClassificationTask,
    SequenceClassificationTask,
    class_labels,
    load_image_classifier,
    load_sequence_classifier,
)
from backcast.tasks.preference import PreferenceTask
from backcast.tasks.task import Batch, Task, batches, is_conv1d, on_device, packed

__all__ = [
    "Batch",
    "CausalLMTask",
    "ClassificationTask",
    "ImageClassificationTask",
    "PreferenceTask",
    "SequenceClassificationTask",
    "Task",
    "batches",
    "class_labels",
    "is_conv1d",
    "load_causal_lm",
    "load_image_classifier",
    "load_sequence_classifier",
    "on_device",
    "packed",
]
