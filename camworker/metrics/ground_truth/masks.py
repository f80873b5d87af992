"""Mask files -> one array of object, background and ignored pixels. OpenCV and NumPy only."""

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
    """The masks of one image and label, joined: uint8 [size, size].

    1 in any mask, 255 in an ignore region and in no mask, 0 elsewhere. Each file is resized by nearest
    neighbour (cv2.INTER_NEAREST) before they are joined, as Choe et al. 2020 do; files need not be of
    one size. Raises UsageError for a file that cannot be read as an image.
    """
    is_object, is_ignored = (_any(paths, size) for paths in (mask_paths, ignore_paths))
    joined = np.where(is_ignored, IGNORED, BACKGROUND)
    joined[is_object] = OBJECT
    return joined.astype(np.uint8)


def object_pixels(paths: Sequence[str]) -> NDArray[np.bool_]:
    """Pixels that are set in any of the files, [H, W] of the first; others are resized as read_mask does.

    paths: at least one. Raises UsageError for a file that cannot be read as an image.
    """
    set_HW = _set_pixels(paths[0])
    for path in paths[1:]:
        set_HW |= _set_pixels(path, set_HW.shape)
    return set_HW


def _any(paths: Sequence[str], size: int) -> NDArray[np.bool_]:
    """Pixels that are set in any of the files, [size, size]."""
    set_SS = np.zeros((size, size), np.bool_)
    for path in paths:
        set_SS |= _set_pixels(path, set_SS.shape)
    return set_SS


def _set_pixels(path: str, shape: tuple[int, ...] | None = None) -> NDArray[np.bool_]:
    """Where a file is not black, however opaque: [H, W], or shape by nearest neighbour."""
    pixels = _decoded(path)
    if shape is not None:
        # Nearest neighbour picks pixels and mixes none, so that only these have to be looked at.
        pixels = cv2.resize(pixels, shape[::-1], interpolation=cv2.INTER_NEAREST)
    return pixels > 0 if pixels.ndim == 2 else np.any(pixels[..., :3] > 0, axis=2)


def _decoded(path: str) -> NDArray[np.integer]:
    """An image file's samples, [H, W] or [H, W, channels], alpha last."""
    pixels = None
    try:
        # OpenCV raises for an empty file, and for one too large to be decoded.
        with contextlib.suppress(cv2.error):
            # Unchanged: as grey, 16-bit samples below 256 and the darkest colours would become black.
            pixels = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    except OSError as error:
        raise UsageError(f"the mask {path} cannot be read: {error.strerror}") from error
    if pixels is None:
        raise UsageError(f"the mask {path} cannot be read: it is no whole image, or too large a one")
    return pixels
