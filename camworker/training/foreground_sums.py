"""Compute the sums of a foreground head over images, which need no boxes and no labels."""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Final, TypeGuard, cast

import numpy as np
import pyarrow as pa
import torch

from camworker.boxes.refine import refined_values
from camworker.cam import class_activation_maps
from camworker.errors import Failure, NetworkError
from camworker.images.decode import PreprocessedImage
from camworker.inference.localizer import Localizer
from camworker.inference.pixel_network import PixelNetwork
from camworker.inference.prefetch import preprocessed_batches
from camworker.inference.preprocessor import ImageInFlight
from camworker.inputs import ReadPolicy
from camworker.networks.foreground import ForegroundSums, fit_head
from camworker.networks.foreground_file import FittedForeground
from camworker.networks.package import NetworkPackage
from camworker.networks.taps import Taps
from camworker.refinement import MAX_DEEP_CHANNELS, MAX_TAP_CHANNELS, Refinement
from camworker.storage.uris import Connections

# The outcome of an image whose map has no positive value; it is no failure, but there is nothing to learn.
NO_MAP: Final = "no_map"


@dataclass(frozen=True, slots=True)
class CollectedForeground:
    """The result of one shard.

    Attributes:
        sums: The sums over its images.
        images: Its images by status; "no_map" are those without a positive value in their map.
    """

    sums: ForegroundSums
    images: Counter[str]


def require_taps(package: NetworkPackage) -> Taps:
    """Return the feature maps that a foreground head of a network reads.

    Raises:
        NetworkError: The network has none.
    """
    network = package.network
    if network.taps is None:
        raise NetworkError(f"{package.name} cannot have a foreground head: {network.no_taps_reason}")
    return network.taps


def zero_sums(taps: Taps) -> ForegroundSums:
    """Return the sums over no image of a network with these taps."""
    deep = min(taps.deep.channels, MAX_DEEP_CHANNELS) if taps.deep else 0
    return ForegroundSums.zero(min(taps.fine.channels, MAX_TAP_CHANNELS), deep)


def fit_foreground(
    package: NetworkPackage, sums: ForegroundSums, fits: Sequence[Mapping[str, object]]
) -> FittedForeground:
    """Fit the foreground head of a network.

    Args:
        package: The network.
        sums: The sums over its images.
        fits: Where the images come from, for people; JSON.

    Raises:
        NetworkError: The network has no feature maps that a head could read.
        UsageError: There are too few images.
    """
    return FittedForeground(
        fit_head(sums), sums, require_taps(package), package.fingerprint, tuple(dict(fit) for fit in fits)
    )


