"""Published localization results on ILSVRC, and whether a summary may be compared with them."""

import re
from dataclasses import dataclass
from typing import Final

from camworker.ledger.recipe import Recipe
from camworker.metrics.summary import Summary, TruthFacts

ILSVRC_IMAGES: Final = 50_000
ILSVRC_CLASSES: Final = 1000
_WORDNET_ID: Final = re.compile(r"n\d{8}")
_IMAGE: Final = re.compile(r"(?:.*/)?ILSVRC2012_val_000\d{5}(?:\.[A-Za-z]+)?")

HOW_MADE: Final = (
    "The paper's networks were fine-tuned on the labels of the training set and evaluated on ten crops of "
    "each image. Their boxes were made by the paper's released code (the box rule dtbox here), which differs "
    "from the rule in its text. A recipe that does this in another way differs by that too."
)
TEST_SET: Final = (
    "On the test set the paper reports a top-5 localization error of 42.9% for GoogLeNet-GAP, and of 37.1% "
    "with a heuristic that takes two boxes for each of the first two classes and one for the third."
)


@dataclass(frozen=True, slots=True)
class PublishedResult:
    """A line of tables 1 and 2 of Zhou et al. (CVPR 2016): errors on the validation set in percent.

    Attributes:
        network: Name of the network.
        method: How its boxes were made.
        top1_localization_error: Top-1 localization error.
        top5_localization_error: Top-5 localization error.
        top1_classification_error: Top-1 classification error; None if the paper does not give it.
        top5_classification_error: Top-5 classification error; None if the paper does not give it.
    """

    network: str
    method: str
    top1_localization_error: float
    top5_localization_error: float
    top1_classification_error: float | None
    top5_classification_error: float | None


_MAPS, _BACK = "class activation maps", "backpropagation"
PAPER: Final = (
    PublishedResult("GoogLeNet-GAP", _MAPS, 56.40, 43.00, 35.0, 13.2),
    PublishedResult("VGGnet-GAP", _MAPS, 57.20, 45.14, 33.4, 12.2),
    PublishedResult("GoogLeNet-GMP", _MAPS, 57.78, 45.26, 35.6, 13.9),
    PublishedResult("GoogLeNet", _MAPS, 60.09, 49.34, 31.9, 11.3),
    PublishedResult("AlexNet*-GAP", _MAPS, 63.75, 49.53, 44.9, 20.9),
    PublishedResult("NIN", _MAPS, 65.47, 54.19, 41.9, 19.6),
    PublishedResult("AlexNet-GAP", _MAPS, 67.19, 52.16, 51.1, 26.3),
    PublishedResult("GoogLeNet", _BACK, 61.31, 50.55, None, None),
    PublishedResult("VGGnet", _BACK, 61.12, 51.46, None, None),
    PublishedResult("AlexNet", _BACK, 65.17, 52.64, None, None),
)


def is_whole_ilsvrc_validation(summary: Summary, facts: TruthFacts, recipe: Recipe) -> bool:
    """Return whether a summary evaluates the whole ILSVRC validation set with boxes.

    That is the case if there are 50,000 images with the names that ILSVRC gives them, and the network has
    1000 classes that all have a WordNet id. A sample may be easier or harder than the set, so its results
    must not be compared with published ones.
    """
    class_ids = recipe.classes.ids or ()
    return (
        facts.images == summary.images_with_truth == ILSVRC_IMAGES
        and facts.boxes
        and not facts.unknown
        and len(set(class_ids)) == ILSVRC_CLASSES
        and all(_WORDNET_ID.fullmatch(class_id) for class_id in class_ids)
        and _IMAGE.fullmatch(facts.first_image or "") is not None
    )
