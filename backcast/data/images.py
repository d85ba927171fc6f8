"""Images as fields of an example: encoded bytes or an absolute path."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from backcast.data.examples import image_bytes
from backcast.errors import InputError


class BrokenImage(InputError):
    """An image that is missing or cannot be decoded: the one fault for which a row may be skipped."""


def open_image(image: str | bytes) -> Image.Image:
    """Decode an image field to RGB; an animation gives its first frame, transparency is dropped."""
    with Image.open(io.BytesIO(image_bytes(image))) as opened:
        opened.load()
        if opened.mode.startswith(("I", "F")):
            return _eight_bit(opened).convert("RGB")
        if "transparency" in opened.info:
            return opened.convert("RGBA").convert("RGB")
        return opened.convert("RGB")


def verify_image(image: str | bytes) -> None:
    """Decode an image field to the last pixel; raises `BrokenImage` with the decoder's reason."""
    try:
        with Image.open(io.BytesIO(image_bytes(image))) as opened:
            opened.verify()
        open_image(image)
    except FileNotFoundError:
        raise BrokenImage(
            f"image {str(image)!r} does not exist; mend the path or leave the row out"
        ) from None
    except Exception as error:  # Pillow's decoders raise nearly anything on broken input
        name = "its bytes" if isinstance(image, bytes) else repr(image)
        reason = (
            "not an image"
            if isinstance(error, Image.UnidentifiedImageError)
            else " ".join(str(error).split())
        )
        raise BrokenImage(
            f"image cannot be decoded from {name} ({reason}); mend it or leave the row out"
        ) from None


def _eight_bit(image: Image.Image) -> Image.Image:
    """A deep grey image (16 or 32 bits, or float) at 8 bits; Pillow's own conversion would clip it."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float64))
    peak = values.max()
    full = 65535 if image.mode.startswith("I;16") else next((s for s in (1, 255, 65535) if s >= peak), peak)
    return Image.fromarray(np.clip(values / full * 255, 0, 255).round().astype(np.uint8))
