"""What Zhou et al. (CVPR 2016) report for ILSVRC, and whether a summary may stand beside it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from camworker.ledger.recipe import Recipe
from camworker.metrics.summary import TruthFacts

ILSVRC_IMAGES: Final = 50_000
ILSVRC_CLASSES: Final = 1000
_WORDNET_ID: Final = re.compile(r"n\d{8}")
_IMAGE: Final = re.compile(r"(?:.*/)?ILSVRC2012_val_000\d{5}(?:\.[A-Za-z]+)?")

HOW_MADE: Final = (
    "The paper's networks, fine-tuned on the training set's labels, looked at ten crops of each image, and "
    "their boxes are those of the paper's released code (the box rule dtbox here), which differs from the "
    "rule that its text gives. Recipes made another way differ by that too."
)
TEST_SET: Final = (
    "On the test set the paper reports a top-5 localization error of 42.9% for GoogLeNet-GAP, and of 37.1% "
    "with a heuristic that takes two boxes for each of the first two classes and one for the third."
)


@dataclass(frozen=True, slots=True)
class PaperFigures:
    """A line of the paper's tables 1 and 2: errors on the validation set in percent, None where not given."""

    network: str
    method: str
    top1_localization_error: float
    top5_localization_error: float
    top1_classification_error: float | None
    top5_classification_error: float | None


_MAPS, _BACK = "class activation maps", "backpropagation"
PAPER: Final = (
    PaperFigures("GoogLeNet-GAP", _MAPS, 56.40, 43.00, 35.0, 13.2),
    PaperFigures("VGGnet-GAP", _MAPS, 57.20, 45.14, 33.4, 12.2),
    PaperFigures("GoogLeNet-GMP", _MAPS, 57.78, 45.26, 35.6, 13.9),
    PaperFigures("GoogLeNet", _MAPS, 60.09, 49.34, 31.9, 11.3),
    PaperFigures("AlexNet*-GAP", _MAPS, 63.75, 49.53, 44.9, 20.9),
    PaperFigures("NIN", _MAPS, 65.47, 54.19, 41.9, 19.6),
    PaperFigures("AlexNet-GAP", _MAPS, 67.19, 52.16, 51.1, 26.3),
    PaperFigures("GoogLeNet", _BACK, 61.31, 50.55, None, None),
    PaperFigures("VGGnet", _BACK, 61.12, 51.46, None, None),
    PaperFigures("AlexNet", _BACK, 65.17, 52.64, None, None),
)


def is_whole_ilsvrc_validation(
    summary: Mapping[str, Any], facts: TruthFacts, recipe: Recipe
) -> bool:
    """Whether the truth is the whole ILSVRC validation set with boxes, and every image of it is judged.

    50,000 images named as ILSVRC names them, and a network of 1000 classes that all have a WordNet id.
    A sample of the set is easier or harder than the set: its figures never stand beside the paper's.
    """
    class_ids = recipe.classes.ids or ()
    return (
        facts.images == summary["images_with_truth"] == ILSVRC_IMAGES
        and facts.boxes
        and not facts.unknown
        and len(set(class_ids)) == ILSVRC_CLASSES
        and all(_WORDNET_ID.fullmatch(class_id) for class_id in class_ids)
        and _IMAGE.fullmatch(facts.first_image or "") is not None
    )
