"""`Metric`: what a metric is, what it needs of rows and ground truth, and why it may have no value.

A metric is a numerator and a denominator that are added up over instances, and an aggregate that makes a
value of the two sums. The metrics themselves are in `definitions`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from camworker.metrics.sums import INSTANCES, Sum, Values, mean_over_classes, share

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
    EVERY_RANK = "boxes of every ranked class"


@dataclass(frozen=True)
class Support:
    """What the rows and the ground truth of a summary offer.

    Attributes:
        instances: Number of instances.
        has_boxes: Whether the ground truth has boxes.
        has_masks: Whether the ground truth has masks.
        missing_maps: Number of instances that could be evaluated but for a map of their own.
        ranked_classes: Number of classes that a row ranks.
        best_class_only: Whether only the best ranked class has boxes.
        box_rule: The box rule, for messages.
    """

    instances: int
    has_boxes: bool
    has_masks: bool
    missing_maps: int
    ranked_classes: int
    best_class_only: bool
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

    def lacks_maps(self, missing_maps: int) -> bool:
        """Return whether the metric has no value because `missing_maps` labels have no map of their own."""
        return Need.OWN_MAP in self.needs and missing_maps > 0

    def lacks_boxes(self, missing_maps: int, *, best_class_only: bool) -> bool:
        """Return whether the metric has no value because lower ranked classes have no boxes.

        A metric of the first class or of the label's own map has one if no label is without a map.
        """
        return Need.EVERY_RANK in self.needs and best_class_only and (self.top_k > 1 or missing_maps > 0)

    def reason_missing(self, support: Support, sums: "dict[str, NDArray[Any]]") -> str:
        """Return why the metric has no value, or an empty string if it has one."""
        denominator = sums.get(self.denominator.name)
        if Need.MASKS in self.needs and not support.has_masks:
            return "not supported: the truth has no masks"
        if not support.instances:
            return "not supported: no image has truth"
        if Need.BOXES in self.needs and not support.has_boxes:
            return "not supported: the truth has no boxes"
        if self.lacks_maps(support.missing_maps):
            return (
                f"not supported: {support.missing_maps:,} known labels have no map of their own; localize "
                "the images with their labels"
            )
        if self.top_k > support.ranked_classes:
            return (
                f"not supported: the rows rank {support.ranked_classes} classes; localize with "
                f"{self.top_k} or more"
            )
        if self.lacks_boxes(support.missing_maps, best_class_only=support.best_class_only):
            return (
                "not supported: the rows hold the refined map of the best class only; localize with those of "
                "all classes"
            )
        if denominator is None or not denominator.any():
            return "not supported: no image has such truth"
        if Need.SWEEP in self.needs and self.numerator.name not in sums:
            return f"not supported: {support.box_rule} has no threshold to sweep"
        if not denominator.all():
            return "not supported: one share of the images holds none with boxes"
        return ""
