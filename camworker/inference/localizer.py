"""`Localizer`: a network on a device that turns batches of images into predictions.

Its three steps are separate methods, so that a caller can overlap them: `preprocess` (decode and resize, any
thread), `forward` (the network and the maps, on the device) and `postprocess` (boxes, any thread).
"""

import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from camworker.boxes.rules import boxes_from_cams, check_rule
from camworker.errors import Failure, UsageError
from camworker.frame import RESIZES, VIEWS, Frame, FrameSpec, Resize, Views
from camworker.images.decode import PreprocessedImage
from camworker.inference.cam_network import CamNetwork, Maps, ScoredMaps, cam_shape
from camworker.inference.pixel_network import PixelNetwork, resolve_dtype
from camworker.inference.predictions import AnyPrediction, ClassMaps, Predictions, to_float16
from camworker.inference.preprocessor import ImageInFlight, Preprocessor
from camworker.ledger.recipe import Recipe
from camworker.networks.package import NetworkPackage, load
from camworker.schemas import CamShape, Precision


class Localizer:
    """Top-k labels, class activation maps and boxes of images, from one network.

    Attributes:
        package: The network with its classes and preprocessing.
        device: The device of the network.
        dtype: The type in which the network computes its features.
        box_rule: The rule that makes boxes from maps.
        frame_spec: How an image is fitted into the network's input, and which of its views are evaluated.
        batch_size: The most images that the network is given at a time.
        map_size: Height and width of the map of one view, in cells.
        cam_shape: Shape of the maps of a row.
        refined_shape: Shape of the refined maps of a row; None without refinement.
        taps: The feature maps of earlier stages that the network computes; None without refinement.
    """

    def __init__(
        self,
        package: NetworkPackage,
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
        """Move a copy of a network to a device.

        Args:
            package: The network; it is not changed.
            device: Default: CUDA if it is available, else the CPU.
            precision: Precision of the network. "auto" is bfloat16 where the device computes in it, else
                float16 on a GPU and float32 on a CPU.
            top_k: Number of classes to rank; at most the number of the network's classes is used.
            box_rule: How boxes are made from maps, see `camworker.boxes.check_rule`.
            input_size: Side of the network's square input, in pixels. Default: that of the package.
            resize: How an image is fitted into the square, see `camworker.frame.Frame`.
            views: Which views of an image are evaluated, see `camworker.cam.views_of`.
            batch_size: The most images in the network at a time. Default: 64 on CUDA, 16 on the CPU.

        Raises:
            UsageError: A value cannot work.
            NetworkError: The network has no usable maps at this input size.
        """
        input_size = package.preprocessing.input_size if input_size is None else input_size
        for name, value in (("top_k", top_k), ("input_size", input_size), ("batch_size", batch_size)):
            if value is not None and value < 1:
                raise UsageError(
                    f"the {name.replace('_', ' ')} is {value}: it has to be at least 1", parameter=name
                )
        for name, choice, known in (("resize", resize, RESIZES), ("views", views, VIEWS)):
            if choice not in known:
                raise UsageError(f"unknown {name} {choice!r}: choose from {', '.join(known)}", parameter=name)
        self.package = package
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.dtype = resolve_dtype(precision, self.device)
        self.box_rule = check_rule(box_rule)
        self.frame_spec = FrameSpec(input_size, resize, views)
        self.batch_size = batch_size or (64 if self.device.type == "cuda" else 16)
        self.map_size = package.map_at(input_size)
        self.cam_shape = cam_shape(top_k, len(package.classes), self.map_size, views)
        self.refined_shape: CamShape | None = None

        self._threads = threading.local()
        self._pixel_network = PixelNetwork(
            package.network,
            package.preprocessing,
            device=self.device,
            dtype=self.dtype,
            batch_size=self.batch_size,
            input_size=input_size,
        )
        self.taps = self._pixel_network.taps
        self._preprocessor = Preprocessor(self.frame_spec, self.device)
        self._cam_network = CamNetwork(self._pixel_network, self.frame_spec, self.cam_shape, package.scoring)

    @classmethod
    def load(
        cls,
        network: str | Path | None = None,
        *,
        device: str | torch.device | None = None,
        precision: Precision = "auto",
        top_k: int = 5,
        box_rule: str = "cam20",
        input_size: int | None = None,
        resize: Resize = "squash",
        views: Views = "single",
        batch_size: int | None = None,
    ) -> "Localizer":
        """Load a network and return its localizer.

        Args:
            network: Name of a network or folder of a network package. Default: EfficientNet-Lite0.
            device: See `Localizer`.
            precision: See `Localizer`.
            top_k: See `Localizer`.
            box_rule: See `Localizer`.
            input_size: See `Localizer`.
            resize: See `Localizer`.
            views: See `Localizer`.
            batch_size: See `Localizer`.

        Raises:
            NetworkError: The network or its weights are refused.
            UsageError: A value cannot work.
        """
        return cls(
            load(None if network is None else str(network)),
            device=device,
            precision=precision,
            top_k=top_k,
            box_rule=box_rule,
            input_size=input_size,
            resize=resize,
            views=views,
            batch_size=batch_size,
        )

    @classmethod
    def from_recipe(
        cls,
        recipe: Recipe,
        *,
        network: str | None = None,
        weights: str | None = None,
        device: str | torch.device | None = None,
        batch_size: int | None = None,
    ) -> "Localizer":
        """Return the localizer that writes the rows of a recipe.

        Args:
            recipe: The settings that decide the rows.
            network: What the network is loaded from, as for `camworker.networks.package.load`. Default: the
                name in the recipe.
            weights: Where the weights are, as for `camworker.networks.package.load`: a package's folder, a
                file, or "DEFAULT".
            device: See `Localizer`.
            batch_size: See `Localizer`.

        Raises:
            CommitError: The weights are not those of the recipe.
            NetworkError: The network or its weights are refused.
        """
        package = load(
            network or recipe.network,
            weights,
            output_stride=recipe.output_stride,
            fingerprint=recipe.weights_fingerprint,
        )
        return cls(
            package,
            device=device,
            precision=recipe.precision,
            top_k=recipe.top_k,
            box_rule=recipe.box_rule,
            input_size=recipe.frame_spec.input_size,
            resize=recipe.frame_spec.resize,
            views=recipe.frame_spec.views,
            batch_size=batch_size,
        )

    def compile_into(self, file: Path, *, streams: int = 1) -> str | None:
        """Compile the network into a file, or load what an earlier call compiled into it.

        The file is valid for the same network, options, processor and number of torch's threads. Once
        compiled, the network rounds differently in the last digits of its precision.

        Args:
            file: Where the compiled network is, or is to be written.
            streams: Number of threads that may call `forward` at a time.

        Returns:
            None, or the reason why the network could not be compiled; it still works, only slower.
        """
        return self._pixel_network.compile_into(file, streams=streams)

    def seconds_per_image(self) -> float:
        """Measure how long the network takes for an image on this machine, not compiled, in seconds."""
        return self._pixel_network.seconds_per_image()

    def localize(
        self, images: Sequence[bytes], labels: Sequence[Sequence[int]] | None = None
    ) -> list[AnyPrediction]:
        """Localize encoded images.

        Args:
            images: The bytes of image files.
            labels: For each image the indices of its target classes, none or several.

        Returns:
            A prediction for each image, in order. The status of an image that cannot be decoded says so.

        Raises:
            UsageError: There is not one list of labels per image, or a label is not a class of the network.
            MapOverflowError: A map has values that float16 cannot represent.
        """
        labels = labels if labels is not None else [()] * len(images)
        if len(labels) != len(images):
            raise UsageError(f"{len(labels)} lists of labels for {len(images)} images", parameter="labels")
        results: list[AnyPrediction] = []
        for start in range(0, len(images), self.batch_size):
            rows = slice(start, start + self.batch_size)
            batch = self.preprocess_on_device([self.preprocess(data) for data in images[rows]])
            results += self.postprocess(self.forward(batch, labels[rows]), batch).rows()
        return results

    def preprocess(self, data: bytes) -> ImageInFlight:
        """Decode an image file and resize it to its frame, see `Preprocessor.preprocess`."""
        return self._preprocessor.preprocess(data)

    def preprocess_on_device(self, batch: Sequence[ImageInFlight]) -> list[PreprocessedImage | Failure]:
        """Complete a batch on the GPU, see `Preprocessor.preprocess_on_device`."""
        return self._preprocessor.preprocess_on_device(batch)

    def stream(self) -> AbstractContextManager[object]:
        """Return a context in which the calling thread uses a CUDA stream of its own.

        Batches of several threads then overlap. Without CUDA the context does nothing.
        """
        if self.device.type != "cuda":
            return nullcontext()
        if not hasattr(self._threads, "stream"):  # Kept for good: the allocator keeps a pool for each stream.
            self._threads.stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]  # torch's own
        return torch.cuda.stream(self._threads.stream)

    @torch.inference_mode()
    def forward(
        self, batch: Sequence[PreprocessedImage | Failure], labels: Sequence[Sequence[int]]
    ) -> Maps | None:
        """Run the network on a batch.

        Args:
            batch: The images; those that failed have no row in the result.
            labels: For each image of the batch the indices of its target classes.

        Returns:
            The best classes, their maps, and the maps of the target classes; None if all images failed.

        Raises:
            UsageError: A label is not a class of the network.
        """
        pairs = list(zip(batch, labels, strict=True))
        images = [image for image, _ in pairs if isinstance(image, PreprocessedImage)]
        if not images:
            return None
        targets = [sorted(set(map(int, own))) for image, own in pairs if not isinstance(image, Failure)]
        classes = len(self.package.classes)
        if unknown := {label for labels in targets for label in labels if not 0 <= label < classes}:
            raise UsageError(f"labels are class indices below {classes}, not {unknown}", parameter="labels")
        return self._cam_network(self._preprocessor.pixels(images), targets)

    def postprocess(self, maps: Maps | None, batch: Sequence[PreprocessedImage | Failure]) -> Predictions:
        """Round the maps of a batch as they are stored, and make their boxes.

        Args:
            maps: The result of `forward` for this batch.
            batch: The images.
        """
        frames = [image.frame for image in batch if isinstance(image, PreprocessedImage)]
        maps = maps or self._cam_network.no_maps()
        images_G = np.arange(len(frames))
        return Predictions(
            [image if isinstance(image, Failure) else None for image in batch],
            self.package.classes.names,
            np.array([(frame.width, frame.height) for frame in frames], np.int32).reshape(-1, 2),
            self._class_maps(maps.best, frames, np.repeat(images_G, self.cam_shape.k)),
            self._class_maps(maps.targets, frames, np.repeat(images_G, maps.target_counts_B)),
            maps.target_counts_B,
        )

    def pixels(self, batch: Sequence[PreprocessedImage]) -> torch.Tensor:
        """Return the pixels of a batch on the device, see `Preprocessor.pixels`."""
        return self._preprocessor.pixels(batch)

    def images(self, batch: Sequence[PreprocessedImage]) -> torch.Tensor:
        """Return the input of the network for a batch: normalized, in its precision, on its device."""
        return self._pixel_network.normalized(self._preprocessor.pixels(batch))

    @torch.inference_mode()
    def features(self, batch: Sequence[PreprocessedImage]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the input of the global pooling and the logits for a batch, for a single view.

        Returns:
            The features, [B, C, h, w], and the logits, [B, K]; both float32 on the device.
        """
        return self._pixel_network.features_and_logits(self._preprocessor.pixels(batch))

    def _class_maps(
        self, maps: ScoredMaps, frames: Sequence[Frame], images_M: NDArray[np.int64]
    ) -> ClassMaps:
        cams_Mhw = to_float16(maps.maps_Mhw)
        boxes = boxes_from_cams(cams_Mhw, frames, images_M, self.box_rule)
        made = (boxes.corners_L4, boxes.counts_M, boxes.fallback_L)
        return ClassMaps(maps.labels_M, maps.scores_M, cams_Mhw, *made, refined_Mhw=None)
