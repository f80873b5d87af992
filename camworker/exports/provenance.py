"""The names of the export formats, and the description of an export that several of them store."""

from dataclasses import dataclass
from typing import Final, Literal, get_args

from camworker import __version__

FORMATS: Final = ("coco", "coco-results", "yolo", "voc", "label-studio", "hugging-face", "masks")
MaskEncoding = Literal["polygons", "rle"]
MASK_ENCODINGS: Final[tuple[MaskEncoding, ...]] = get_args(MaskEncoding)


@dataclass(frozen=True, slots=True)
class ExportInfo:
    """What an export was made from.

    Attributes:
        recipe: Id of the recipe.
        network: Name of the network.
        box_rule: The rule that made the boxes; "mask" for boxes around masks.
        labels: A phrase that says which labels of each row were exported.
        min_score: Minimum score of the exported labels.
        classes: Class index -> distinct class name, ascending by index, of the exported classes.
        mask_threshold: The threshold of the masks, see `camworker.boxes.masks.weak_mask`; None for boxes.
        mask_encoding: How COCO data sets hold masks.
    """

    recipe: str
    network: str
    box_rule: str
    labels: str
    min_score: float
    classes: dict[int, str]
    mask_threshold: float | None = None
    mask_encoding: MaskEncoding = "polygons"

    @property
    def description(self) -> str:
        """A line that says what the labels are, for people."""
        made = f"box rule {self.box_rule}"
        if self.mask_threshold is not None:
            made = f"masks over {self.mask_threshold:g} times the mean of the refined map"
        return f"weak labels by camworker, which nobody has checked: recipe {self.recipe}, {made}"

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
        masks = {} if self.mask_threshold is None else {"mask_threshold": self.mask_threshold}
        return {
            "description": self.description,
            "camworker": __version__,
            "recipe": self.recipe,
            "network": self.network,
            "box_rule": self.box_rule,
            "labels": self.labels,
            "min_score": self.min_score,
            **masks,
        }
