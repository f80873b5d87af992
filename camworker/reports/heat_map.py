"""Pictures for the pages: thumbnails, heat maps over photographs, and JPEG data URIs."""

import base64
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from camworker.frame import Frame

_LONG_SIDE: Final = 320  # pixels of a thumbnail
_HEAT: Final = 0.5  # weight of the heat map in the blend
_JPEG_QUALITY: Final = 82


def heat_map(photo_HW3: NDArray[np.uint8], cam_hw: NDArray[np.floating], frame: Frame) -> NDArray[np.uint8]:
    """Blend a class activation map with its photograph.

    Negative values count as zero, and the maximum of the map is red. Parts of the photograph that the network
    did not see (resize "crop") are drawn like a value of zero.

    Args:
        photo_HW3: The photograph, RGB uint8; it may be scaled down.
        cam_hw: The class activation map.
        frame: The frame of the original image.

    Returns:
        RGB uint8 pixels of the size of `photo_HW3`.
    """
    height, width = photo_HW3.shape[:2]
    size = (frame.input_size, frame.input_size)
    cam = cv2.resize(np.asarray(cam_hw, np.float32), size, interpolation=cv2.INTER_LINEAR)
    heat = np.clip(cam / max(float(cam.max()), 1e-12), 0, 1)
    # The centre of each pixel of the photograph, in pixels of the network's input.
    y, x = np.mgrid[0:height, 0:width].astype(np.float32) + 0.5
    x, y = x * frame.width / width, y * frame.height / height
    points = frame.to_input(np.stack([x, y, x, y], axis=-1).reshape(-1, 4)).reshape(height, width, 4)
    visible = cv2.remap(
        heat, points[..., 0] - 0.5, points[..., 1] - 0.5, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    visible[((points[..., :2] < 0) | (points[..., :2] > frame.input_size)).any(-1)] = 0
    colours = cv2.cvtColor(
        cv2.applyColorMap((255 * visible).round().astype(np.uint8), cv2.COLORMAP_JET), cv2.COLOR_BGR2RGB
    )
    blended: NDArray[np.uint8] = cv2.addWeighted(colours, _HEAT, photo_HW3, 1 - _HEAT, 0)
    return blended


def thumbnail(photo_HW3: NDArray[np.uint8], frame: Frame) -> NDArray[np.uint8]:
    """Scale a photograph down so that its long side has at most 320 pixels."""
    scale = min(1.0, _LONG_SIDE / max(frame.width, frame.height))
    size = max(1, round(frame.width * scale)), max(1, round(frame.height * scale))
    resized: NDArray[np.uint8] = cv2.resize(photo_HW3, size, interpolation=cv2.INTER_AREA)
    return resized


def data_uri(pixels_HW3: NDArray[np.uint8]) -> str:
    """Encode RGB uint8 pixels as a JPEG in a data URI."""
    options = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
    _, data = cv2.imencode(".jpg", cv2.cvtColor(pixels_HW3, cv2.COLOR_RGB2BGR), options)
    return f"data:image/jpeg;base64,{base64.b64encode(data.tobytes()).decode()}"