class ForegroundCollector:
    """A network with its taps, which gives the sums of images, shard after shard.

    The network runs in float32, with the preprocessing of its package.

    Args:
        package: The network; it has taps.
        batch_size: Number of images of a batch. Default: see `Localizer`.
    """

    def __init__(self, package: NetworkPackage, *, batch_size: int | None = None) -> None:
        input_size = package.preprocessing.input_size
        self.localizer = Localizer(
            package,
            preset="paper",  # an image as the network was trained, and nothing refined
            precision="float32",
            input_size=input_size,
            batch_size=batch_size,
        )
        self._network = PixelNetwork(
            package.network,
            package.preprocessing,
            device=self.localizer.device,
            dtype=torch.float32,
            batch_size=self.localizer.batch_size,
            input_size=input_size,
            taps=True,
        )

    def collect(
        self,
        items: pa.Table,
        policy: ReadPolicy,
        connections: Connections | None = None,
        *,
        decoders: int,
        streams: int = 1,
        on_batch: Callable[[Sequence[str]], None] = lambda statuses: None,
        isolate: bool = False,
    ) -> CollectedForeground:
        """Add up the sums of items, one after the other.

        Args:
            items: Columns uri, source_row, identity, and labels (the known classes of each image).
            policy: Which files may be read.
            connections: Connections to share between calls.
            decoders: Number of threads that decode images.
            streams: Number of threads that run a batch each through the network.
            on_batch: Called with the statuses of each batch.
            isolate: Decode images in a child process, so that a crashing decoder ends no worker.
        """
        sums, images = zero_sums(require_taps(self.localizer.package)), Counter[str]()
        batches = preprocessed_batches(
            items, self.localizer, policy, connections, decode_threads=decoders, isolate=isolate
        )
        with closing(batches), ThreadPoolExecutor(streams) as pool:
            for outcomes in _in_order(pool, streams, self._outcomes, batches):
                for outcome in outcomes:
                    sums = sums + outcome if isinstance(outcome, ForegroundSums) else sums
                statuses = ["ok" if isinstance(each, ForegroundSums) else each for each in outcomes]
                images.update(statuses)
                on_batch(statuses)
        return CollectedForeground(sums, images)

    def _outcomes(self, rows: pa.Table, received: Sequence[ImageInFlight]) -> list[ForegroundSums | str]:
        """Return the sums of each image of a batch, or why there are none."""
        batch = self.localizer.preprocess_on_device(received)
        labels = cast("list[list[int]]", rows["labels"].to_pylist())
        good = [(image, own) for image, own in zip(batch, labels, strict=True) if _is_good(image)]
        sums = iter(self._sums_of(*zip(*good, strict=True)) if good else [])
        return [image.status if isinstance(image, Failure) else next(sums) or NO_MAP for image in batch]

    @torch.inference_mode()
    def _sums_of(
        self, images: Sequence[PreprocessedImage], labels: Sequence[Sequence[int]]
    ) -> list[ForegroundSums | None]:
        """Return the sums of each image of a batch; None without a positive value in its map."""
        package = self.localizer.package
        output = self._network.evaluate(self.localizer.pixels(images))
        predicted = output.logits_BK.argmax(1).tolist()
        classes = [list(own) or [best] for own, best in zip(labels, predicted, strict=True)]
        images_M = np.repeat(np.arange(len(classes)), [len(own) for own in classes])
        weights_MC = self._network.network.weights_KC[[label for own in classes for label in own]]
        features_MCHW = output.features_BCHW[torch.from_numpy(images_M)]
        cams_Mhw = class_activation_maps(features_MCHW, weights_MC[:, None])[:, 0].cpu().numpy()
        fine_BCHW = cast(torch.Tensor, output.fine_BCHW).cpu().numpy()  # with taps it is never None
        deep_BCHW = None if output.deep_BCHW is None else output.deep_BCHW.cpu().numpy()
        refinement = Refinement.of("ridge", package.scoring)
        maps_MHW = refined_values(cams_Mhw, images_M, fine_BCHW, None, refinement, None)
        sums: list[ForegroundSums | None] = []
        for image, own in enumerate(classes):
            map_HW = maps_MHW[images_M == image].max(0)
            deep_CHW = None if deep_BCHW is None else deep_BCHW[image]
            names = [package.classes.names[label] for label in own]
            usable = map_HW.any() and np.isfinite(map_HW).all()
            sums.append(
                ForegroundSums.of_image(fine_BCHW[image], deep_CHW, map_HW, names) if usable else None
            )
        return sums


def _is_good(image: PreprocessedImage | Failure) -> TypeGuard[PreprocessedImage]:
    return isinstance(image, PreprocessedImage)


def _in_order(
    pool: ThreadPoolExecutor,
    streams: int,
    function: Callable[[pa.Table, Sequence[ImageInFlight]], list[ForegroundSums | str]],
    batches: Iterable[tuple[pa.Table, Sequence[ImageInFlight]]],
) -> Iterator[list[ForegroundSums | str]]:
    """Yield the results of a function for each batch, in order, a few of which run at a time."""
    running: deque[Future[list[ForegroundSums | str]]] = deque()
    for batch in batches:
        running.append(pool.submit(function, *batch))
        if len(running) > streams:
            yield running.popleft().result()
    while running:
        yield running.popleft().result()
