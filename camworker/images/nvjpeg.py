"""Decode JPEGs on a CUDA device; the CPU decodes what the device does not support.

The device's decoder (nvJPEG) has an arithmetic of its own, so pixels differ by a few levels from the CPU's.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torchvision.io import ImageReadMode, decode_jpeg

from camworker.errors import Failure
from camworker.images.decode import apply_exif_orientation, decode, read_jpeg_orientation

_END_OF_IMAGE: Final = b"\xff\xd9"

# Maps JPEGs to their pixels, uint8 [3, height, width] each before EXIF orientation is applied, or to None for
# those that the device cannot decode.
DeviceDecoder = Callable[[Sequence[bytes]], Sequence[torch.Tensor | None]]


@dataclass(frozen=True, slots=True)
class DeviceJpeg:
    """A complete grayscale or RGB JPEG that the device will decode.

    Attributes:
        data: The bytes of the file.
        orientation: EXIF orientation, 1 to 8.
    """

    data: bytes
    orientation: int


def as_device_jpeg(data: bytes) -> DeviceJpeg | None:
    """Return a file as a `DeviceJpeg`, or None if the CPU has to decode it.

    The device would decode a truncated JPEG without an error, so the file must end with the end-of-image
    marker, which zeros may follow.
    """
    orientation = read_jpeg_orientation(data)
    if orientation is None or not data.rstrip(b"\0").endswith(_END_OF_IMAGE):
        return None
    return DeviceJpeg(data, orientation)


def decode_together(images: Sequence[DeviceJpeg], on_device: DeviceDecoder) -> list[torch.Tensor | Failure]:
    """Decode JPEGs on the device, and on the CPU those that the device cannot decode.

    Args:
        images: The JPEGs.
        on_device: The decoder of the device.

    Returns:
        For each image its upright pixels, uint8 [3, height, width], or a Failure; see `decode`.
    """
    decoded = on_device([image.data for image in images])
    return [
        apply_exif_orientation(pixels_CHW, image.orientation)
        if pixels_CHW is not None
        else decode(image.data)
        for image, pixels_CHW in zip(images, decoded, strict=True)
    ]


def nvjpeg_decoder(device: torch.device) -> DeviceDecoder:
    """Return torchvision's JPEG decoder for a device."""

    def on_device(images: Sequence[bytes]) -> list[torch.Tensor | None]:
        buffers = [torch.frombuffer(bytearray(data), dtype=torch.uint8) for data in images]
        try:
            return list(decode_jpeg(buffers, mode=ImageReadMode.RGB, device=device)) if buffers else []
        except RuntimeError:
            # The error does not say which image failed, or memory ran out: decode one image at a time.
            if len(images) == 1:
                return [None]
            return [pixels_CHW for data in images for pixels_CHW in on_device([data])]

    return on_device
