"""From the score you need back to the data you need.

The public names. Each is imported when it is first used, so that ``import backcast`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from backcast.attribution import (
        Checkpoint,
        GradientIndex,
        Recorder,
        Recording,
        Scores,
        SketchStore,
        attribute,
        collect,
        near_duplicates,
    )
    from backcast.attribution.recording.callback import RecorderCallback
    from backcast.data import Examples, read_examples
    from backcast.finetune import FinetuneConfig, sweep
    from backcast.kernels import SketchSpec
    from backcast.manifests import Manifest, SubsetSampler, check, diff, export, load_subset
    from backcast.multimodal import (
        ClipTask,
        MultimodalTask,
        Parts,
        VisionLanguageTask,
        load_clip,
        load_vision_language,
        split,
    )
    from backcast.report import Report, write_report
    from backcast.scaling import fit_law
    from backcast.selectors import Selection, select
    from backcast.tasks import (
        CausalLMTask,
        ImageClassificationTask,
        PreferenceTask,
        SequenceClassificationTask,
        Task,
        load_causal_lm,
        load_image_classifier,
        load_sequence_classifier,
    )

__version__ = "0.1.0"

__all__ = [
    "CausalLMTask",
    "Checkpoint",
    "ClipTask",
    "Examples",
    "FinetuneConfig",
    "GradientIndex",
    "ImageClassificationTask",
    "Manifest",
    "MultimodalTask",
    "Parts",
    "PreferenceTask",
    "Recorder",
    "RecorderCallback",
    "Recording",
    "Report",
    "Scores",
    "Selection",
    "SequenceClassificationTask",
    "SketchSpec",
    "SketchStore",
    "SubsetSampler",
    "Task",
    "VisionLanguageTask",
    "__version__",
    "attribute",
    "check",
    "collect",
    "diff",
    "export",
    "fit_law",
    "load_causal_lm",
    "load_clip",
    "load_image_classifier",
    "load_sequence_classifier",
    "load_subset",
    "load_vision_language",
    "near_duplicates",
    "read_examples",
    "select",
    "split",
    "sweep",
    "write_report",
]

_FLOORS = {
    "attribution": "Checkpoint GradientIndex Recorder Recording Scores SketchStore attribute collect near_duplicates",
    "attribution.recording.callback": "RecorderCallback",
    "data": "Examples read_examples",
    "finetune": "FinetuneConfig sweep",
    "kernels": "SketchSpec",
    "multimodal": "ClipTask MultimodalTask Parts VisionLanguageTask load_clip load_vision_language split",
    "report": "Report write_report",
    "scaling": "fit_law",
    "manifests": "Manifest SubsetSampler check diff export load_subset",
    "selectors": "Selection select",
    "tasks": "CausalLMTask ImageClassificationTask PreferenceTask SequenceClassificationTask Task load_causal_lm "
    "load_image_classifier load_sequence_classifier",
}
_FLOOR_OF = {name: floor for floor, names in _FLOORS.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name not in _FLOOR_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_FLOOR_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
