"""The metrics: each one is defined here, and only here.

A metric is a numerator and a denominator that are added up over instances, an aggregate that makes a value of
the two sums, and what it needs of rows and ground truth. To add one, append it to METRICS: tallies,
intervals, summaries, tables and pages iterate over that tuple.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from camworker.metrics.matching import IOU
from camworker.metrics.sums import (
    DELTAS,
    INSTANCES,
    MASK_PIXELS,
    PIXEL_COUNTS,
    SWEPT,
    V1_HITS,
    V2_HITS,
    WITH_BOXES,
    Sum,
    Values,
    at_best_threshold,
    average_precision,
    mean_at_best_thresholds,
    mean_over_classes,
    share,
)

Aggregate = Callable[[NDArray[Any], NDArray[Any]], Values]


@dataclass(frozen=True)
class Estimate:
    """The value of a metric on a data set.

    Attributes:
        value: The value, a fraction in 0..1 (a difference: in -1..1); None if it cannot be given.
        interval: The 95% interval (low, high), if there is one.
        reason_missing: Why there is no value; empty if there is one.
        count: Number of labels, classes or pixels that the value is a share of or a mean over.
    """

    value: float | None
    interval: tuple[float, float] | None = None
    reason_missing: str = ""
    count: int = 0


class Need(Enum):
    """What a metric needs of rows and ground truth."""

    BOXES = "true boxes"
    MASKS = "masks"
    OWN_MAP = "the known label's own map for every instance"
    SWEEP = "boxes at every threshold"


@dataclass(frozen=True)
class Support:
    """What the rows and the ground truth of a summary offer.

    Attributes:
        instances: Number of instances.
        has_boxes: Whether the ground truth has boxes.
        has_masks: Whether the ground truth has masks.
        missing_maps: Number of instances that could be evaluated but for a map of their own.
        ranked_classes: Number of classes that a row ranks.
        box_rule: The box rule, for messages.
    """

    instances: int
    has_boxes: bool
    has_masks: bool
    missing_maps: int
    ranked_classes: int
    box_rule: str


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric.

    Attributes:
        name: Key in JSON and in tables.
        title: Name for people.
        group: Heading under which pages show it.
        definition: What the metric is, in one or two sentences.
        numerator: The first sum of the aggregate. For a metric with `higher_is_better` false, an error, it
            adds up what is right.
        denominator: The second sum of the aggregate.
        aggregate: Makes the value, or for an error 1 less the value, of numerator and denominator. Leading
            axes of replicates are kept.
        counted: What the denominator counts.
        needs: What must be there for the metric to have a value.
        top_k: Number of classes that rows must rank.
        higher_is_better: False for an error.
        undefined: Message of the error that is raised if everything needed is there and the value is still
            undefined.
    """

    name: str
    title: str
    group: str
    definition: str
    numerator: Sum
    denominator: Sum
    aggregate: Aggregate
    counted: Literal["labels", "classes", "pixels"] = "labels"
    needs: frozenset[Need] = frozenset()
    top_k: int = 1
    higher_is_better: bool = True
    undefined: str = "the value is undefined"

    @property
    def is_share(self) -> bool:
        """Whether the value is the share of instances with some property, at no chosen threshold."""
        return self.aggregate is share

    @property
    def depends_on_box_rule(self) -> bool:
        """Whether the value is about the boxes of one rule: another rule gives another value."""
        return Need.BOXES in self.needs and Need.SWEEP not in self.needs

    @property
    def class_column(self) -> str | None:
        """The key of the metric in a row of one class; None if it is not defined for a class."""
        if self.aggregate in (share, mean_over_classes):
            return self.name.replace("_error", "_accuracy")
        return None

    def value(self, sums: "dict[str, NDArray[Any]]") -> Values:
        """Return the value for the sums of a tally, or the values [R] for those of R replicates.

        NaN stands for an undefined value.
        """
        prefix = "class_" if self.aggregate is mean_over_classes else ""
        numerator, denominator = (sums.get(prefix + part.name) for part in (self.numerator, self.denominator))
        if numerator is None or denominator is None:
            return np.full(np.shape(sums[INSTANCES.name]), np.nan)
        value = self.aggregate(numerator, denominator)
        return value if self.higher_is_better else 1 - value

    def reason_missing(self, support: Support, sums: "dict[str, NDArray[Any]]") -> str:
        """Return why the metric has no value, or an empty string if it has one."""
        denominator = sums.get(self.denominator.name)
        if Need.MASKS in self.needs and not support.has_masks:
            return "not supported: the truth has no masks"
        if not support.instances:
            return "not supported: no image has truth"
        if Need.BOXES in self.needs and not support.has_boxes:
            return "not supported: the truth has no boxes"
        if Need.OWN_MAP in self.needs and support.missing_maps:
            return (
                f"not supported: {support.missing_maps:,} known labels have no map of their own; localize "
                "the images with their labels"
            )
        if self.top_k > support.ranked_classes:
            return (
                f"not supported: the rows rank {support.ranked_classes} classes; localize with "
                f"{self.top_k} or more"
            )
        if denominator is None or not denominator.any():
            return "not supported: no image has such truth"
        if Need.SWEEP in self.needs and self.numerator.name not in sums:
            return f"not supported: {support.box_rule} has no threshold to sweep"
        if not denominator.all():
            return "not supported: one share of the images holds none with boxes"
        return ""


