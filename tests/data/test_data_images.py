"""Decoding and verifying images of every mode."""

import io

import numpy as np
import pytest
from PIL import Image

from backcast.data import open_image
from backcast.data.images import verify_image
from backcast.errors import InputError


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_every_png_mode_opens_as_rgb(mode):
    image = encoded(Image.new(mode, (5, 4)))
    verify_image(image)
    opened = open_image(image)
    assert (opened.mode, opened.size) == ("RGB", (5, 4))


@pytest.mark.parametrize(
    ("mode", "format"), [("CMYK", "JPEG"), ("F", "TIFF"), ("I", "TIFF"), ("RGB", "WEBP")]
)
def test_other_formats_open_as_rgb(mode, format):
    image = encoded(Image.new(mode, (5, 4)), format)
    verify_image(image)
    assert open_image(image).mode == "RGB"


def test_sixteen_bit_grey_keeps_its_range():
    ramp = np.array([[0, 257 * 100, 65535]], dtype=np.uint16)
    opened = np.asarray(open_image(encoded(Image.fromarray(ramp))))
    assert opened[0].tolist() == [[0] * 3, [100] * 3, [255] * 3]


@pytest.mark.parametrize(("peak", "expected"), [(1.0, 255), (200.0, 200), (65535.0, 255)])
def test_float_grey_is_scaled_by_the_range_it_uses(peak, expected):
    image = encoded(Image.fromarray(np.array([[0, peak]], dtype=np.float32)), "TIFF")
    assert np.asarray(open_image(image))[0, :, 0].tolist() == [0, expected]


def test_animation_gives_its_first_frame():
    red, blue = Image.new("RGB", (4, 4), (255, 0, 0)), Image.new("RGB", (4, 4), (0, 0, 255))
    animated = encoded(red, "GIF", save_all=True, append_images=[blue])
    verify_image(animated)
    assert open_image(animated).getpixel((0, 0)) == (255, 0, 0)


def test_a_file_and_its_bytes_are_the_same_image(tmp_path):
    data = encoded(Image.effect_noise((8, 8), 50))
    (tmp_path / "a.png").write_bytes(data)
    assert np.array_equal(open_image(str(tmp_path / "a.png")), open_image(data))


def test_broken_images_are_told_apart(tmp_path):
    jpeg = encoded(Image.effect_noise((64, 64), 50).convert("RGB"), "JPEG")
    png = encoded(Image.effect_noise((64, 64), 50))
    flipped = bytearray(png)
    flipped[len(png) // 2] ^= 0xFF
    for broken, reason in [
        (b"hello", "not an image"),
        (b"", "not an image"),
        (jpeg[: len(jpeg) // 2], "truncated"),
        (png[: len(png) // 2], "decoded"),
        (bytes(flipped), "decoded"),
        (str(tmp_path), "decoded"),
        (str(tmp_path / "none.png"), "does not exist"),
    ]:
        with pytest.raises(InputError, match=reason) as caught:
            verify_image(broken)
        assert "\n" not in str(caught.value)
