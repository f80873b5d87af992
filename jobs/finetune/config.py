"""The configuration of a fine-tuning run, checked before anything expensive starts."""

from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from camworker.errors import UsageError
from camworker.inputs import ReadPolicy
from camworker.metrics.ground_truth.annotations import Corners
from camworker.metrics.ground_truth.truth import read_truth
from camworker.networks.gap import Preprocessing
from camworker.networks.gap_check import check_gap_head
from camworker.networks.package import build_for_training
from camworker.networks.registry import DEFAULT
from camworker.networks.state_dicts import PUBLISHED
from camworker.schemas import Pooling
from camworker.training.labelled_images import Examples
from camworker.training.trainer import Hyperparameters, TrueBoxes

Initialization = Literal["published", "random"]

# These networks have no published weights, so that they start from random ones unless a file is given.
_WITHOUT_PUBLISHED_WEIGHTS: Final = frozenset({"nin"})


@dataclass(frozen=True, slots=True)
class NetworkOptions:
    """Which network is trained, and where its weights start.

    Attributes:
        name: Name of the network.
        pooling: Global pooling, or None for the network's own.
        init: Start from published or from random weights; None if a file is given, or for the default.
        backbone_weights: File with the weights to start from.
        input_size: Side of the network's input in pixels, or None for the network's own.
    """

    name: str
    pooling: Pooling | None = None
    init: Initialization | None = None
    backbone_weights: str | None = None
    input_size: int | None = None


@dataclass(frozen=True, slots=True)
class TruthOptions:
    """A file of true boxes.

    Attributes:
        path: Location of the file.
        corners: Whether the file's boxes are half-open or inclusive.
    """

    path: str
    corners: Corners = "half-open"


@dataclass(frozen=True)
class FinetuneConfig:
    """Everything that a worker needs to know.

    Attributes:
        network: Name of the network.
        pooling: Global pooling of the network.
        classes: Number of classes.
        init: Whether training starts from published or random weights; None for `backbone_weights`.
        backbone_weights: File with the weights that training starts from, if any.
        preprocessing: How images are prepared for the network.
        hyperparameters: The hyperparameters.
        patience: Stop after this many epochs without improvement; None never stops early.
        training: The images to learn from (schema ITEMS).
        held_back: The images to validate on (schema ITEMS).
        boxes: The true boxes of each held-back image.
        policy: Which files may be read for the items.
    """

    network: str
    pooling: Pooling
    classes: int
    init: Initialization | None
    backbone_weights: str | None
    preprocessing: Preprocessing
    hyperparameters: Hyperparameters
    patience: int | None
    training: pa.Table
    held_back: pa.Table
    boxes: list[TrueBoxes]
    policy: ReadPolicy

    @property
    def initial_weights(self) -> str | None:
        """The initial weights in the form that `build_for_training` expects."""
        return PUBLISHED if self.init == "published" else self.backbone_weights


def build_config(
    network: NetworkOptions,
    hyperparameters: Hyperparameters,
    examples: Examples,
    held: NDArray[np.bool_],
    *,
    patience: int | None = None,
    truth: TruthOptions | None = None,
) -> FinetuneConfig:
    """Check the options of a run and return its configuration.

    Args:
        network: Which network is trained.
        hyperparameters: The hyperparameters; `frozen_statistics` is set for initial weights that are not
            random.
        examples: The labelled images.
        held: Whether each image is held back.
        patience: Stop after this many epochs without improvement.
        truth: True boxes of held-back images.

    Raises:
        UsageError: The options or the images cannot work.
    """
    init = network.init
    if init is None and network.backbone_weights is None:
        if network.name == DEFAULT:
            init = "published"
        elif network.name in _WITHOUT_PUBLISHED_WEIGHTS:
            init = "random"
        else:
            raise UsageError(
                f"{network.name} needs initial weights: --init published (downloads the weights that its "
                "library publishes), --init random, or --backbone-weights FILE"
            )
    weights = PUBLISHED if init == "published" else network.backbone_weights
    built = build_for_training(
        network.name, len(examples.classes), pooling=network.pooling, backbone_weights=weights
    )
    preprocessing = built.preprocessing
    if network.input_size:
        preprocessing = replace(preprocessing, input_size=network.input_size)
    check_gap_head(built, preprocessing.input_size)
    items = examples.listing.items
    training, held_items = items.filter(pa.array(~held)), items.filter(pa.array(held))
    return FinetuneConfig(
        network=network.name,
        pooling=built.pooling,
        classes=len(examples.classes),
        init=init,
        backbone_weights=network.backbone_weights,
        preprocessing=preprocessing,
        hyperparameters=replace(hyperparameters, frozen_statistics=init != "random"),
        patience=patience,
        training=training,
        held_back=held_items,
        boxes=_true_boxes(truth, examples, held_items),
        policy=examples.listing.policy,
    )


def _true_boxes(truth: TruthOptions | None, examples: Examples, items: pa.Table) -> list[TrueBoxes]:
    """Return the true boxes of each item."""
    if truth is None:
        return [{} for _ in range(items.num_rows)]
    ground_truth = read_truth(truth.path, examples.classes, truth.corners)
    if ground_truth.corners is None:
        raise UsageError(f"{truth.path} has no boxes: columns xmin, ymin, xmax and ymax are needed")
    rows, truth_rows = ground_truth.rows_of(items["image_id"].combine_chunks())
    if not len(rows):
        raise UsageError(
            f"{truth.path} has no boxes of held-back images: its image ids may differ from those of the input"
        )
    boxes: list[dict[int, list[NDArray[np.float32]]]] = [{} for _ in range(items.num_rows)]
    for row, truth_row in zip(rows.tolist(), truth_rows.tolist(), strict=True):
        if np.isfinite(ground_truth.corners[truth_row]).all():
            label = int(ground_truth.labels[truth_row])
            boxes[row].setdefault(label, []).append(ground_truth.corners[truth_row])
    return [{label: np.stack(corners) for label, corners in by_label.items()} for by_label in boxes]
