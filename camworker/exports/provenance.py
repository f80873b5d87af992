"""The names of the export formats, and the description of an export that several of them store."""

from dataclasses import dataclass
from typing import Final

from camworker import __version__

FORMATS: Final = ("coco", "coco-results", "yolo", "voc", "label-studio", "hugging-face")


@dataclass(frozen=True, slots=True)
class ExportInfo:
    """What an export was made from.

    Attributes:
        recipe: Id of the recipe.
        network: Name of the network.
        box_rule: The rule that made the boxes.
        labels: A phrase that says which labels of each row were exported.
        min_score: Minimum score of the exported labels.
        classes: Class index -> distinct class name, ascending by index, of the exported classes.
    """

    recipe: str
    network: str
    box_rule: str
    labels: str
    min_score: float
    classes: dict[int, str]

    @property
    def positions(self) -> dict[int, int]:
        """Class index -> position among the exported classes, for formats without gaps in the numbers."""
        return {index: position for position, index in enumerate(self.classes)}

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the exported classes, by position."""
        return tuple(self.classes.values())

    def as_dict(self) -> dict[str, str | float]:
        """Return everything but the classes, and the version of camworker."""
        return {
            "camworker": __version__,
            "recipe": self.recipe,
            "network": self.network,
            "box_rule": self.box_rule,
            "labels": self.labels,
            "min_score": self.min_score,
        }
