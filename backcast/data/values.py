"""Checks of single values of a row. Errors name the column, not the row."""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import Any

from backcast.data.examples import Image
from backcast.data.images import BrokenImage, verify_image
from backcast.errors import InputError


def checked_text(value: Any, own: str, blank: bool = False) -> str:
    """A text, not blank unless that is allowed."""
    if not isinstance(value, str):
        raise InputError(f"{own!r} must be text, not {type(value).__name__}")
    if not blank and not value.strip():
        raise InputError(f"{own!r} is empty")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InputError(f"{own!r} holds half of a surrogate pair, which is not Unicode text") from None
    return value


def checked_label(value: Any, own: str) -> str | int | float:
    """A number or a text."""
    if not isinstance(value, (str, int, float)):
        raise InputError(f"{own!r} must be a number or text, not {type(value).__name__}")
    return value


class ImageReader:
    """Images as the values of rows, each decoded once, however many rows show the same file.

    Args:
        folder: where relative paths start.
        verify: whether to decode them, or only to say where they are.
    """

    def __init__(self, folder: Path, verify: bool = True) -> None:
        self._folder, self._verify = folder, verify
        self._whole: set[str] = set()

    def __call__(self, value: Any, own: str) -> Image:
        """Encoded bytes or an absolute path, of a path, bytes, a data URL or the struct of an Image feature.

        Raises `BrokenImage` where there is no image or it cannot be decoded, `InputError` for other values.
        """
        if isinstance(value, dict):  # how ``datasets`` stores an Image feature
            value = value.get("bytes") or value.get("path")
        if value is None or value in ("", b""):
            raise BrokenImage(f"{own!r} is empty")
        if not isinstance(value, (str, bytes)):
            raise InputError(f"{own!r} must be a path or encoded bytes, not {type(value).__name__}")
        image = self._located(value, own) if isinstance(value, str) else value
        if not self._verify:
            return image
        if isinstance(image, bytes):
            verify_image(image)
        elif image not in self._whole:
            verify_image(image)
            self._whole.add(image)
        return image

    def many(self, value: Any, own: str) -> list[Image]:
        """Those of a list; of one image; none where there is no value."""
        if value is None:
            return []
        if not isinstance(value, list):
            return [self(value, own)]
        return [self(image, f"{own}[{i}]") for i, image in enumerate(value)]

    def _located(self, value: str, own: str) -> Image:
        if value.startswith(("http://", "https://")):
            raise InputError(
                f"{own!r} is the address {value:.60}; download images first and give their paths"
            )
        if not value.startswith("data:"):
            return str(self._folder / value)
        head, _, data = value.partition(",")
        try:
            if not head.endswith(";base64"):
                raise ValueError("not in base64")
            return base64.b64decode(data, validate=True)
        except (binascii.Error, ValueError) as error:
            raise BrokenImage(
                f"{own!r} is no data URL of an image ({error}); mend it or leave the row out"
            ) from None