_CLASS, _CLASS_AND_BOX = "Class", "Class and box"
_BOX, _MAP = "Box of the known label", "Map of the known label"
_BOXES: Final = frozenset({Need.BOXES})
_OWN_MAP_AND_BOXES: Final = frozenset({Need.BOXES, Need.OWN_MAP})


def _gt_known(delta: float, name: str, title: str) -> Metric:
    return Metric(
        name=name,
        title=title,
        group=_BOX,
        definition=f"The first box of the known label's own map has an IoU of at least {delta} with a true "
        "box of it.",
        numerator=Sum(f"gt_known_localized_{delta}", lambda e: e.matches.iou >= delta),
        denominator=WITH_BOXES,
        aggregate=share,
        needs=_OWN_MAP_AND_BOXES,
    )


# By IoU. JSON has them together under "gt_known_at", and the one at 0.5 also under the name of the metric.
GT_KNOWN_AT: Final[Mapping[float, Metric]] = {
    delta: _gt_known(delta, f"gt_known_at_{delta}", f"GT-known accuracy at IoU {delta}")
    if delta != IOU
    else _gt_known(IOU, "gt_known_localization_accuracy", "GT-known localization accuracy")
    for delta in DELTAS
}
GT_KNOWN: Final = GT_KNOWN_AT[IOU]
MAX_BOX_ACC: Final = Metric(
    name="max_box_acc",
    title="MaxBoxAcc",
    group=_BOX,
    definition="The share of labels whose largest box reaches an IoU of 0.5, at the threshold that is best "
    "for all images together (Choe et al., CVPR 2020).",
    numerator=V1_HITS,
    denominator=SWEPT,
    aggregate=at_best_threshold,
    needs=_OWN_MAP_AND_BOXES | {Need.SWEEP},
)
MAX_BOX_ACC_V2: Final = Metric(
    name="max_box_acc_v2",
    title="MaxBoxAccV2",
    group=_BOX,
    definition="As MaxBoxAcc, but any of the map's boxes may reach the IoU; the mean over IoU 0.3, 0.5 and "
    "0.7, each at its own best threshold (Choe et al., TPAMI 2022).",
    numerator=V2_HITS,
    denominator=SWEPT,
    aggregate=mean_at_best_thresholds,
    needs=_OWN_MAP_AND_BOXES | {Need.SWEEP},
)


def _classification_error(k: int, column: int) -> Metric:
    return Metric(
        name=f"top{k}_classification_error",
        title=f"top-{k} classification error",
        group=_CLASS,
        definition=f"The label is not among the {k} best ranked classes."
        if k > 1
        else "The label is not the best ranked class.",
        numerator=Sum(f"top{k}_classified", lambda e: e.matches.classified[:, column]),
        denominator=INSTANCES,
        aggregate=share,
        top_k=k,
        higher_is_better=False,
    )


def _localization_error(k: int, column: int) -> Metric:
    return Metric(
        name=f"top{k}_localization_error",
        title=f"top-{k} localization error",
        group=_CLASS_AND_BOX,
        definition=f"None of the {k} best ranked pairs of class and box has the right class and an IoU of at "
        "least 0.5 with a true box of that class (Russakovsky et al., ILSVRC, IJCV 2015)."
        if k > 1
        else "The best ranked pair of class and box has a wrong class, or an IoU below 0.5 with every true "
        "box of that class (Russakovsky et al., ILSVRC, IJCV 2015).",
        numerator=Sum(f"top{k}_localized", lambda e: e.matches.localized[:, column]),
        denominator=WITH_BOXES,
        aggregate=share,
        needs=_BOXES,
        top_k=k,
        higher_is_better=False,
    )


METRICS: Final = (
    _classification_error(1, 0),
    _classification_error(5, 1),
    _localization_error(1, 0),
    _localization_error(5, 1),
    GT_KNOWN,
    *(metric for metric in GT_KNOWN_AT.values() if metric is not GT_KNOWN),
    Metric(
        name="corloc",
        title="CorLoc, mean over classes",
        group=_BOX,
        definition="The share of a class's labels whose first box has an IoU of at least 0.5; the mean over "
        "classes (Deselaers et al., IJCV 2012).",
        numerator=Sum("localized_anywhere", lambda e: e.matches.localized_anywhere & e.matches.has_boxes),
        denominator=WITH_BOXES,
        aggregate=mean_over_classes,
        counted="classes",
        needs=_BOXES,
    ),
    MAX_BOX_ACC,
    MAX_BOX_ACC_V2,
    Metric(
        name="pointing_game_accuracy",
        title="pointing game, mean over classes",
        group=_MAP,
        definition="The map's maximum lies within 15 pixels of the object; the mean over classes (Zhang et "
        "al., IJCV 2018).",
        numerator=Sum("pointing_hits", lambda e: e.maps.pointing_hit),
        denominator=Sum("pointing_targets", lambda e: e.maps.has_pointing_target),
        aggregate=mean_over_classes,
        counted="classes",
        needs=frozenset({Need.OWN_MAP}),
    ),
    Metric(
        name="pxap",
        title="PxAP",
        group=_MAP,
        definition="The area under the curve of precision and recall of the maps' pixels against masks, all "
        "images pooled (Choe et al., CVPR 2020).",
        numerator=PIXEL_COUNTS,
        denominator=MASK_PIXELS,
        aggregate=average_precision,
        counted="pixels",
        needs=frozenset({Need.MASKS, Need.OWN_MAP}),
        undefined="the masks hold no pixel of an object: PxAP needs some",
    ),
)
