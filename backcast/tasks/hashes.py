"""What tells one model's weights from another's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from backcast.files import sha256


def weights_hash(model: nn.Module) -> str:
    """SHA-256 over the model's parameters and persistent buffers, by name."""
    digests = (f"{name} {bytes_hash(value)}" for name, value in sorted(model.state_dict().items()))
    return sha256("\n".join(digests))


def bytes_hash(value: Any) -> str:
    """SHA-256 of a tensor's bytes, or of how else a value is written."""
    if not isinstance(value, Tensor):
        return sha256(repr(value))
    return sha256(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
