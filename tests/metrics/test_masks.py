"""Tests of masks: object, ignored and background pixels, and sizes."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from PIL import Image

from camworker.errors import UsageError
from camworker.metrics.ground_truth.masks import object_pixels, read_mask
from support.factories import encode

LEFT = np.array([[255, 0], [255, 0]], np.uint8)
TOP = np.array([[1, 1], [0, 0]], np.uint8)


def save(path: Path, pixels: np.ndarray | Image.Image) -> str:
    path.write_bytes(encode(pixels, "PNG"))
    return str(path)


def test_masks_are_joined_and_ignore_regions_yield_to_them(tmp_path: Path) -> None:
    left, top = save(tmp_path / "left é #.png", LEFT), save(tmp_path / "top.png", TOP)
    assert read_mask([left], [], 2).tolist() == [[1, 0], [1, 0]]
    assert read_mask([left, top], [], 2).tolist() == [[1, 1], [1, 0]]
    assert read_mask([left], [top], 2).tolist() == [[1, 255], [1, 0]]
    assert read_mask([], [left, top], 2).tolist() == [[255, 255], [255, 0]]
    assert read_mask([], [], 2).tolist() == [[0, 0], [0, 0]]


def test_the_default_size_is_224(tmp_path: Path) -> None:
    mask = read_mask([save(tmp_path / "a.png", LEFT)], [])
    assert (mask.shape, mask.dtype) == ((224, 224), np.uint8)
    assert mask[:, :112].all()
    assert not mask[:, 112:].any()


def test_masks_of_different_sizes_are_resized_first(tmp_path: Path) -> None:
    small = save(tmp_path / "small.png", LEFT)
    large = np.zeros((8, 8), np.uint8)
    large[7, 7] = 255  # no sampled pixel: nearest neighbour takes rows and columns 0, 2, 4, 6
    large[4, 6] = 255
    assert read_mask([small, save(tmp_path / "large.png", large)], [], 4).tolist() == [
        [1, 1, 0, 0],
        [1, 1, 0, 0],
        [1, 1, 0, 1],
        [1, 1, 0, 0],
    ]


def test_object_pixels_are_those_of_the_first_mask_and_of_the_others_at_its_size(tmp_path: Path) -> None:
    wide = save(tmp_path / "wide.png", np.array([[0, 0, 0, 9], [0, 0, 0, 0]], np.uint8))
    left = save(tmp_path / "left.png", LEFT)
    assert object_pixels([wide]).tolist() == [[False, False, False, True], [False] * 4]
    assert object_pixels([wide, left]).tolist() == [[True, True, False, True], [True, True, False, False]]
    assert object_pixels([left, wide]).tolist() == [[True, False], [True, False]]


@given(st_numpy.arrays(np.bool_, (3, 12, 6)), st.integers(1, 4))
def test_nearest_neighbour_takes_pixels_at_a_fixed_step(
    tmp_path_factory: pytest.TempPathFactory, drawn: np.ndarray, step: int
) -> None:
    folder = tmp_path_factory.mktemp("masks")
    # Whole multiples of the size, so that the sampled pixel is no matter of rounding.
    wide = [
        np.kron(mask, np.ones((1, 2), np.uint8)).astype(np.uint8).repeat(step, 0).repeat(step, 1)
        for mask in drawn
    ]
    first, second, ignore = (save(folder / f"{n}.png", mask * 255) for n, mask in enumerate(wide))
    is_object, is_ignored = drawn[0] | drawn[1], drawn[2]
    expected = np.where(is_object, 1, np.where(is_ignored, 255, 0)).repeat(2, 1)
    assert (read_mask([first, second], [ignore], 12) == expected).all()
    assert (read_mask([second, first], [ignore], 12) == expected).all()


@pytest.mark.parametrize("mode", ["1", "L", "P", "I;16", "RGB", "LA", "RGBA"])
def test_every_kind_of_png_counts_what_is_not_black(tmp_path: Path, mode: str) -> None:
    if mode == "I;16":
        image = Image.fromarray((LEFT > 0).astype(np.uint16))
    elif mode == "P":
        image = Image.fromarray((LEFT > 0).astype(np.uint8), "P")
        image.putpalette([0, 0, 0, 0, 0, 1])
    else:
        image = Image.fromarray(LEFT).convert(mode)
    assert image.mode == mode
    assert read_mask([save(tmp_path / "a.png", image)], [], 2).tolist() == [[1, 0], [1, 0]]


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


HUGE = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0))
NOISE = encode(np.random.default_rng(0).integers(0, 256, (50, 50), np.uint8), "PNG")


@pytest.mark.parametrize("data", [b"", b"no image", NOISE[:-40], NOISE[:700] + b"\0" + NOISE[701:], HUGE])
def test_the_error_names_a_damaged_file(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "bad.png"
    path.write_bytes(data)
    good = save(tmp_path / "good.png", LEFT)
    for masks, ignores in (([good, str(path)], []), ([good], [str(path)])):
        with pytest.raises(
            UsageError,
            match=r"the mask \S*/bad\.png cannot be read: it is damaged, not an image, or too large",
        ):
            read_mask(masks, ignores)


def test_the_error_names_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"absent\.png cannot be read: .*No such file"):
        read_mask([str(tmp_path / "absent.png")], [])
