"""The model and the task that suit a user's data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from backcast.data import Examples
from backcast.errors import InputError
from backcast.multimodal.clip import ClipTask, load_clip, trained_with
from backcast.multimodal.vision_language import VisionLanguageTask, load_vision_language
from backcast.tasks import (
    CausalLMTask,
    ImageClassificationTask,
    SequenceClassificationTask,
    Task,
    class_labels,
    load_causal_lm,
    load_image_classifier,
    load_sequence_classifier,
)


def load_task(
    model: str, pool: Examples, settings: Mapping[str, Any] | None = None
) -> tuple[nn.Module, Task]:
    """Load ``model`` as the kind that ``pool``'s fields ask for; on a GPU where there is one.

    Captioned images ask for CLIP, labelled ones for an image classifier, conversations about images for a
    vision-language model; text for a causal LM, unless it is labelled and the model is a text classifier.

    Args:
        model: a folder or an id, as `load_clip`, `load_image_classifier`, `load_vision_language`,
            `load_sequence_classifier` or `load_causal_lm` takes it.
        pool: the training examples; a CLIP task draws its bank of negatives from them.
        settings: as the task's `Task.settings` told them, e.g. of a store or a recorded run; those of a language
            model, with images or without, are taken over.

    Raises:
        InputError: a model that cannot be loaded, or fields that no task reads.
    """
    network, task = _load(model, pool, settings or {})
    return network.to("cuda" if torch.cuda.is_available() else "cpu"), task


def _load(model: str, pool: Examples, settings: Mapping[str, Any]) -> tuple[nn.Module, Task]:
    kind = _kind(pool)
    language = settings if "reduction" in settings else {}
    if kind == "captioned images":
        network, preprocess, tokenizer = load_clip(model)
        return network, ClipTask(preprocess, tokenizer, pool, loss=trained_with(network))
    if kind == "labelled images":
        network, preprocess = load_image_classifier(model)
        return network, ImageClassificationTask(preprocess, class_labels(network, pool[0]))
    if kind == "conversations about images":
        network, processor = load_vision_language(model)
        return network, VisionLanguageTask(processor, **language)
    if kind == "preference pairs":
        raise InputError(
            f"{pool.dataset}: preference pairs need the model that tuning started from; "
            "use PreferenceTask(tokenizer, reference=...) in Python"
        )
    if "label" in pool[0].fields and _classifies_text(model):
        network, tokenizer = load_sequence_classifier(model)
        return network, SequenceClassificationTask(tokenizer, class_labels(network, pool[0]))
    network, tokenizer = load_causal_lm(model)
    return network, CausalLMTask(tokenizer, **language)


def check_same_kind(pool: Examples, other: Examples) -> None:
    """Raise `InputError` where the task that ``pool`` asks for cannot read ``other``.

    Conversations about images may stand beside conversations about none.
    """
    if _kind(other) not in (_kind(pool), *(["text"] if _kind(pool) == "conversations about images" else [])):
        kinds = [f"{examples.dataset} has {_kind(examples)}" for examples in (other, pool)]
        raise InputError(f"{', '.join(kinds)}: both must be of one kind")


def _kind(examples: Examples) -> str:
    fields = examples[0].fields.keys()
    if "caption" in fields:
        return "captioned images"
    if any("images" in e.fields or {"image", "response"} <= e.fields.keys() for e in examples):
        return "conversations about images"
    if "image" in fields:
        return "labelled images"
    return "preference pairs" if "chosen" in fields else "text"


def _classifies_text(model: str) -> bool:
    """Whether the model's configuration names a text classifier; none that can be read names nothing."""
    from transformers import AutoConfig

    try:
        architectures = AutoConfig.from_pretrained(model).architectures or []
    except (OSError, ValueError):
        return False
    return any(name.endswith("ForSequenceClassification") for name in architectures)
