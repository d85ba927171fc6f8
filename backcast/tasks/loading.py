"""Models of the transformers library with what prepares their input."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from backcast.errors import InputError


def load_pretrained(
    path: str,
    model_class: Any,
    companion_class: Any,
    kind: str,
    companion: str,
    trust_remote_code: bool = False,
) -> tuple[nn.Module, Any]:
    """A model in float32 and its tokenizer or image processor, from a folder or a hub id.

    Args:
        path: where they are.
        model_class, companion_class: of transformers, ``AutoModel...`` and ``AutoTokenizer`` or alike.
        kind, companion: what messages call the two.
        trust_remote_code: whether code of the hub may run.

    Raises:
        InputError: one of the two cannot be loaded, or weights are missing.
    """
    logging.getLogger("transformers").setLevel(logging.ERROR)
    try:
        prepare = companion_class.from_pretrained(path, trust_remote_code=trust_remote_code)
        loaded: Any = model_class.from_pretrained(
            path, dtype=torch.float32, trust_remote_code=trust_remote_code, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        where = "folder" if Path(path).is_dir() else "folder or hub id"
        raise InputError(
            f"{path}: no {kind} in this {where} ({reason}); "
            f"it needs config.json, weights (model.safetensors) and {companion}"
        ) from None
    model, found = loaded
    missing = found["missing_keys"]  # drawn at random by transformers
    if missing:
        raise InputError(
            f"{path}: {len(missing)} of the model's weights are missing, {min(missing)} for one; "
            "save the whole model there"
        )
    return model, prepare
