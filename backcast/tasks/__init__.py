"""What one example's loss is, for each family of models."""

from backcast.tasks.causal_lm import CausalLMTask, load_causal_lm
from backcast.tasks.task import Batch, Task, batches, is_conv1d, on_device, packed

__all__ = ["Batch", "CausalLMTask", "Task", "batches", "is_conv1d", "load_causal_lm", "on_device", "packed"]
