"""The tensors of a safetensors file, mapped into memory."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

_TYPES = {"F32": "<f4", "F16": "<f2", "I8": "i1", "U8": "u1"}


def map_tensors(path: str | Path) -> dict[str, np.memmap]:
    """name → tensor; nothing is read but the header, and the file must be whole."""
    with open(path, "rb") as file:
        start = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(start))
    header.pop("__metadata__", None)
    return {
        name: np.memmap(path, _TYPES[t["dtype"]], "r", 8 + start + t["data_offsets"][0], tuple(t["shape"]))
        for name, t in header.items()
    }
