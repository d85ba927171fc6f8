"""The model and the task that suit a user's data."""

from __future__ import annotations

import torch
from torch import nn

from backcast.data import Examples
from backcast.errors import InputError
from backcast.multimodal.clip import ClipTask, load_clip
from backcast.tasks import CausalLMTask, Task, load_causal_lm


def load_task(model: str, pool: Examples) -> tuple[nn.Module, Task]:
    """Load ``model`` as the kind that ``pool``'s fields ask for: CLIP for captioned images, a causal LM for text.

    It is put on a GPU where there is one.

    Args:
        model: a folder or an id, as `load_clip` or `load_causal_lm` takes it.
        pool: the training examples; a CLIP task draws its bank of negatives from them.

    Raises:
        InputError: a model that cannot be loaded, or fields that no task reads.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if _captioned(pool):
        network, preprocess, tokenizer = load_clip(model)
        return network.to(device), ClipTask(preprocess, tokenizer, pool)
    if "image" in pool[0].fields:
        raise InputError(
            f"{pool.dataset}: images without captions; backcast trains image-text pairs and text so far"
        )
    network, tokenizer = load_causal_lm(model)
    return network.to(device), CausalLMTask(tokenizer)


def check_same_kind(pool: Examples, other: Examples) -> None:
    """Raise `InputError` where the task that ``pool`` asks for cannot read ``other``."""
    if _captioned(pool) != _captioned(other):
        kinds = [f"{e.dataset} has {'captioned images' if _captioned(e) else 'text'}" for e in (other, pool)]
        raise InputError(f"{', '.join(kinds)}: both must be of one kind")


def _captioned(examples: Examples) -> bool:
    return {"image", "caption"} <= examples[0].fields.keys()
