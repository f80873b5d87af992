"""Localizer: a network on a device; batches of images -> predictions. The hot path.

The three steps are separate so that a caller can overlap them: prepare (decode and resize, any
thread), forward (the network and the maps, on the device), finish (boxes and rows, any thread).
"""

import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from camworker.boxes.rules import boxes_from_cams, check_rule
from camworker.cam import TEN_CROP_CELLS, class_activation_maps, merge_views, views_of
from camworker.errors import Failure, UsageError
from camworker.frame import RESIZES, VIEWS, Frame, Resize, Views, frame_size
from camworker.images.decode import PreprocessedImage, decode, network_input
from camworker.images.nvjpeg import DeviceDecoder, DeviceJpeg, as_device_jpeg, decode_together, nvjpeg_decoder
from camworker.inference.pixel_network import PixelNetwork
from camworker.inference.predictions import AnyPrediction, ClassMaps, Predictions, make_boxes, to_float16
from camworker.networks import package as weights
from camworker.networks.registry import DEFAULT
from camworker.schemas import PRECISIONS, CamShape, Precision

# An image on its way: DeviceJpeg until the device has decoded it, where that is how it goes.
ImageInFlight = PreprocessedImage | Failure | DeviceJpeg


@dataclass(frozen=True, slots=True)
class Maps:
    """What the network says of B images: of the K best classes, and of T known ones after them.

    logits_BK, scores_BN, labels_BN and maps_BNHW are float32 and int32 on the CPU, N = K + T;
    known_BT counts: the first known[b] of an image's T are its own, the rest is padding.
    """

    labels_BN: NDArray[np.int32]
    logits_BN: NDArray[np.float32]
    scores_BN: NDArray[np.float32]
    maps_BNHW: NDArray[np.float32]
    known_B: NDArray[np.int64]


