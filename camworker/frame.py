"""Map coordinates between the network's square input and the original image."""

from dataclasses import dataclass
from typing import Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

# The corners of a box, in the order of arrays and columns. Boxes are half-open: a box over a whole image of
# width W and height H is 0, 0, W, H.
CORNERS: Final = ("xmin", "ymin", "xmax", "ymax")

Resize = Literal["squash", "crop"]
RESIZES: tuple[Resize, ...] = get_args(Resize)
Views = Literal["single", "flip", "ten-crop"]
VIEWS: tuple[Views, ...] = get_args(Views)


def frame_size(input_size: int, views: Views) -> int:
    """Return the side, in pixels, of the square in which maps and boxes are made.

    This is the network's input, except for ten-crop: its crops have the size of the input and are cut from a
    larger square, of 256 pixels for an input of 224 (Zhou et al., 2016).
    """
    return round(256 * input_size / 224) if views == "ten-crop" else input_size


@dataclass(frozen=True, slots=True)
class FrameSpec:
    """How every image of a run is fitted into the network's input.

    Attributes:
        input_size: Side of the network's square input, in pixels.
        resize: How an image is fitted into the square, see `Frame`.
        views: Which views of an image are evaluated.
    """

    input_size: int
    resize: Resize = "squash"
    views: Views = "single"

    @property
    def size(self) -> int:
        """The side, in pixels, of the square in which maps and boxes are made, see `frame_size`."""
        return frame_size(self.input_size, self.views)

    def to_json(self) -> dict[str, object]:
        """Return how a map is brought to the pixels of its image, as the metadata of a part hold it.

        A map is upsampled to size x size pixels; `Frame` describes the way from there to the original image.
        """
        return {
            "resize": self.resize,
            "input_size": self.input_size,
            "views": self.views,
            "size": self.size,
            "upsampling": "bilinear",
            "align_corners": False,
        }

    def frame(self, width: int, height: int) -> "Frame":
        """Return the frame of an image of `width` x `height` pixels, as displayed.

        Raises:
            ValueError: A side is shorter than one pixel.
        """
        return Frame(int(width), int(height), self.size, self.resize)


@dataclass(frozen=True, slots=True)
class Frame:
    """How one image lies in the network's square input.

    Attributes:
        width: Width of the original image in pixels, as displayed (EXIF orientation applied).
        height: Height of the original image in pixels, as displayed.
        input_size: Side of the square in pixels, see `frame_size`.
        resize: "squash" stretches the whole image over the square; "crop" scales the short side to
            `input_size`, keeps the aspect ratio and takes the centre square.
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
        """The (width, height) of the whole image at the scale of the input, which is cut out of it."""
        width, height = _resized(self._size, self.input_size, self.resize)
        return int(width), int(height)

    @property
    def offset(self) -> tuple[int, int]:
        """The (x, y) of the input's top left corner in the resized image, in input pixels."""
        width, height = self.resized
        return (width - self.input_size) // 2, (height - self.input_size) // 2

    @property
    def affine(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The (scales, offsets) of xmin, ymin, xmax, ymax, float64 [4] each.

        A coordinate of the original image is (input + offset) * scale, clipped to the image.
        """
        return _affine(self._size, self.input_size, self.resize)

    def to_original(self, boxes_N4: NDArray[np.floating]) -> NDArray[np.float32]:
        """Map boxes from input pixels to original pixels.

        Args:
            boxes_N4: Boxes as xmin, ymin, xmax, ymax in input pixels, [N, 4].

        Returns:
            The boxes in pixels of the original image, clipped to it, float32 [N, 4].
        """
        return to_original(np.reshape(boxes_N4, (-1, 4)), self._size, self.input_size, self.resize)

    def to_input(self, boxes_N4: NDArray[np.floating]) -> NDArray[np.float32]:
        """Map boxes from original pixels to input pixels, float32 [N, 4].

        With "crop" the boxes may lie outside of the input.
        """
        scales, offsets = self.affine
        boxes = np.asarray(boxes_N4, np.float64).reshape(-1, 4) / scales - offsets
        return boxes.astype(np.float32)

    def whole_image(self) -> NDArray[np.float32]:
        """Return the box over the whole original image, float32 [1, 4]."""
        return np.array([[0, 0, self.width, self.height]], np.float32)

    @property
    def _size(self) -> NDArray[np.int64]:
        return np.array([self.width, self.height])


def to_original(
    boxes_N4: NDArray[np.number], sizes_N2: NDArray[np.int64], input_size: int, resize: Resize
) -> NDArray[np.float32]:
    """Map boxes of several images from input pixels to original pixels, as `Frame.to_original` does for one.

    Args:
        boxes_N4: Boxes as xmin, ymin, xmax, ymax in input pixels, [N, 4].
        sizes_N2: Width and height of each box's image in pixels, [N, 2]; or [2], of all of them.
        input_size: Side of the square in pixels, see `frame_size`.
        resize: How the images were fitted into the square.

    Returns:
        The boxes in pixels of their original images, clipped to them, float32 [N, 4].
    """
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
    resized_N2: NDArray[np.float64] = np.maximum(input_size, np.rint(sizes_N2 * input_size / short))
    return resized_N2
