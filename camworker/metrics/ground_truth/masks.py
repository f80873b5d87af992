"""Pixels of mask files: object, background and ignored."""

import contextlib
from collections.abc import Sequence
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from camworker.errors import UsageError

BACKGROUND: Final = 0
OBJECT: Final = 1
IGNORED: Final = 255


def read_mask(mask_paths: Sequence[str], ignore_paths: Sequence[str], size: int = 224) -> NDArray[np.uint8]:
    """Read the masks of one image and label as one.

    Each file is resized by nearest neighbour (cv2.INTER_NEAREST) before they are joined, as in the code of
    Choe et al. (CVPR 2020), so files may differ in size.

    Args:
        mask_paths: Paths of the masks.
        ignore_paths: Paths of the masks of ignored pixels.
        size: Side of the result in pixels.

    Returns:
        uint8 [size, size]: OBJECT in any mask, IGNORED in an ignored region and in no mask, else BACKGROUND.

    Raises:
        UsageError: A file cannot be read as an image.
    """
    is_object, is_ignored = (_any(paths, size) for paths in (mask_paths, ignore_paths))
    joined = np.where(is_ignored, IGNORED, BACKGROUND)
    joined[is_object] = OBJECT
    return joined.astype(np.uint8)


def object_pixels(paths: Sequence[str]) -> NDArray[np.bool_]:
    """Return the pixels that are set in any of the files.

    Args:
        paths: Paths of the masks, at least one.

    Returns:
        bool [H, W] of the first file; the others are resized to it as in `read_mask`.

    Raises:
        UsageError: A file cannot be read as an image.
    """
    set_HW = _set_pixels(paths[0])
    for path in paths[1:]:
        set_HW |= _set_pixels(path, set_HW.shape)
    return set_HW


def _any(paths: Sequence[str], size: int) -> NDArray[np.bool_]:
    """Return the pixels that are set in any of the files, [size, size]."""
    set_SS = np.zeros((size, size), np.bool_)
    for path in paths:
        set_SS |= _set_pixels(path, set_SS.shape)
    return set_SS


def _set_pixels(path: str, shape: tuple[int, ...] | None = None) -> NDArray[np.bool_]:
    """Return where a file is not black, whatever its alpha: [H, W], or `shape` by nearest neighbour."""
    pixels = _decoded(path)
    if shape is not None:
        # Nearest neighbour picks pixels and mixes none, so the test for black can follow it.
        pixels = cv2.resize(pixels, shape[::-1], interpolation=cv2.INTER_NEAREST)
    return pixels > 0 if pixels.ndim == 2 else np.any(pixels[..., :3] > 0, axis=2)


def _decoded(path: str) -> NDArray[np.integer]:
    """Return the samples of an image file, [H, W] or [H, W, channels] with alpha last."""
    pixels: NDArray[np.integer] | None = None
    try:
        # OpenCV raises an error for an empty file and for one that is too large to decode.
        with contextlib.suppress(cv2.error):
            # Converted to grey, 16-bit samples below 256 and the darkest colours would become black.
            pixels = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    except OSError as error:
        raise UsageError(f"the mask {path} cannot be read: {error.strerror}") from error
    if pixels is None:
        raise UsageError(f"the mask {path} cannot be read: it is damaged, not an image, or too large")
    return pixels
