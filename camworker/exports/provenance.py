"""The formats' names, and what each says of an export: which recipe made its boxes, and its classes."""

from dataclasses import dataclass
from typing import Any, Final

from camworker import __version__

FORMATS: Final = ("coco", "coco-results", "yolo", "voc", "label-studio", "hugging-face")


@dataclass(frozen=True, slots=True)
class ExportInfo:
    """recipe: its id. labels: which of a row's, in words. classes: class index -> name, ascending.

    No two names are alike, and no box is of another class.
    """

    recipe: str
    network: str
    box_rule: str
    labels: str
    min_score: float
    classes: dict[int, str]

    @property
    def places(self) -> dict[int, int]:
        """Class index -> its place among the exported classes, from 0, for formats without gaps."""
        return {index: place for place, index in enumerate(self.classes)}

    @property
    def names(self) -> tuple[str, ...]:
        """The names, by place."""
        return tuple(self.classes.values())

    def as_dict(self) -> dict[str, Any]:
        """All but the classes."""
        return {
            "camworker": __version__,
            "recipe": self.recipe,
            "network": self.network,
            "box_rule": self.box_rule,
            "labels": self.labels,
            "min_score": self.min_score,
        }
