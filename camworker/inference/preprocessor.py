"""`Preprocessor`: from the bytes of an image file to the pixels of its frame."""

from collections.abc import Sequence

import torch

from camworker.errors import Failure
from camworker.frame import FrameSpec
from camworker.images.decode import PreprocessedImage, decode, network_input
from camworker.images.nvjpeg import DeviceDecoder, DeviceJpeg, as_device_jpeg, decode_together, nvjpeg_decoder

# An image in flight. It stays a `DeviceJpeg` until the GPU has decoded it.
ImageInFlight = PreprocessedImage | Failure | DeviceJpeg


class Preprocessor:
    """Decodes images and resizes them to their frames: on the CPU, and plain JPEGs on a GPU if there is one.

    Args:
        frame_spec: How an image is fitted into the network's input.
        device: The device of the network.
    """

    def __init__(self, frame_spec: FrameSpec, device: torch.device) -> None:
        self._frame_spec = frame_spec
        self._device = device
        gpu = device.type == "cuda"
        self._device_decoder: DeviceDecoder | None = nvjpeg_decoder(device) if gpu else None

    def preprocess(self, data: bytes) -> ImageInFlight:
        """Decode an image file and resize it to its frame.

        On CUDA a JPEG that the GPU can decode is returned as it is, for `preprocess_on_device`.
        """
        if self._device_decoder is not None and (jpeg := as_device_jpeg(data)):
            return jpeg
        return self.preprocess_on_cpu(data)

    def preprocess_on_cpu(self, data: bytes) -> PreprocessedImage | Failure:
        """Decode an image file and resize it to its frame, on the CPU."""
        return self._fit(decode(data))

    @torch.inference_mode()
    def preprocess_on_device(self, batch: Sequence[ImageInFlight]) -> list[PreprocessedImage | Failure]:
        """Decode and resize on the GPU the images of a batch that `preprocess` left to it."""
        jpegs = [image for image in batch if isinstance(image, DeviceJpeg)]
        if self._device_decoder is None or not jpegs:
            return [image for image in batch if not isinstance(image, DeviceJpeg)]
        decoded = iter(decode_together(jpegs, self._device_decoder))
        return [self._fit(next(decoded)) if isinstance(image, DeviceJpeg) else image for image in batch]

    def pixels(self, batch: Sequence[PreprocessedImage]) -> torch.Tensor:
        """Return the pixels of a batch on the device: uint8 [B, 3, S, S], channels last.

        Normalized pixels would be four times as many bytes to copy to the device.
        """
        # Decoder and resizing leave rows of RGB triples, so this is one copy in order. Images that the GPU
        # decoded are on the device already.
        rows = [image.pixels_CHW.permute(1, 2, 0) for image in batch]
        if any(row.device.type == "cuda" for row in rows):
            return torch.stack([row.to(self._device) for row in rows]).permute(0, 3, 1, 2)
        side = self._frame_spec.size
        rows_BHWC = torch.empty(
            (len(batch), side, side, 3), dtype=torch.uint8, pin_memory=self._device.type == "cuda"
        )
        torch.stack(rows, out=rows_BHWC)
        return rows_BHWC.to(self._device, non_blocking=True).permute(0, 3, 1, 2)

    def _fit(self, pixels_CHW: torch.Tensor | Failure) -> PreprocessedImage | Failure:
        if isinstance(pixels_CHW, Failure):
            return pixels_CHW
        height, width = pixels_CHW.shape[1:]
        frame = self._frame_spec.frame(width, height)
        return PreprocessedImage(network_input(pixels_CHW, frame), frame)
