"""What a fine-tuning is to do, checked before anything expensive starts."""

import argparse
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from camworker.errors import UsageError
from camworker.inputs import ReadPolicy
from camworker.metrics.ground_truth.truth import read_truth
from camworker.networks import package as weights
from camworker.networks.gap import Preprocessing, check_gap_head
from camworker.networks.registry import DEFAULT
from camworker.networks.state_dicts import PUBLISHED
from camworker.training.labelled_images import Examples
from camworker.training.trainer import Hyperparameters, TrueBoxes

RANDOM: Final = "random"


@dataclass(frozen=True)
class FinetuneConfig:
    """All that a worker needs to know. boxes: of each held-back item, its true boxes by label."""

    network: str
    pooling: str
    classes: int
    backbone_weights: str | None
    preprocessing: Preprocessing
    how: Hyperparameters
    patience: int | None
    training: pa.Table
    held_back: pa.Table
    boxes: list[TrueBoxes]
    policy: ReadPolicy


def build_config(args: argparse.Namespace, examples: Examples, held: NDArray[np.bool_]) -> FinetuneConfig:
    """Check all that was asked for. Raises UsageError."""
    start = args.backbone_weights or (PUBLISHED if args.network == DEFAULT else None)
    if start is None and args.network != "nin":
        raise UsageError(
            f"{args.network} has to start somewhere: --backbone-weights DEFAULT (downloads those that its "
            "library publishes), a file, or random"
        )
    start = None if start == RANDOM else start
    network = weights.build_for_training(
        args.network, len(examples.classes), pooling=args.pooling, backbone_weights=start
    )
    preprocessing = network.preprocessing
    if args.input_size:
        preprocessing = replace(preprocessing, input_size=args.input_size)
    check_gap_head(network, preprocessing.input_size)
    items = examples.listing.items
    training, held_items = items.filter(pa.array(~held)), items.filter(pa.array(held))
    return FinetuneConfig(
        network=args.network,
        pooling=network.pooling,
        classes=len(examples.classes),
        backbone_weights=start,
        preprocessing=preprocessing,
        how=Hyperparameters(
            args.epochs,
            args.batch_size,
            args.lr_backbone,
            args.lr_head,
            args.weight_decay,
            args.multi_label,
            args.seed,
            frozen_statistics=start is not None,
        ),
        patience=args.patience,
        training=training,
        held_back=held_items,
        boxes=_true_boxes(args, examples, held_items),
        policy=examples.listing.policy,
    )


def _true_boxes(args: argparse.Namespace, examples: Examples, items: pa.Table) -> list[TrueBoxes]:
    if not args.truth:
        return [{} for _ in range(items.num_rows)]
    truth = read_truth(args.truth, examples.classes, args.truth_boxes)
    if truth.corners is None:
        raise UsageError(f"{args.truth} has no boxes: columns xmin, ymin, xmax and ymax are needed")
    rows, in_truth = truth.of(items["image_id"].combine_chunks())
    if not len(rows):
        raise UsageError(f"{args.truth}: no held-back image has boxes there (are the image ids INPUT's?)")
    boxes: list[dict[int, Any]] = [{} for _ in range(items.num_rows)]
    for row, index in zip(rows.tolist(), in_truth.tolist(), strict=True):
        if np.isfinite(truth.corners[index]).all():
            boxes[row].setdefault(int(truth.labels[index]), []).append(truth.corners[index])
    return boxes
