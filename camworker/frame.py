"""Frame: the way between the pixels of a network's input and the pixels of the original image."""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

Resize = Literal["squash", "crop"]
RESIZES: tuple[Resize, ...] = get_args(Resize)
Views = Literal["single", "flip", "ten-crop"]
VIEWS: tuple[Views, ...] = get_args(Views)


def frame_size(input_size: int, views: Views) -> int:
    """Side of the square, in pixels, that maps and boxes are made in: the network's input, but for ten-crop.

    Ten crops of the input's size are taken from a square of 256 for an input of 224, as the paper does.
    """
    return round(256 * input_size / 224) if views == "ten-crop" else input_size


@dataclass(frozen=True, slots=True)
class Frame:
    """How one image lies in the network's square input.

    width, height: the original image in pixels, as displayed (EXIF orientation applied).
    input_size: side of the network's input in pixels (of what crops are cut from: see frame_size).
    resize: "squash" stretches the whole image over the input; "crop" scales the short side to
    input_size, keeps the aspect, and takes the centre square.
    """

    width: int
    height: int
    input_size: int
    resize: Resize = "squash"

    def __post_init__(self) -> None:
        if min(self.width, self.height, self.input_size) < 1:
            raise ValueError(f"sides must be at least one pixel: {self}")
        if self.resize not in RESIZES:
            raise ValueError(f"resize is one of {RESIZES}, not {self.resize!r}")

    @property
    def resized(self) -> tuple[int, int]:
        """(width, height) of the whole image at the input's scale; the input is cut out of it."""
        width, height = _resized(self._size, self.input_size, self.resize)
        return int(width), int(height)

    @property
    def offset(self) -> tuple[int, int]:
        """(x, y) of the input's top left corner in the resized image, in input pixels."""
        width, height = self.resized
        return (width - self.input_size) // 2, (height - self.input_size) // 2

    @property
    def affine(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(scales, offsets) of xmin, ymin, xmax, ymax: original = (input + offset) * scale, then clipped."""
        return _affine(self._size, self.input_size, self.resize)

    def to_original(self, boxes_N4: NDArray[np.floating]) -> NDArray[np.float32]:
        """Boxes in input pixels -> boxes in original pixels, clipped to the image (float32, N x 4)."""
        return to_original(np.reshape(boxes_N4, (-1, 4)), self._size, self.input_size, self.resize)

    def to_input(self, boxes_N4: NDArray[np.floating]) -> NDArray[np.float32]:
        """Boxes in original pixels -> boxes in input pixels; under "crop" they may lie outside it."""
        scales, offsets = self.affine
        boxes = np.asarray(boxes_N4, np.float64).reshape(-1, 4) / scales - offsets
        return boxes.astype(np.float32)

    def whole_image(self) -> NDArray[np.float32]:
        """The box over the whole original image (1 x 4)."""
        return np.array([[0, 0, self.width, self.height]], np.float32)

    @property
    def _size(self) -> NDArray[np.int64]:
        return np.array([self.width, self.height])


def to_original(
    boxes_N4: NDArray[np.number], sizes_N2: NDArray[np.int64], input_size: int, resize: Resize
) -> NDArray[np.float32]:
    """Frame.to_original for boxes of several images; sizes_N2: width and height of each one's, or of all."""
    scales, offsets = _affine(sizes_N2, input_size, resize)
    boxes = (np.asarray(boxes_N4, np.float64) + offsets) * scales
    return np.clip(boxes, 0.0, np.concatenate([sizes_N2, sizes_N2], axis=-1)).astype(np.float32)


def _affine(
    sizes_N2: NDArray[np.int64], input_size: int, resize: Resize
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    resized_N2 = _resized(sizes_N2, input_size, resize)
    scales, offsets = sizes_N2 / resized_N2, np.floor((resized_N2 - input_size) / 2)
    return np.concatenate([scales, scales], axis=-1), np.concatenate([offsets, offsets], axis=-1)


def _resized(sizes_N2: NDArray[np.int64], input_size: int, resize: Resize) -> NDArray[np.float64]:
    if resize == "squash":
        return np.full(sizes_N2.shape, float(input_size))
    short = sizes_N2.min(axis=-1, keepdims=True)
    return np.maximum(input_size, np.rint(sizes_N2 * input_size / short))
