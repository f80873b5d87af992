"""Which labels of the rows are exported, and the counts of what is exported and what is left out."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class LabelSelection:
    """Which boxes or masks become labels.

    Attributes:
        classes: Class indices, or None for all classes.
        ranks: How many of the top-k labels of an image are used, the best first; ignored for targets.
        min_score: Minimum score of a label, from 0 to 1.
        targets: Use the known labels of each image instead of the predicted ones.
        box_rule: Make new boxes from the stored maps with this rule; None uses the stored boxes.
        keep_fallback: Also use the boxes over the whole image that stand for a map without a positive value.
        mask_threshold: Make a mask of each label from its refined map in place of boxes, see
            `camworker.boxes.masks.weak_mask`; None makes boxes.
    """

    classes: frozenset[int] | None = None
    ranks: int = 1
    min_score: float = 0.0
    targets: bool = False
    box_rule: str | None = None
    keep_fallback: bool = False
    mask_threshold: float | None = None


@dataclass
class Counts:
    """What was exported, and what was left out and why.

    A label is a class of an image; it is left out with all of its boxes.

    Attributes:
        images: Exported images.
        boxes: Exported boxes, or masks if these are exported.
        failed: Images whose row has no prediction, by status.
        labels_of_other_classes: Labels whose class was not selected.
        labels_under_min_score: Labels with a lower score than selected.
        labels_without_map: Labels of which no refined map is stored, where one is needed.
        labels_without_mask: Labels whose refined map has no positive value, or no pixel above the threshold.
        fallback_boxes: Boxes over the whole image, because the map has no positive value.
        boxes_without_area: Boxes of width or height zero.
        empty_images: Images without a selected box or mask.
        unreadable: Images that could not be read again, by the status of the attempt.
        known_labels: Known labels of the images with predictions; counted only if these are selected.
    """

    images: int = 0
    boxes: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    labels_of_other_classes: int = 0
    labels_under_min_score: int = 0
    labels_without_map: int = 0
    labels_without_mask: int = 0
    fallback_boxes: int = 0
    boxes_without_area: int = 0
    empty_images: int = 0
    unreadable: Counter[str] = field(default_factory=Counter)
    known_labels: int = 0

    @property
    def seen(self) -> int:
        """Number of images so far, exported or not."""
        return self.images + self.empty_images + self.failed.total() + self.unreadable.total()
