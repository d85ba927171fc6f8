"""Pictures as data URIs: an example's image, and where in it the image's part of the score lies."""

from __future__ import annotations

import base64
import io
import math
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
#: |log| of the largest factor between the forms of an image and of its patches, which come in whole numbers.
FORM = math.log(1.2)


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


def is_wide(path: Path) -> bool:
    """Whether a picture needs a line of its own. Raises `InputError` as `picture`."""
    image, _ = _framed(path)
    return image.width > 1.6 * image.height


def side_by_side(images: Sequence[Image.Image], patches: np.ndarray) -> tuple[Image.Image, bool]:
    """One picture of an example's images, and whether the patches (h, w) of all of them can be laid over it.

    Several images have their patches side by side, from the top, with zeros below the lower ones. Each is shown as
    large as its patches are. Those of an image that was cut into tiles stand side by side too, and are not where the
    tiles were: such images keep their sizes.
    """
    if len(images) == 1:
        height, width = patches.shape
        whole, covered = images[0].copy(), height == width > 0 or _off(images[0], height, width) < FORM
    else:
        sizes = _sizes(images, patches)
        covered = sizes is not None
        if sizes:
            edge = max(1, min(2 * EDGE // max(patches.shape), round(images[0].height / sizes[0][0])))
            images = [
                image.resize((edge * width, edge * height), Image.Resampling.BICUBIC)
                for image, (height, width) in zip(images, sizes, strict=True)
            ]
        whole = _row(images)
    whole.thumbnail((2 * EDGE, 2 * EDGE), Image.Resampling.LANCZOS)
    return whole, covered


def _sizes(images: Sequence[Image.Image], patches: np.ndarray) -> list[tuple[int, int]] | None:
    """(h, w) of each image's own patches among all: equal squares, where there is one for each image, else those whose
    forms are together nearest to the images'; None where one's is too far off."""
    h, w = patches.shape
    heights = [int(rows.max(initial=1)) for rows in (patches != 0).T * np.arange(1, h + 1)]
    if w == len(images) * h and 0 < h == min(heights):
        return [(h, h)] * len(images)
    best: dict[int, tuple[float, list[tuple[int, int]]]] = {0: (0.0, [])}
    for image in images:
        found: dict[int, tuple[float, list[tuple[int, int]]]] = {}
        for left, (before, sizes) in best.items():
            own = 1
            for right in range(left + 1, w + 1):
                own = max(own, heights[right - 1])
                off = before + _off(image, own, right - left)
                if right not in found or off < found[right][0]:
                    found[right] = (off, [*sizes, (own, right - left)])
        best = found
    _, sizes = best.get(w, (0.0, []))
    fit = sizes and all(_off(image, *size) < FORM for image, size in zip(images, sizes, strict=True))
    return sizes if fit else None


def _off(image: Image.Image, height: int, width: int) -> float:
    """|log| of the factor between an image's form and that of its patches."""
    return abs(math.log(width * image.height / (height * image.width))) if height and width else math.inf


def _row(images: Sequence[Image.Image]) -> Image.Image:
    whole = Image.new("RGB", (sum(i.width for i in images), max(i.height for i in images)), "white")
    left = 0
    for image in images:
        whole.paste(image, (left, 0))
        left += image.width
    return whole


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
