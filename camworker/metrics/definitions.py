"""The metrics: each one is defined here, and only here. To add one, append it to METRICS.

Tallies, intervals, summaries, tables and pages iterate over that tuple.
"""

from collections.abc import Mapping
from typing import Final

from camworker.metrics.matching import IOU
from camworker.metrics.metric import Metric, Need
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
    at_best_threshold,
    average_precision,
    mean_at_best_thresholds,
    mean_over_classes,
    share,
)

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
        needs=_BOXES | {Need.EVERY_RANK} if k > 1 else _BOXES,
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
        needs=_BOXES | {Need.EVERY_RANK},
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
