"""Points on a training run at which gradients are taken."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from backcast.errors import InputError
from backcast.files import sha256

WEIGHT_FILES = (
    "model.safetensors",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "open_clip_pytorch_model.bin",
)


@dataclass(frozen=True)
class Checkpoint:
    """Weights of one point on a training run.

    Args:
        path: a ``.safetensors`` file, a torch file (read with ``weights_only=True``), or a folder that holds one.
        learning_rate: η of the steps around it: TracIn's weight of this checkpoint.
    """

    path: str
    learning_rate: float = 1.0

    def weights(self) -> dict[str, Tensor]:
        """The state dict; raises `InputError` where there is none that can be read."""
        path = Path(self.path)
        if path.is_dir():
            found = [path / name for name in WEIGHT_FILES if (path / name).is_file()]
            if not found:
                raise InputError(
                    f"{path}: no weights in this folder; it needs one of {', '.join(WEIGHT_FILES)}"
                )
            path = found[0]
        try:
            if path.suffix == ".safetensors":
                return load_file(path)
            weights = torch.load(path, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            raise InputError(f"{path}: no such checkpoint") from None
        except Exception as error:  # a broken file makes the readers raise anything
            raise InputError(
                f"{path}: not a readable checkpoint ({' '.join(str(error).split())[:120]})"
            ) from None
        if not isinstance(weights, dict):
            raise InputError(f"{path}: holds a {type(weights).__name__}, not a state dict of named tensors")
        return weights


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], path: str) -> None:
    """Load a checkpoint's weights; raises `InputError`, and loads none, where they are not this model's."""
    own = model.state_dict()
    parameters = {name for name, _ in model.named_parameters()}  # a shared one once: it may be saved once
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


def weights_hash(model: nn.Module) -> str:
    """SHA-256 over the model's parameters and persistent buffers, by name."""
    digests = (f"{name} {_bytes_hash(value)}" for name, value in sorted(model.state_dict().items()))
    return sha256("\n".join(digests))


def _bytes_hash(value: Any) -> str:
    if not isinstance(value, Tensor):
        return sha256(repr(value))
    return sha256(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
