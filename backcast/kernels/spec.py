"""What a sketch is: two stores compare only if their specs are equal."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from backcast.errors import InputError

#: Raised whenever any kind's numbers change, so that old stores are never compared with new ones.
VERSION = 1


@dataclass(frozen=True)
class SketchSpec:
    """A random projection S of a model's gradient to ``dim`` numbers, with E⟨Sx, Sy⟩ = ⟨x, y⟩.

    Layer l's operator S_l depends on (version, seed, the layer's name, its shape) alone, never on batch,
    device or launch; a model's sketch is Σ_l S_l g_l.

    Args:
        kind: one of `backcast.kernels.KINDS`.
        dim: k, the sketch's length.
        seed: of every random sign and bucket.
    """

    kind: str = "kron"
    dim: int = 1024
    seed: int = 0
    version: int = VERSION

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> SketchSpec:
        spec = cls(**value)
        if spec.version != VERSION:
            raise InputError(
                f"sketch spec version {spec.version} is another backcast's (this one writes {VERSION}); "
                "collect the store again"
            )
        return spec
