"""contact_sheet.html: photographs with their heat maps and boxes, and the images that failed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

from camworker.boxes.rules import uses_refined
from camworker.metrics.criteria import RAW_RULE
from camworker.reports.cards import Section
from camworker.reports.render import write_page
from camworker.schemas import Refined


class FailureRecord(TypedDict):
    """The columns of a row without a prediction that the page lists."""

    image_id: str
    status: str
    error: str | None


def write_contact_sheet(
    folder: str | Path,
    sections: Sequence[Section],
    failures: Sequence[FailureRecord],
    *,
    recipe: str,
    images: int,
    failed: Mapping[str, int],
    truth: bool,
    box_rule: str,
    refined: Refined | None,
) -> Path:
    """Write contact_sheet.html into a folder and return its path.

    Args:
        folder: Where the page is written.
        sections: The cards, grouped.
        failures: The failed rows to list; may be fewer than there are.
        recipe: Id of the recipe.
        images: Number of images in the output, failed ones included.
        failed: Number of failed images by status.
        truth: Whether true boxes are drawn.
        box_rule: The rule that made the boxes.
        refined: Whether the rows hold the refined map of the best class only or of all; None without
            refinement.
    """
    return write_page(
        folder,
        "contact_sheet.html",
        sections=sections,
        failures=failures,
        recipe=recipe,
        images=images,
        failed=failed,
        truth=truth,
        box_rule=box_rule,
        refined=refined,
        on_refined=uses_refined(box_rule),
        raw_rule=RAW_RULE,
    )
