"""Files that are damaged, too large or not images result in a Failure, never in an exception."""

import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from camworker.errors import Failure
from camworker.images.decode import decode
from support.factories import encode
from support.image_files import PHOTO, pixels, png, with_orientation

pytestmark = pytest.mark.filterwarnings("ignore")  # Pillow warns of damaged metadata and large images.


def status(data: bytes) -> str:
    failure = decode(data)
    assert isinstance(failure, Failure), failure.shape
    assert failure.reason
    return failure.status


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF"])
def test_bytes_after_the_end_do_not_matter(kind):
    data = encode(PHOTO, kind)
    np.testing.assert_array_equal(pixels(data + b"\0 and more"), pixels(data))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF"])
def test_half_a_file_is_a_decode_error(kind):
    data = encode(PHOTO, kind)
    assert status(data[: len(data) // 2]) == "decode_error"


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_truncated_jpeg_is_a_decode_error(mode, options):
    data = encode(Image.fromarray(PHOTO).convert(mode), "JPEG", **options)
    assert status(data[:-2]) == "decode_error"
    assert status(data[: len(data) * 3 // 4]) == "decode_error"


@pytest.mark.parametrize("kind", ["WEBP", "BMP", "TIFF", "AVIF"])
def test_truncated_file_is_a_decode_error(kind):
    assert status(encode(PHOTO, kind)[:-2]) == "decode_error"


def test_corrupt_png_is_a_decode_error():
    data = bytearray(encode(PHOTO, "PNG"))
    data[data.index(b"IDAT") + 20] ^= 0xFF
    assert status(bytes(data)) == "decode_error"
    assert pixels(encode(PHOTO, "PNG")).shape == PHOTO.shape  # The process still decodes.


# The bodies do not hold the pixels that the headers claim, so decoding them would end in decode_error.
@pytest.mark.parametrize(
    ("width", "height"),
    [
        (60_000, 60_000),
        (10_000, 10_001),  # Just over 100 megapixels, below Pillow's own limit.
        (1, 100_000_001),
        (1, 20_000),
        (20_000, 1),
        (1, 201),
        (401, 2),
    ],
)
def test_png_is_refused_by_its_header(width, height):
    assert status(png(width, height)) == "too_large"


@pytest.mark.parametrize(("width", "height"), [(65_500, 65_500), (10_001, 10_000), (20_000, 50)])
def test_jpeg_is_refused_by_its_header(width, height):
    data = bytearray(encode(PHOTO, "JPEG"))
    start = data.index(b"\xff\xc0") + 5  # The frame header is: marker, length, precision, height, width.
    data[start : start + 4] = struct.pack(">HH", height, width)
    assert status(bytes(data)) == "too_large"


def test_largest_and_narrowest_images_are_accepted():
    assert status(png(10_000, 10_000, 1)) == "decode_error"  # The size is accepted, but the body is empty.
    assert pixels(png(1, 200, body=200 * b"\0\7")).shape == (200, 1, 3)
    assert pixels(png(400, 2, body=2 * (b"\0" + 400 * b"\7"))).shape == (2, 400, 3)
    assert pixels(png(1, 1, body=b"\0\7")).tolist() == [[[7, 7, 7]]]


@pytest.mark.parametrize("data", [b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"II*\0"])
def test_empty_file_or_signature_alone_is_a_decode_error(data):
    assert status(data) == "decode_error"


@pytest.mark.parametrize(
    "data",
    [
        b"a photograph\n",
        b"<!DOCTYPE html><html><body>404</body></html>",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        b"%PDF-1.7",
        b"P6\n1 1\n255\nabc",  # An image of a format that Pillow would open.
        b"\0",
        b"RIFF\0\0\0\0WAVEfmt ",
        encode(np.ones((4, 4), np.float32), "TIFF"),
        encode(np.ones((4, 4), np.int32), "TIFF"),
    ],
)
def test_other_files_are_unsupported(data):
    assert status(data) == "unsupported"


# If a JPEG has a resolution in its header, Pillow parses the EXIF block only when it is asked for it.
@pytest.mark.parametrize(
    ("kind", "options"), [("JPEG", {}), ("JPEG", {"dpi": (72, 72)}), ("PNG", {}), ("WEBP", {})]
)
@settings(max_examples=50)
@given(
    st.sampled_from([b"", b"II*\0\x08\0\0\0\x03\0\x12\x01", b"MM\0*\0\0\0\x08\0\x02"]), st.binary(max_size=60)
)
def test_broken_exif_does_not_fail_the_image(kind, options, start, noise):
    damaged = encode(PHOTO, kind, exif=b"Exif\0\0" + start + noise, **options)
    assert sorted(pixels(damaged).shape) == [3, 32, 48]


def test_broken_exif_as_text_does_not_fail_the_image():
    text = PngImagePlugin.PngInfo()
    text.add_text("Raw profile type exif", "\nexif\n 4\nno hex digits")
    np.testing.assert_array_equal(pixels(encode(PHOTO, "PNG", pnginfo=text)), PHOTO)


SIGNATURES = [encode(PHOTO, kind)[:12] for kind in ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF")]


@settings(max_examples=300)
@given(st.sampled_from(SIGNATURES), st.integers(2, 12), st.binary(max_size=300))
def test_noise_after_a_signature_never_raises(signature, length, noise):
    assert isinstance(decode(signature[:length] + noise), torch.Tensor | Failure)


FILES = [encode(PHOTO, "JPEG"), with_orientation("JPEG", 6), encode(PHOTO, "PNG"), encode(PHOTO, "TIFF")]


@settings(max_examples=500)
@given(
    st.sampled_from(FILES),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1),
)
def test_flipped_bytes_never_raise(file, flips):
    data = bytearray(file)
    for position, flip in flips:
        data[int(position * len(data))] ^= flip
    assert isinstance(decode(bytes(data)), torch.Tensor | Failure)
