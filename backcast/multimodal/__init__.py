"""Image-text tasks, and the split of a score by modality."""

from backcast.multimodal.auto import check_same_kind, load_task
from backcast.multimodal.clip import ClipTask, load_clip
from backcast.multimodal.split import MultimodalTask, Split, split

__all__ = ["ClipTask", "MultimodalTask", "Split", "check_same_kind", "load_clip", "load_task", "split"]
