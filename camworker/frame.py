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
        if self.resize == "squash":
            return self.input_size, self.input_size
        short = min(self.width, self.height)
        return (
            max(self.input_size, round(self.width * self.input_size / short)),
            max(self.input_size, round(self.height * self.input_size / short)),
        )

    @property
    def offset(self) -> tuple[int, int]:
        """(x, y) of the input's top left corner in the resized image, in input pixels."""
        width, height = self.resized
        return (width - self.input_size) // 2, (height - self.input_size) // 2

    @property
    def affine(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(scales, offsets) of xmin, ymin, xmax, ymax: original = (input + offset) * scale, then clipped."""
        width, height = self.resized
        return np.array([self.width / width, self.height / height] * 2), np.array(self.offset * 2, np.float64)

    def to_original(self, boxes_N4: NDArray[np.floating]) -> NDArray[np.float32]:
        """Boxes in input pixels -> boxes in original pixels, clipped to the image (float32, N x 4)."""
        scales, offsets = self.affine
        boxes = (np.asarray(boxes_N4, np.float64).reshape(-1, 4) + offsets) * scales
        limits = np.array([self.width, self.height] * 2, np.float64)
        return np.clip(boxes, 0.0, limits).astype(np.float32)

    def to_input(self, boxes_N4: NDArray[np.floating]) -> NDArray[np.float32]:
        """Boxes in original pixels -> boxes in input pixels; under "crop" they may lie outside it."""
        scales, offsets = self.affine
        boxes = np.asarray(boxes_N4, np.float64).reshape(-1, 4) / scales - offsets
        return boxes.astype(np.float32)

    def whole_image(self) -> NDArray[np.float32]:
        """The box over the whole original image (1 x 4)."""
        return np.array([[0, 0, self.width, self.height]], np.float32)
