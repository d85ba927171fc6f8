"""Points on a training run at which gradients are taken."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from backcast.errors import InputError
from backcast.files import read_json

WEIGHT_FILES = (
    "model.safetensors",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "open_clip_pytorch_model.bin",
    "adapter_model.safetensors",
)
#: What names the file of each weight, where there are several.
INDEX_FILES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


@dataclass(frozen=True)
class Checkpoint:
    """Weights of one point on a training run.

    Args:
        path: a ``.safetensors`` file, a torch file (read with ``weights_only=True``), the ``.index.json`` of several,
            or a folder that holds one of these.
        learning_rate: η of the steps around it: TracIn's weight of this checkpoint.
        optimizer: the file or folder of the optimizer's state at that point, as `optimizer_state` reads it; for
            directions of Adam.
    """

    path: str
    learning_rate: float = 1.0
    optimizer: str | None = None

    def weights(self) -> dict[str, Tensor]:
        """The state dict; raises `InputError` where there is none that can be read."""
        path = Path(self.path)
        if path.is_dir():
            found = [path / name for name in WEIGHT_FILES + INDEX_FILES if (path / name).is_file()]
            if not found:
                raise InputError(
                    f"{path}: no weights in this folder; it needs one of {', '.join(WEIGHT_FILES)}"
                )
            path = found[0]
        if path.name.endswith(".index.json"):
            return {name: value for part in _indexed(path) for name, value in read_tensors(part).items()}
        return read_tensors(path)


def _indexed(index: Path) -> list[Path]:
    """The files that an index names, each once."""
    value = read_json(index)
    files = value.get("weight_map") if isinstance(value, dict) else None
    if not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()):
        raise InputError(
            f"{index}: not an index of weights (no weight_map of file names); save the model again"
        )
    return [index.parent / name for name in sorted(set(files.values()))]


def read_tensors(path: Path) -> dict[Any, Any]:
    """What a ``.safetensors`` or torch file holds, on the CPU; raises `InputError` where that is no dict."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{path}: no such checkpoint") from None
    except Exception as error:  # a broken file makes the readers raise anything
        raise InputError(
            f"{path}: not a readable checkpoint ({' '.join(str(error).split())[:120]})"
        ) from None
    if not isinstance(tensors, dict):
        raise InputError(f"{path}: holds a {type(tensors).__name__}, not a state dict of named tensors")
    return tensors


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], path: str) -> None:
    """Load a checkpoint's weights; raises `InputError`, and loads none, where they are not this model's.

    Of a PEFT model with one adapter they may be the adapter's alone, as PEFT saves it.
    """
    own = model.state_dict()
    parameters = {name for name, _ in model.named_parameters()}  # a shared one once: it may be saved once
    adapter = _adapter_names(model)
    if adapter and weights.keys() <= adapter.keys():
        parameters = set(adapter.values())
        weights = {adapter[name]: value for name, value in weights.items()}
    odd = (weights.keys() - own.keys()) | (parameters - weights.keys())
    if odd:
        raise InputError(f"{path}: not a checkpoint of this model (for one, {min(odd)} does not fit)")
    for name, value in own.items():
        if name in weights and weights[name].shape != value.shape:
            raise InputError(
                f"{path}: {name} has shape {tuple(weights[name].shape)}, this model's {tuple(value.shape)}; "
                "take a checkpoint of the same architecture"
            )
    model.load_state_dict(weights, strict=False)


def _adapter_names(model: nn.Module) -> dict[str, str]:
    """What PEFT's files call each weight of the model's one adapter → its name in the model."""
    adapters = list(getattr(model, "peft_config", {}))
    if len(adapters) != 1:
        return {}
    infix = re.compile(rf"(\.modules_to_save)?\.{re.escape(adapters[0])}(?=\.|$)")
    return {infix.sub("", name): name for name in model.state_dict() if infix.search(name)}
