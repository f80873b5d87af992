"""`Summary`: the metrics of predictions with their intervals, and the details that reports show with them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, cast

import numpy as np
from numpy.typing import NDArray

from camworker.metrics.criteria import MapKind
from camworker.metrics.error_categories import ErrorKind
from camworker.metrics.ground_truth.truth import Truth
from camworker.metrics.metric import Estimate
from camworker.metrics.tally import LISTED

FIXED_THRESHOLD: Final = 0.20


@dataclass(frozen=True)
class TruthFacts:
    """What a summary says about a ground truth, without holding it.

    Attributes:
        images: Number of images.
        labels: Number of rows.
        boxes: Whether there are boxes.
        masks: Whether there are masks.
        unknown: Labels that the network does not have, with the number of rows that were left out.
        notes: What else was left out or is remarkable, with its number.
        unseen: Ids of images without a row of predictions, at most tally.LISTED.
        first_image: Id of one of the images.
        unseen_count: Number of images without a row of predictions.
    """

    images: int
    labels: int
    boxes: bool
    masks: bool
    unknown: Mapping[str, int]
    notes: Mapping[str, int]
    unseen: tuple[str, ...]
    first_image: str | None
    unseen_count: int = 0

    @classmethod
    def from_truth(cls, truth: Truth, seen: NDArray[np.uint8] | None) -> "TruthFacts":
        """Return the facts about a ground truth; `seen` is `Tally.seen`."""
        bits = np.zeros(len(truth.images), np.uint8) if seen is None else np.unpackbits(seen)
        unseen = np.flatnonzero(bits[: len(truth.images)] == 0)
        return cls(
            len(truth.images),
            len(truth.labels),
            truth.corners is not None and bool(np.isfinite(truth.corners[:, 0]).any()),
            truth.masks is not None,
            truth.unknown,
            truth.notes,
            tuple(cast(list[str], truth.images.take(unseen[:LISTED]).to_pylist())),
            truth.images[0].as_py() if len(truth.images) else None,
            len(unseen),
        )


@dataclass(frozen=True)
class RunSettings:
    """What the predictions of a summary are.

    Attributes:
        recipe: Id of the recipe.
        box_rule: Rule that made the boxes.
        ranked_classes: Number of classes that a row ranks; 5 or more if it ranks all classes.
        best_class_only: Whether the box rule has a map of the best ranked class only.
        maps: Which maps MaxBoxAcc, the pointing game and PxAP are about.
        class_names: Names of the network's classes.
        complete: Whether all planned images have a row.
    """

    recipe: str
    box_rule: str
    ranked_classes: int
    class_names: tuple[str, ...]
    complete: bool = True
    best_class_only: bool = False
    maps: MapKind = "raw"


@dataclass(frozen=True)
class Thresholds:
    """The thresholds of MaxBoxAcc (V1) and MaxBoxAccV2 (V2), and V1 and V2 at a fixed one.

    Attributes:
        best: The best threshold of V1.
        best_by_delta: The best threshold of V2 by IoU.
        v2_by_delta: V2 by IoU, at the best thresholds.
        fixed_v2_by_delta: V2 by IoU at FIXED_THRESHOLD.
        fixed: V1 at FIXED_THRESHOLD.
        fixed_v2: V2 at FIXED_THRESHOLD.
    """

    best: float
    best_by_delta: Mapping[float, float]
    v2_by_delta: Mapping[float, float]
    fixed_v2_by_delta: Mapping[float, float]
    fixed: Estimate
    fixed_v2: Estimate


@dataclass(frozen=True)
class SweepCurves:
    """Accuracy against threshold.

    Attributes:
        rule: Whose boxes were evaluated, see `score_maps`.
        thresholds: The thresholds, [T].
        v1: Share of labels whose largest box reaches an IoU of 0.5, [T].
        v2: By IoU, share of labels of which any box reaches it, [T] each.
    """

    rule: str | None
    thresholds: tuple[float, ...]
    v1: tuple[float, ...]
    v2: Mapping[float, tuple[float, ...]]


@dataclass(frozen=True)
class Baselines:
    """What boxes reach that do not depend on the image.

    Attributes:
        instances: Number of instances whose image size is known.
        whole_image: Share of them for which the box over the whole image reaches an IoU of 0.5.
        gaussian: By IoU, the share for which the box of a centred Gaussian reaches it, at the best threshold.
        gaussian_threshold: By IoU, that threshold.
    """

    instances: int
    whole_image: float
    gaussian: Mapping[float, float]
    gaussian_threshold: Mapping[float, float]


@dataclass(frozen=True)
class SizeBin:
    """Accuracy on objects of a size; None without instances or, for GT-known, without all maps.

    Attributes:
        low: Lower end of the object's share of the image's area.
        high: Upper end of it.
        instances: Number of instances.
        gt_known: GT-known localization accuracy.
        top1: Top-1 localization accuracy.
        whole_image: Share for which the box over the whole image reaches an IoU of 0.5.
    """

    low: float
    high: float
    instances: int
    gt_known: float | None
    top1: float | None
    whole_image: float | None


@dataclass(frozen=True)
class ScoreBin:
    """Calibration of the images whose best score lies in an interval.

    Attributes:
        low: Lower end of the interval.
        high: Upper end of the interval.
        images: Number of images.
        score: Mean best score; None without images.
        accuracy: Share of images whose best class is right; None without images.
    """

    low: float
    high: float
    images: int
    score: float | None
    accuracy: float | None


@dataclass(frozen=True)
class ClassResult:
    """The results of one class.

    Attributes:
        label: Class index.
        name: Class name.
        instances: Number of instances.
        instances_with_boxes: Number of instances that have boxes.
        values: By `Metric.class_column`, the share of instances; None without any, or without their maps.
    """

    label: int
    name: str
    instances: int
    instances_with_boxes: int
    values: Mapping[str, float | None]


@dataclass(frozen=True)
class Comparison:
    """Another recipe compared with a summary's.

    Attributes:
        recipe: Id of the other recipe.
        values: By metric name, the other recipe's value.
        differences: By metric name, the other recipe's value less the summary's, with a paired interval.
    """

    recipe: str
    values: Mapping[str, float | None]
    differences: Mapping[str, Estimate]


@dataclass(frozen=True)
class RawBoxes:
    """The boxes of the raw maps, which show what refinement changes, on the same instances.

    Attributes:
        box_rule: The rule that made them.
        estimates: By name, the metrics that depend on the box rule.
        differences: By name, the summary's value less that of these boxes, with a paired interval.
        errors: Number of instances with boxes by the category of their first pair.
        by_size: Accuracy by the size of the object.
    """

    box_rule: str
    estimates: Mapping[str, Estimate]
    differences: Mapping[str, Estimate]
    errors: Mapping[ErrorKind, int]
    by_size: tuple[SizeBin, ...]


@dataclass(frozen=True)
class Summary:
    """What an evaluation of predictions came to. `summary_json.to_json` writes it, and all reports show it.

    Attributes:
        settings: What the predictions are.
        inclusive: Whether IoU added 1 to widths and heights.
        select_threshold_on: Share of the images that thresholds were chosen on; None if they were chosen on
            the images that they are reported on.
        images: Number of images.
        failed: Number of failed images by status.
        images_with_truth: Number of images that have ground truth.
        truth_without_image: Number of images of the ground truth without predictions.
        instances: Number of instances.
        instances_with_boxes: Number of instances that have true boxes.
        instances_without_target: Number of instances that could be evaluated but for a map of their own.
        unknown_classes: Labels that the network does not have, with the number of rows that were left out.
        truth_notes: What else of the ground truth was left out or is remarkable, with its number.
        estimates: The metrics by name.
        thresholds: Thresholds of MaxBoxAcc; None if MaxBoxAcc has no value.
        sweep: Accuracy against threshold; None without a sweep or without all maps.
        swept_instances: Number of instances that thresholds were chosen on, and that are reported on.
        mask_pixels: Number of pixels that PxAP evaluates.
        baselines: Results of boxes that do not depend on the image; None without boxes of images of known
            size.
        errors: Number of instances with boxes by the category of their first pair.
        by_size: Accuracy by the size of the object.
        iou_histogram: Number of instances by the IoU of the first box of their own map, in equal bins of
            0..1.
        calibration_error: Expected calibration error (Guo et al., ICML 2017): the mean of |accuracy - score|
            over the bins, weighted by their images; None without images.
        calibration: Calibration by score.
        per_class: The results of each class.
        without_truth: Ids of images without ground truth, at most tally.LISTED.
        unseen: Ids of images of the ground truth without predictions, at most tally.LISTED.
        raw: The boxes of the raw maps, if they were evaluated as well.
        compared: Other recipes, compared with this one.
    """

    settings: RunSettings
    inclusive: bool
    select_threshold_on: float | None
    images: int
    failed: Mapping[str, int]
    images_with_truth: int
    truth_without_image: int
    instances: int
    instances_with_boxes: int
    instances_without_target: int
    unknown_classes: Mapping[str, int]
    truth_notes: Mapping[str, int]
    estimates: Mapping[str, Estimate]
    thresholds: Thresholds | None
    sweep: SweepCurves | None
    swept_instances: tuple[int, int]
    mask_pixels: int
    baselines: Baselines | None
    errors: Mapping[ErrorKind, int]
    by_size: tuple[SizeBin, ...]
    iou_histogram: tuple[int, ...]
    calibration_error: float | None
    calibration: tuple[ScoreBin, ...]
    per_class: tuple[ClassResult, ...]
    without_truth: tuple[str, ...]
    unseen: tuple[str, ...]
    raw: RawBoxes | None = None
    compared: tuple[Comparison, ...] = ()

    @property
    def images_without_truth(self) -> int:
        """Number of images that have no ground truth."""
        return self.images - self.images_with_truth

    def value(self, name: str) -> float | None:
        """Return the value of the metric of a name, or None."""
        return self.estimates[name].value
