"""JPEGs decoded and resized on a CUDA device; the processor's decoder has what is not for it.

The device's decoder (nvJPEG) turns frequencies to pixels in its own arithmetic: values differ by a few.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torchvision.io import ImageReadMode, decode_jpeg

from camworker.errors import Failure
from camworker.images.decode import apply_exif_orientation, decode, plain_orientation

# DeviceJpeg JPEGs -> their pixels, or None where the device cannot decode one.
DeviceDecoder = Callable[[Sequence[bytes]], Sequence[torch.Tensor | None]]


@dataclass(frozen=True, slots=True)
class DeviceJpeg:
    """A whole JPEG in gray or RGB, still to be decoded; orientation: as in EXIF."""

    data: bytes
    orientation: int


def as_device_jpeg(data: bytes) -> DeviceJpeg | None:
    """What the device decodes: plain JPEGs with their end. It would make something of a torn one."""
    orientation = plain_orientation(data)
    if orientation is None or not data.rstrip(b"\0").endswith(b"\xff\xd9"):
        return None
    return DeviceJpeg(data, orientation)


def decode_together(images: Sequence[DeviceJpeg], on_device: DeviceDecoder) -> list[torch.Tensor | Failure]:
    """Upright pixels [3, height, width] of each, as images.decode gives them; on the device where it can."""
    decoded = on_device([image.data for image in images])
    return [
        apply_exif_orientation(pixels_CHW, image.orientation)
        if pixels_CHW is not None
        else decode(image.data)
        for image, pixels_CHW in zip(images, decoded, strict=True)
    ]


def nvjpeg_decoder(device: torch.device) -> DeviceDecoder:
    """Torchvision's decoder on this device."""

    def on_device(images: Sequence[bytes]) -> list[torch.Tensor | None]:
        buffers = [torch.frombuffer(bytearray(data), dtype=torch.uint8) for data in images]
        try:
            return list(decode_jpeg(buffers, mode=ImageReadMode.RGB, device=device)) if buffers else []
        except RuntimeError:  # of one of them, and it does not say of which; or memory ran out
            if len(images) == 1:
                return [None]
            return [pixels_CHW for data in images for pixels_CHW in on_device([data])]

    return on_device
