"""Pictures as data URIs: an example's image, and where in it the image's part of the score lies."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from backcast.data.images import open_image, verify_image
from backcast.errors import InputError

#: The longest edge in pixels: larger pictures are shrunk to it, smaller ones enlarged by the largest whole factor that
#: fits, pixel by pixel, so that a scan of 32 × 32 can be seen.
EDGE = 320
#: Where a patch adds to the score, and where it takes away: blue and orange stay apart for the colour-blind.
HELPS, HARMS = np.array([45, 125, 255.0]), np.array([255, 135, 15.0])
#: The picture that shines through the strongest patch.
THROUGH = 0.25


def picture(path: Path) -> str:
    """A data URI of an image file.

    Raises:
        InputError: the file is missing or cannot be decoded.
    """
    return _data_uri(*_framed(path))


def heat_map(path: Path, patches: Sequence[Sequence[float]]) -> str:
    """A data URI of the image in grey under its patches (h, w), on a scale of its own that is centred at zero.

    Raises:
        InputError: as `picture`.
    """
    image, form = _framed(path)
    under = np.asarray(image.convert("L").convert("RGB"), dtype=float)
    values = np.array(patches, dtype=np.float32)
    values /= np.abs(values).max() or 1.0
    enlarged = Image.fromarray(values).resize(image.size, Image.Resampling.NEAREST)
    signed = np.asarray(enlarged, dtype=float)[..., None]
    opacity = (1 - THROUGH) * np.abs(signed)
    mixed = (1 - opacity) * under + opacity * np.where(signed > 0, HELPS, HARMS)
    return _data_uri(Image.fromarray(mixed.round().astype(np.uint8)), form)


def _framed(path: Path) -> tuple[Image.Image, str]:
    """The image at its size on the page, and its format there: sharp pixels as PNG, photographs as JPEG."""
    try:
        verify_image(str(path))
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    image = open_image(str(path))
    factor = EDGE // max(image.size)
    if factor > 1:
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST), "PNG"
    image.thumbnail((EDGE, EDGE), Image.Resampling.LANCZOS)
    return image, "JPEG"


def _data_uri(image: Image.Image, form: str) -> str:
    file = io.BytesIO()
    image.save(file, form, optimize=True, quality=85)
    return f"data:image/{form.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
