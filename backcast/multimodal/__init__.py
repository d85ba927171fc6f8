"""Image-text tasks, and the split of a score by modality."""

from backcast.multimodal.auto import check_same_kind, load_task
from backcast.multimodal.clip import ClipTask, load_clip, trained_with
from backcast.multimodal.parts import Parts, Split
from backcast.multimodal.split import split
from backcast.multimodal.task import MultimodalTask
from backcast.multimodal.vision_language import VisionLanguageTask, load_vision_language

__all__ = [
    "ClipTask",
    "MultimodalTask",
    "Parts",
    "Split",
    "VisionLanguageTask",
    "check_same_kind",
    "load_clip",
    "load_task",
    "load_vision_language",
    "split",
    "trained_with",
]
