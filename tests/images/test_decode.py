"""Images of every kind are decoded to upright RGB, and resized as Pillow resizes them."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from camworker.frame import Frame
from camworker.images.decode import network_input
from support.factories import encode
from support.image_files import LOSSLESS, PHOTO, pixels, png, with_orientation


def gray(values: np.ndarray | list[int]) -> np.ndarray:
    """Return one row of gray values as RGB pixels."""
    return np.repeat(np.array([values])[:, :, None], 3, axis=2)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"quality": 95, "subsampling": 0}])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_jpeg_equals_pillows(mode, options):
    data = encode(Image.fromarray(PHOTO).convert(mode), "JPEG", **options)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    # Two builds of libjpeg differ by a level or two, by rounding in color conversion and upsampling.
    assert np.abs(pixels(data) - expected).max() <= 2


def test_cmyk_jpeg():
    inks = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # Magenta and yellow make red.
    np.testing.assert_allclose(pixels(encode(inks, "JPEG")), np.full((16, 16, 3), [255, 0, 0]), atol=3)


def test_multi_picture_jpeg_gives_the_first_picture():
    red, blue = (Image.new("RGB", (16, 8), color) for color in ("red", "blue"))
    data = encode(red, "MPO", save_all=True, append_images=[blue])  # Written by phones and stereo cameras.
    assert Image.open(io.BytesIO(data)).format == "MPO"
    np.testing.assert_allclose(pixels(data), np.full((8, 16, 3), [255, 0, 0]), atol=3)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP"])
def test_lossless_formats(kind):
    np.testing.assert_array_equal(pixels(encode(PHOTO, kind, **LOSSLESS.get(kind, {}))), PHOTO)


@pytest.mark.parametrize("kind", ["AVIF"])
def test_avif(kind):
    assert np.abs(pixels(encode(PHOTO, kind, quality=95)) - PHOTO.astype(int)).mean() < 3


@pytest.mark.parametrize("orientation", [*range(1, 9), 0, 9])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_exif_orientation(kind, orientation):
    data = with_orientation(kind, orientation)
    turned = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    assert turned.size == ((32, 48) if orientation in range(5, 9) else (48, 32))
    np.testing.assert_allclose(pixels(data), np.asarray(turned), atol=2 if kind == "JPEG" else 0)


def test_orientation_of_a_tiff_is_applied_once():
    data = encode(PHOTO, "TIFF", tiffinfo={0x0112: 6})
    np.testing.assert_array_equal(pixels(data), np.rot90(PHOTO, -1))  # 6 means a clockwise turn.


def test_16_bit_gray_is_scaled():
    values = [0, 128, 129, 257, 32896, 65406, 65407, 65535]
    expected = gray([0, 0, 1, 1, 128, 254, 255, 255])
    samples = np.array([values], np.uint16)
    for data in (
        encode(samples, "PNG"),
        encode(samples, "TIFF"),
        encode(samples.astype(">u2"), "TIFF"),
        png(8, 1, 16, body=b"\0" + samples.astype(">u2").tobytes()),
    ):
        np.testing.assert_array_equal(pixels(data), expected)


def test_transparent_16_bit_gray_is_composited_over_white():
    data = png(2, 1, 16, body=b"\0" + struct.pack(">2H", 0, 32896))
    transparent = struct.pack(">I", 2) + b"tRNS\0\0" + struct.pack(">I", zlib.crc32(b"tRNS\0\0"))
    np.testing.assert_array_equal(pixels(data[:33] + transparent + data[33:]), gray([255, 128]))


def test_16_bit_color_is_scaled():
    data = png(2, 1, 16, color=2, body=b"\0" + struct.pack(">6H", 0, 257, 65535, 32896, 514, 771))
    np.testing.assert_array_equal(pixels(data), [[[0, 1, 255], [128, 2, 3]]])


def test_palette():
    image = Image.new("P", (3, 1))
    image.putpalette([255, 0, 0, 0, 255, 0, 10, 20, 30])
    image.putdata([0, 1, 2])
    expected = np.array([[[255, 0, 0], [0, 255, 0], [10, 20, 30]]])
    for kind in ("PNG", "GIF", "BMP"):
        np.testing.assert_array_equal(pixels(encode(image, kind)), expected)
    expected[0, 1] = 255
    for kind in ("PNG", "GIF"):
        np.testing.assert_array_equal(pixels(encode(image, kind, transparency=1)), expected)
    # One alpha per palette entry: 20 at half opacity is 20 * 128 / 255 + 127.
    half = pixels(encode(image, "PNG", transparency=bytes([255, 255, 128])))
    np.testing.assert_allclose(half[0, 2], [132, 137, 142], atol=1)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_alpha_is_composited_over_white(kind):
    rgba = np.array([[[0, 0, 0, 0], [0, 0, 0, 128], [200, 100, 0, 255], [255, 0, 0, 51]]], np.uint8)
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    expected = [[[255, 255, 255], [127, 127, 127], [200, 100, 0], [255, 204, 204]]]
    np.testing.assert_allclose(pixels(encode(rgba, kind, **options)), expected, atol=1)


def test_gray_with_alpha_is_composited_over_white():
    image = Image.fromarray(np.array([[[0, 0], [0, 128], [100, 255]]], np.uint8), "LA")
    np.testing.assert_allclose(pixels(encode(image, "PNG")), gray([255, 127, 100]), atol=1)


def test_transparent_color_is_composited_over_white():
    rgb = np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8)
    expected = [[[255, 255, 255], [4, 5, 6]]]
    np.testing.assert_array_equal(pixels(encode(rgb, "PNG", transparency=(1, 2, 3))), expected)
    levels = np.array([[7, 9]], np.uint8)
    np.testing.assert_array_equal(pixels(encode(levels, "PNG", transparency=9)), gray([7, 255]))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF"])
def test_one_bit_images(kind):
    image = Image.fromarray(np.array([[True, False, True]]))
    assert image.mode == "1"
    np.testing.assert_array_equal(pixels(encode(image, kind)), gray([255, 0, 255]))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_animations_give_the_first_frame(kind):
    colors = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    first, *rest = [Image.new("RGB", (8, 6), color) for color in colors]
    data = encode(first, kind, save_all=True, append_images=rest, **LOSSLESS.get(kind, {}))
    assert Image.open(io.BytesIO(data)).n_frames == 3
    np.testing.assert_array_equal(pixels(data), np.full((6, 8, 3), [255, 0, 0]))


@pytest.fixture(scope="module")
def photo():
    from skimage import data

    return data.chelsea()


def resized(photo: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(Image.fromarray(photo).resize(size, Image.Resampling.BILINEAR)).astype(int)


@pytest.mark.parametrize("shrink", [1, 3])  # Antialiasing makes a difference only for shrinking.
def test_network_input_equals_pillows_antialiased_bilinear_resize(photo, shrink):
    frame = Frame(451, 300, 224 // shrink)
    got = network_input(torch.from_numpy(photo).permute(2, 0, 1), frame)
    assert got.dtype == torch.uint8
    assert got.shape == (3, frame.input_size, frame.input_size)
    difference = np.abs(got.permute(1, 2, 0).numpy() - resized(photo, frame.resized))
    assert difference.max() <= 1  # Both use fixed point and round after each direction.
    assert difference.mean() < 0.1


@pytest.mark.parametrize("turn", [0, 1])
def test_network_input_crops_the_centre(photo, turn):
    photo = np.rot90(photo, turn).copy()
    height, width = photo.shape[:2]
    frame = Frame(width, height, 128, "crop")
    got = network_input(torch.from_numpy(photo).permute(2, 0, 1), frame)
    x, y = ((side - 128) // 2 for side in frame.resized)
    assert max(x, y) == 32  # 451 x 300 becomes 192 x 128.
    expected = resized(photo, frame.resized)[y : y + 128, x : x + 128]
    assert got.shape == (3, 128, 128)
    assert np.abs(got.permute(1, 2, 0).numpy() - expected).max() <= 1


def test_network_input_enlarges():
    got = network_input(torch.tensor([[[0, 100]]] * 3, dtype=torch.uint8), Frame(2, 1, 4))
    assert got[0].tolist() == [[0, 25, 75, 100]] * 4  # Half-pixel centres: 1/4 and 3/4 of the way.