class Localizer:
    """Top-k labels, class activation maps and boxes of images, by one network."""

    def __init__(
        self,
        package: weights.NetworkPackage,
        *,
        device: str | torch.device | None = None,
        precision: Precision = "auto",
        top_k: int = 5,
        box_rule: str = "cam20",
        input_size: int | None = None,
        resize: Resize = "squash",
        views: Views = "single",
        batch_size: int | None = None,
    ) -> None:
        """device: default CUDA where there is one. input_size: default the package's own, in pixels.

        views: how often the network looks at an image, and merges: see cam.merge_views.

        Raises UsageError for a value that cannot work.
        """
        self.input_size = package.preprocessing.input_size if input_size is None else input_size
        for name, value in (("top-k", top_k), ("input size", self.input_size), ("batch size", batch_size)):
            if value is not None and value < 1:
                raise UsageError(f"the {name} is {value}: it has to be at least 1")
        if resize not in RESIZES:
            raise UsageError(f"unknown resize {resize!r}: choose from {', '.join(RESIZES)}")
        if views not in VIEWS:
            raise UsageError(f"unknown views {views!r}: choose from {', '.join(VIEWS)}")
        self.package = package
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.dtype = _dtype(precision, self.device)
        self.box_rule = check_rule(box_rule)
        self.resize: Resize = resize
        self.views: Views = views
        self.frame_size = frame_size(self.input_size, views)
        self._views = views_of(views, self.input_size)
        self.batch_size = batch_size or (64 if self.device.type == "cuda" else 16)
        self.map_size = package.map_at(self.input_size)
        self.cam_shape = cam_shape(top_k, len(package.classes), self.map_size, views)

        self._threads = threading.local()
        gpu = self.device.type == "cuda"
        self._device_decoder: DeviceDecoder | None = nvjpeg_decoder(self.device) if gpu else None
        self._pixel_network = PixelNetwork(
            package.network,
            package.preprocessing,
            device=self.device,
            dtype=self.dtype,
            batch_size=self.batch_size,
            input_size=self.input_size,
        )
        self._weights_KC = self._pixel_network.network.weights_KC.detach()

    @classmethod
    def load(
        cls,
        network: str | Path = DEFAULT,
        *,
        device: str | torch.device | None = None,
        precision: Precision = "auto",
        **options: object,
    ) -> "Localizer":
        """A Localizer of a network by name or of a package's folder; options as for Localizer().

        Raises NetworkError (a UsageError) when the network or its weights are refused.
        """
        package = weights.load(str(network))
        return cls(package, device=device, precision=precision, **options)  # type: ignore[arg-type]

    def compile_into(self, file: Path, *, streams: int = 1) -> str | None:
        """Compile the network into file, or load what an earlier call compiled there.

        It is for these options, this processor and this number of torch's threads; streams threads may call
        forward at a time. Returns None, or why the network stays as it is, which is only slower. Compiled it
        rounds differently, in the last digits of its precision.
        """
        return self._pixel_network.compile_into(file, streams=streams)

    def seconds_per_image(self) -> float:
        """What an image takes the network here and now, not compiled, in seconds."""
        return self._pixel_network.seconds_per_image()

    def localize(
        self, images: Sequence[bytes], labels: Sequence[Sequence[int]] | None = None
    ) -> list[AnyPrediction]:
        """Localize encoded images; labels: the known class indices of each, none or several.

        Returns one prediction an image, in order, with the fields of a row. An image that cannot be
        decoded gives a prediction whose status says so.
        """
        labels = labels if labels is not None else [()] * len(images)
        if len(labels) != len(images):
            raise UsageError(f"{len(labels)} lists of labels for {len(images)} images")
        results: list[AnyPrediction] = []
        for start in range(0, len(images), self.batch_size):
            rows = slice(start, start + self.batch_size)
            prepared = self.preprocess_on_device([self.preprocess(data) for data in images[rows]])
            results += self.postprocess(self.forward(prepared, labels[rows]), prepared).rows()
        return results

    def preprocess_on_cpu(self, data: bytes) -> PreprocessedImage | Failure:
        """Decode one image and resize it to the network's input."""
        return self._fit(decode(data))

    def _fit(self, pixels_CHW: torch.Tensor | Failure) -> PreprocessedImage | Failure:
        if isinstance(pixels_CHW, Failure):
            return pixels_CHW
        height, width = pixels_CHW.shape[1:]
        frame = Frame(width, height, self.frame_size, self.resize)
        return PreprocessedImage(network_input(pixels_CHW, frame), frame)

    def stream(self) -> AbstractContextManager[object]:
        """On CUDA a stream of its own for what a thread does inside: batches of several threads overlap."""
        if self.device.type != "cuda":
            return nullcontext()
        if not hasattr(self._threads, "stream"):  # one for good: each keeps memory of its own
            self._threads.stream = torch.cuda.Stream(self.device)
        return torch.cuda.stream(self._threads.stream)

    def preprocess(self, data: bytes) -> ImageInFlight:
        """Prepare one image; on CUDA leave to preprocess_on_device what the device decodes."""
        if self._device_decoder is not None and (encoded := as_device_jpeg(data)):
            return encoded
        return self.preprocess_on_cpu(data)

    @torch.inference_mode()
    def preprocess_on_device(self, batch: Sequence[ImageInFlight]) -> list[PreprocessedImage | Failure]:
        """Decode and resize on the device what receive left to it."""
        encoded = [image for image in batch if isinstance(image, DeviceJpeg)]
        if self._device_decoder is None or not encoded:
            return [image for image in batch if not isinstance(image, DeviceJpeg)]
        decoded = iter(decode_together(encoded, self._device_decoder))
        return [self._fit(next(decoded)) if isinstance(image, DeviceJpeg) else image for image in batch]

    @torch.inference_mode()
    def forward(
        self, batch: Sequence[PreprocessedImage | Failure], labels: Sequence[Sequence[int]]
    ) -> Maps | None:
        """Run the network: top-k classes, and the maps of these and of the known labels.

        The failures in batch have no row in the Maps; None where there are only failures.
        """
        good = [index for index, image in enumerate(batch) if isinstance(image, PreprocessedImage)]
        if not good:
            return None
        pixels_BCHW = self._pixels([image for image in batch if isinstance(image, PreprocessedImage)])
        features_VBCHW, logits_VBK = [], []
        for view in self._views:
            features_BCHW, logits_BK = self._pixel_network.features_and_logits(
                view.crop(pixels_BCHW, self.input_size)
            )
            features_VBCHW.append(features_BCHW)
            logits_VBK.append(logits_BK)
        score = torch.sigmoid if self.package.scoring == "sigmoid" else partial(torch.softmax, dim=-1)
        scores_BK = score(torch.stack(logits_VBK)).mean(0)
        logits_BK = torch.stack(logits_VBK).mean(0)

        # Of one view the logits rank: many a sigmoid is 1 to the last digit.
        labels_BN = (logits_BK if len(self._views) == 1 else scores_BK).topk(self.cam_shape.k).indices
        known = [sorted(set(map(int, own))) for own in (labels[index] for index in good)]
        if outside := {n for own in known for n in own if not 0 <= n < len(self.package.classes)}:
            raise UsageError(f"labels are class indices below {len(self.package.classes)}, not {outside}")
        if most := max(map(len, known), default=0):
            padded = [own + [0] * (most - len(own)) for own in known]
            labels_BN = torch.cat([labels_BN, torch.tensor(padded, device=self.device)], dim=1)
        weights_BNC = self._weights_KC[labels_BN]
        maps_VBNHW = [class_activation_maps(features, weights_BNC) for features in features_VBCHW]
        maps_BNHW = merge_views(maps_VBNHW, self._views, self.input_size)
        return Maps(
            labels_BN.int().cpu().numpy(),
            logits_BK.gather(1, labels_BN).cpu().numpy(),
            scores_BK.gather(1, labels_BN).cpu().numpy(),
            maps_BNHW.cpu().numpy(),
            np.array([len(own) for own in known]),
        )

    def postprocess(self, maps: Maps | None, batch: Sequence[PreprocessedImage | Failure]) -> Predictions:
        """Round the maps as they are stored, and make boxes of them, for the whole batch at once."""
        frames = [image.frame for image in batch if isinstance(image, PreprocessedImage)]
        maps = maps or self._no_maps()
        cams_BNHW = to_float16(maps.maps_BNHW)
        # Of the N maps of an image its own are the K best and those known; the rest is padding.
        own_BN = np.arange(cams_BNHW.shape[1]) < self.cam_shape.k + maps.known_B[:, None]
        image_M, place_M = np.nonzero(own_BN)
        labels_M, scores_M, cams_Mhw = maps.labels_BN[own_BN], maps.scores_BN[own_BN], cams_BNHW[own_BN]
        corners_L4, counts_M = boxes_from_cams(cams_Mhw, frames, image_M, self.box_rule)
        boxes_L = make_boxes(labels_M, scores_M, place_M + 1, corners_L4, counts_M)
        classes = ClassMaps(labels_M, scores_M, cams_Mhw, boxes_L, counts_M)
        return Predictions(
            [image if isinstance(image, Failure) else None for image in batch],
            self.package.classes.names,
            np.array([(frame.width, frame.height) for frame in frames], np.int32).reshape(-1, 2),
            classes.where(place_M < self.cam_shape.k),
            classes.where(place_M >= self.cam_shape.k),
            maps.known_B,
        )

    def images(self, batch: Sequence[PreprocessedImage]) -> torch.Tensor:
        """The network's input: normalised, in its precision, on its device."""
        return self._pixel_network.normalised(self._pixels(batch))

    @torch.inference_mode()
    def features(self, batch: Sequence[PreprocessedImage]) -> tuple[torch.Tensor, torch.Tensor]:
        """What enters the pooling and what leaves the head, for a single view: features_BCHW, logits_BK.

        Both float32, on the device.
        """
        return self._pixel_network.features_and_logits(self._pixels(batch))

    def _pixels(self, batch: Sequence[PreprocessedImage]) -> torch.Tensor:
        """uint8 [B, 3, S, S], channels last, on the device: a quarter of what normalised ones would move."""
        # As the decoder and the resizing leave them, rows of RGB triples: one copy, in order. Those that
        # the device decoded are there already.
        rows = [image.pixels_CHW.permute(1, 2, 0) for image in batch]
        if any(row.device.type == "cuda" for row in rows):
            return torch.stack([row.to(self.device) for row in rows]).permute(0, 3, 1, 2)
        rows_BHWC = torch.empty(
            (len(batch), self.frame_size, self.frame_size, 3),
            dtype=torch.uint8,
            pin_memory=self.device.type == "cuda",
        )
        torch.stack(rows, out=rows_BHWC)
        return rows_BHWC.to(self.device, non_blocking=True).permute(0, 3, 1, 2)

    def _no_maps(self) -> Maps:
        shape = self.cam_shape
        nothing_BN = np.empty((0, shape.k), np.float32)
        maps_BNHW = np.empty((0, shape.k, shape.h, shape.w), np.float32)
        return Maps(nothing_BN.astype(np.int32), nothing_BN, nothing_BN, maps_BNHW, np.zeros(0, np.int64))


def cam_shape(top_k: int, classes: int, map_size: tuple[int, int], views: Views) -> CamShape:
    """The shape of a row's CAMs: map_size is what one view gives."""
    cells = (TEN_CROP_CELLS, TEN_CROP_CELLS) if views == "ten-crop" else map_size
    return CamShape(min(top_k, classes), *cells)


def _dtype(precision: str, device: torch.device) -> torch.dtype:
    if precision not in PRECISIONS:
        raise UsageError(f"unknown precision {precision!r}: choose from {', '.join(PRECISIONS)}")
    if precision != "auto":
        return getattr(torch, precision)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return torch.bfloat16 if _cpu_computes_bfloat16() else torch.float32


def _cpu_computes_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 itself; where it does not, it is slower than float32."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags
