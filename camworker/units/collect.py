"""A pass over items: what excites some units of a network most. Where it runs is not its business."""

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
from camworker.units.top_activations import PEAK, Excited, TopActivations


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
) -> Excited:
    """The count images of items that excite each of these units most.

    items: image_id, uri, source_row, identity, and number (int64, distinct), by which peaks name
    images. policy, decoders, isolate: as in preprocessed_batches. on_batch is told of statuses.
    """
    excitations = TopActivations.none(len(units_U), count)
    images = Counter[str]()
    seen_K = np.zeros(len(localizer.package.classes), np.int64)
    batches = preprocessed_batches(
        items, localizer, policy, connections, decode_threads=decoders, isolate=isolate
    )
    with closing(batches):
        for rows, received in batches:
            batch = localizer.preprocess_on_device(received)
            good = [image for image in batch if isinstance(image, PreprocessedImage)]
            if good:
                numbers = rows["number"].to_numpy()[[isinstance(image, PreprocessedImage) for image in batch]]
                features_BCHW, logits_BK = localizer.features(good)
                seen_K += np.bincount(logits_BK.argmax(1).cpu().numpy(), minlength=len(seen_K))
                chosen = torch.from_numpy(units_U.astype(np.int64)).to(features_BCHW.device)
                peaks_BU = peaks(features_BCHW[:, chosen])
                peaks_BU["number"] = numbers[:, None]
                peaks_BU["width"] = np.array([image.frame.width for image in good])[:, None]
                peaks_BU["height"] = np.array([image.frame.height for image in good])[:, None]
                excitations = excitations.update(peaks_BU)
            statuses = [image.status if isinstance(image, Failure) else "ok" for image in batch]
            images.update(statuses)
            on_batch(statuses)
    return Excited(excitations, images, seen_K)


def peaks(features_BUHW: torch.Tensor) -> NDArray[np.void]:
    """The maximum of every map: dtype PEAK [B, U], its image's number and size still zero.

    Where several cells hold the maximum, as they do under a ReLU6, the one among the most active
    neighbours, so that the patch shows the middle of what is seen; then the first in row order.
    """
    values_BU11 = features_BUHW.amax((2, 3), keepdim=True)
    around_BUHW = F.avg_pool2d(features_BUHW, 3, stride=1, padding=1)
    candidates_BUHW = around_BUHW.masked_fill(features_BUHW < values_BU11, -torch.inf)
    cells_BU = candidates_BUHW.flatten(2).argmax(2).cpu().numpy()
    found_BU = np.zeros(cells_BU.shape, PEAK)
    found_BU["value"] = values_BU11[:, :, 0, 0].cpu().numpy()
    found_BU["mean"] = features_BUHW.mean((2, 3)).cpu().numpy()
    found_BU["y"], found_BU["x"] = np.divmod(cells_BU, features_BUHW.shape[3])
    return found_BU
