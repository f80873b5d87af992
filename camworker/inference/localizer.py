"""`Localizer`: a network on a device that turns batches of images into predictions.

Its three steps are separate methods, so that a caller can overlap them: `preprocess` (decode and resize, any
thread), `forward` (the network and the maps, on the device) and `postprocess` (boxes, any thread).
"""

import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Unpack

import numpy as np
import torch

from camworker.errors import Failure, UsageError
from camworker.frame import Resize, Views
from camworker.images.decode import PreprocessedImage
from camworker.inference.cam_network import CamNetwork, Maps, row_shapes
from camworker.inference.pixel_network import PixelNetwork, resolve_dtype
from camworker.inference.predictions import AnyPrediction, Predictions
from camworker.inference.preprocessor import ImageInFlight, Preprocessor
from camworker.inference.refiner import Refiner, settle_overflow
from camworker.ledger.recipe import Recipe
from camworker.networks.package import NetworkPackage, load
from camworker.presets import Choices, LocalizerOptions, Preset, check_refinement, load_for, resolve
from camworker.refinement import Refine, Refinement
from camworker.schemas import Precision, Refined


class Localizer:
    """Top-k labels, class activation maps and boxes of images, from one network.

    Attributes:
        package: The network with its classes and preprocessing.
        device: The device of the network.
        dtype: The type in which the network computes its features.
        settings: The preset and the options, resolved for this network.
        frame_spec: How an image is fitted into the network's input, and which of its views are evaluated.
        box_rule: The rule that makes boxes from maps.
        batch_size: The most images that the network is given at a time.
        map_size: Height and width of the map of one view, in cells.
        cam_shape: Shape of the maps of a row.
        refined_shape: Shape of the refined maps of a row; None without refinement.
        taps: The feature maps of earlier stages that are computed as well; None without refinement.
    """

    def __init__(
        self,
        package: NetworkPackage,
        *,
        preset: Preset = "default",
        device: str | torch.device | None = None,
        precision: Precision = "auto",
        top_k: int = 5,
        input_size: int | None = None,
        resize: Resize | None = None,
        views: Views | None = None,
        refine: Refine | Refinement | None = None,
        refined: Refined = "best",
        box_rule: str | None = None,
        batch_size: int | None = None,
    ) -> None:
        """Move a copy of a network to a device.

        Args:
            package: The network; it is not changed.
            preset: Decides what is left out of input_size, resize, views, refine and box_rule, see
                `camworker.presets`.
            device: Default: CUDA if it is available, else the CPU.
            precision: Precision of the network. "auto" is bfloat16 where the device computes in it, else
                float16 on a GPU and float32 on a CPU.
            top_k: Number of classes to rank; at most the number of the network's classes is used.
            input_size: Side of the network's square input, in pixels.
            resize: How an image is fitted into the square, see `camworker.frame.Frame`.
            views: Which views of an image are evaluated, see `camworker.cam.views_of`.
            refine: How class activation maps are refined, with constants of one's own or with the defaults.
            refined: Whether a prediction holds the refined map of the best class or of all ranked classes.
            box_rule: How boxes are made from maps, see `camworker.boxes.check_rule`.
            batch_size: The most images in the network at a time. Default: 64 on CUDA, 16 on the CPU.

        Raises:
            UsageError: A value cannot work.
            NetworkError: The network has no usable maps at this input size.
        """
        choices = Choices(preset, input_size, resize, views, refine, refined, box_rule, top_k, batch_size)
        self.settings = settings = resolve(choices, package)
        self.frame_spec, self.box_rule = settings.frame_spec, settings.box_rule
        self.package = package
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.dtype = resolve_dtype(precision, self.device)
        self.batch_size = batch_size or (64 if self.device.type == "cuda" else 16)
        self.map_size = package.map_at(self.frame_spec.input_size)
        self.cam_shape, self.refined_shape = row_shapes(settings, package, self.map_size)
        self._threads = threading.local()
        self._pixel_network = PixelNetwork(
            package.network,
            package.preprocessing,
            device=self.device,
            dtype=self.dtype,
            batch_size=self.batch_size,
            input_size=self.frame_spec.input_size,
            taps=settings.refinement is not None,
        )
        self.taps = self._pixel_network.taps
        self._preprocessor = Preprocessor(self.frame_spec, self.device)
        self._refiner = Refiner(
            settings.refinement, settings.head, settings.box_rule, keep_all=refined == "all"
        )
        self._cam_network = CamNetwork(
            self._pixel_network,
            self.frame_spec,
            self.cam_shape,
            package.scoring,
            self._refiner.on_device if self.device.type == "cuda" else None,
            keep_features=self._refiner.needs_features,
        )

    @classmethod
    def load(
        cls,
        network: str | Path | None = None,
        *,
        output_stride: int | None = None,
        **options: Unpack[LocalizerOptions],
    ) -> "Localizer":
        """Load a network and return its localizer.

        Args:
            network: Name of a network or folder of a network package. Default: EfficientNet-Lite0.
            output_stride: Input pixels per cell of the map; a smaller stride dilates the last stages.
                Default: that of the preset, see `camworker.presets`.
            **options: See `Localizer`.

        Raises:
            NetworkError: The network or its weights are refused.
            UsageError: A value cannot work.
        """
        name = None if network is None else str(network)
        package, _ = load_for(options.get("preset", "default"), name, output_stride=output_stride)
        return cls(package, **options)

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
            weights: Where the weights are, likewise.
            device: See `Localizer`.
            batch_size: See `Localizer`.

        Raises:
            CommitError: The weights, the foreground head or the taps are not those of the recipe.
            NetworkError: The network or its weights are refused.
        """
        package = load(
            network or recipe.network,
            weights,
            output_stride=recipe.output_stride,
            fingerprint=recipe.weights_fingerprint,
        )
        check_refinement(recipe, package)
        return cls(
            package,
            device=device,
            precision=recipe.precision,
            top_k=recipe.top_k,
            input_size=recipe.frame_spec.input_size,
            resize=recipe.frame_spec.resize,
            views=recipe.frame_spec.views,
            refine=recipe.refinement or "none",
            refined=recipe.refined,
            box_rule=recipe.box_rule,
            batch_size=batch_size,
        )

    def compile_into(self, file: Path, *, streams: int = 1) -> str | None:
        """Compile the network into a file, or load what an earlier call compiled into it.

        The file is valid for the same network, options, processor and number of torch's threads. Once
        compiled, the network rounds differently in the last digits of its precision. Up to `streams` threads
        may then call `forward` at a time.

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
        """Round the maps of a batch as they are stored, refine them, and make their boxes.

        An image with a map that float16 cannot hold is localized again in float32, unless that is the
        precision of the network. If that does not help, it fails with the status "map_overflow".

        Args:
            maps: The result of `forward` for this batch.
            batch: The images.
        """
        in_float32 = None if self.dtype == torch.float32 else self._forward_in_float32
        maps, batch = settle_overflow(maps or self._cam_network.no_maps(), batch, in_float32)
        frames = [image.frame for image in batch if isinstance(image, PreprocessedImage)]
        best, targets = self._refiner.class_maps(maps, frames)
        return Predictions(
            [image if isinstance(image, Failure) else None for image in batch],
            self.package.classes.names,
            np.array([(frame.width, frame.height) for frame in frames], np.int32).reshape(-1, 2),
            best,
            targets,
            maps.target_counts_B,
        )

    def pixels(self, batch: Sequence[PreprocessedImage]) -> torch.Tensor:
        """Return the pixels of a batch on the device, see `Preprocessor.pixels`."""
        return self._preprocessor.pixels(batch)

    @torch.inference_mode()
    def _forward_in_float32(
        self, images: Sequence[PreprocessedImage], targets: Sequence[Sequence[int]]
    ) -> Maps:
        return self._cam_network.in_float32(self._preprocessor.pixels(images), targets)

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
