"""Find the images that activate the units of a network most."""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from camworker.errors import Failure
from camworker.images.decode import PreprocessedImage
from camworker.inference.localizer import Localizer
from camworker.inference.prefetch import preprocessed_batches
from camworker.inputs import ReadPolicy
from camworker.storage.uris import Connections
from camworker.units.top_activations import PEAK, CollectedActivations, TopActivations


def collect_top_activations(
    items: pa.Table,
    localizer: Localizer,
    units_U: NDArray[np.integer],
    count: int,
    policy: ReadPolicy,
    connections: Connections | None = None,
    *,
    decoders: int,
    on_batch: Callable[[Sequence[str]], None] = lambda statuses: None,
    isolate: bool = False,
) -> CollectedActivations:
    """Run the network over items and keep the images that activate each unit most.

    Args:
        items: Columns image_id, uri, source_row, identity, and number (int64, distinct), which identifies
            an image in the result.
        localizer: Preprocesses the images and runs the network.
        units_U: The units.
        count: Number of images to keep for each unit.
        policy: Which files may be read.
        connections: Connections to share between calls.
        decoders: Number of threads that decode images.
        on_batch: Called with the statuses of each batch.
        isolate: Decode images in a child process, so that a crashing decoder ends no worker.
    """
    activations = TopActivations.empty(len(units_U), count)
    images = Counter[str]()
    top1_counts_K = np.zeros(len(localizer.package.classes), np.int64)
    batches = preprocessed_batches(
        items, localizer, policy, connections, decode_threads=decoders, isolate=isolate
    )
    with closing(batches):
        for rows, received in batches:
            batch = localizer.preprocess_on_device(received)
            decoded = [isinstance(image, PreprocessedImage) for image in batch]
            good = [image for image in batch if isinstance(image, PreprocessedImage)]
            if good:
                numbers = rows["number"].to_numpy()[decoded]
                features_BCHW, logits_BK = localizer.features(good)
                top1_counts_K += np.bincount(logits_BK.argmax(1).cpu().numpy(), minlength=len(top1_counts_K))
                unit_indices = torch.from_numpy(units_U.astype(np.int64)).to(features_BCHW.device)
                peaks_BU = peaks(features_BCHW[:, unit_indices])
                peaks_BU["number"] = numbers[:, None]
                peaks_BU["width"] = np.array([image.frame.width for image in good])[:, None]
                peaks_BU["height"] = np.array([image.frame.height for image in good])[:, None]
                activations = activations.update(peaks_BU)
            statuses = [image.status if isinstance(image, Failure) else "ok" for image in batch]
            images.update(statuses)
            on_batch(statuses)
    return CollectedActivations(activations, images, top1_counts_K)


def peaks(features_BUHW: torch.Tensor) -> NDArray[np.void]:
    """Return the maximum of every map.

    If several cells hold the maximum, as is common under a ReLU6, the one with the most active neighbours is
    taken, so that the patch shows the middle of the active region; among equal ones the first in row order.

    Args:
        features_BUHW: Feature maps of B images and U units.

    Returns:
        An array of dtype PEAK, [B, U]; the number and the size of the images are left zero.
    """
    values_BU11 = features_BUHW.amax((2, 3), keepdim=True)
    around_BUHW = F.avg_pool2d(features_BUHW, 3, stride=1, padding=1)
    candidates_BUHW = around_BUHW.masked_fill(features_BUHW < values_BU11, -torch.inf)
    cells_BU = candidates_BUHW.flatten(2).argmax(2).cpu().numpy()
    peaks_BU = np.zeros(cells_BU.shape, PEAK)
    peaks_BU["value"] = values_BU11[:, :, 0, 0].cpu().numpy()
    peaks_BU["mean"] = features_BUHW.mean((2, 3)).cpu().numpy()
    peaks_BU["y"], peaks_BU["x"] = np.divmod(cells_BU, features_BUHW.shape[3])
    return peaks_BU
