"""What summarize --report writes: summary.html with the best and worst images, and the figures as files."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from camworker.boxes.rules import boxes_from_cam
from camworker.errors import UsageError
from camworker.frame import CORNERS
from camworker.ledger.recipe import Recipe
from camworker.ledger.snapshot import Snapshot
from camworker.metrics.summary import TruthFacts
from camworker.reports.cards import Card, Section, make_known_card
from camworker.reports.summary_page import write_summary
from camworker.reports.summary_tables import (
    FIGURE_COLUMNS,
    UNMATCHED_COLUMNS,
    figure_rows,
    full_summary,
    threshold_table,
    unmatched_rows,
    write_csv,
)
from jobs.photographs import Photograph, photographs

if TYPE_CHECKING:
    from camworker.metrics.tally import Example, Tally
    from jobs.summarize.tally_parts import ShownBoxes


def write_report(
    folder: str,
    snapshot: Snapshot,
    recipes: Sequence[Recipe],
    tally: "Tally",
    facts: TruthFacts,
    summary: dict[str, Any],
    true_boxes: "ShownBoxes",
    *,
    output: str,
    truth: str,
) -> Path:
    """Write the report into folder; returns the path of its page.

    summary.html; summary.json (all figures, classes, what did not match); figures.csv, per_class.csv,
    thresholds.csv, unmatched.csv. recipes: in full, the ledger's first, then those it is compared with.
    true_boxes: of the images that are shown. output, truth: where these were read, for the page. Raises
    UsageError where folder cannot be written.
    """
    full = full_summary(summary, tally, facts, recipes[0].classes.names)
    classes = full["per_class"]
    sections = _sections(snapshot, tally, full, true_boxes)
    home = Path(folder)
    try:
        home.mkdir(parents=True, exist_ok=True)
        (home / "summary.json").write_text(
            json.dumps(full, allow_nan=False, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        write_csv(home / "figures.csv", FIGURE_COLUMNS, figure_rows(full))
        write_csv(home / "per_class.csv", list(classes[0]), [list(row.values()) for row in classes])
        write_csv(home / "thresholds.csv", *threshold_table(full["sweep"]))
        write_csv(home / "unmatched.csv", UNMATCHED_COLUMNS, unmatched_rows(full))
        return write_summary(home, full, recipes, facts, sections, output=output, truth=truth)
    except OSError as error:
        raise UsageError(f"{folder} cannot be written: {error}; give --report another folder") from error


def _sections(
    snapshot: Snapshot,
    tally: "Tally",
    summary: dict[str, Any],
    true_boxes: "ShownBoxes",
) -> list[Section]:
    """The best and the worst images, none in both."""
    if not tally.best:
        return []
    worst = [example for example in tally.worst if example not in tally.best]
    cards = _cards(snapshot, [*tally.best, *worst], summary["box_rule"], true_boxes)
    found = [
        (title, [cards[image_id, label] for _, _, image_id, label in examples if (image_id, label) in cards])
        for title, examples in (
            ("Highest IoU" if worst else "All images, the highest IoU first", tally.best),
            ("Lowest IoU", worst),
        )
    ]
    return [Section(title, shown) for title, shown in found if shown]


def _cards(
    snapshot: Snapshot,
    examples: "Sequence[Example]",
    box_rule: str,
    true_boxes: "ShownBoxes",
) -> dict[tuple[str, int], Card]:
    """The card of each image and label, where the image still has a row."""
    labels: dict[str, list[tuple[int, float]]] = {}
    for iou, _, image_id, label in examples:
        labels.setdefault(image_id, []).append((label, iou))
    rule = None if box_rule == snapshot.recipe.box_rule else box_rule
    cards = {}
    for photo in photographs(snapshot, list(labels)):
        image_id = photo.row["image_id"]
        for label, iou in labels[image_id]:
            name = snapshot.recipe.classes.names[label]
            cards[image_id, label] = _card(photo, name, label, iou, rule, true_boxes[image_id, label])
    return cards


def _card(
    photo: Photograph, name: str, label: int, iou: float, rule: str | None, true_N4: NDArray[np.float32]
) -> Card:
    row = photo.row
    note = f"{name}: IoU {iou:.2f}. First class: {row['names'][0]}, {row['scores'][0]:.2f}."
    if photo.photo_HW3 is None:
        return Card(row["image_id"], (), photo.error, note)
    target = next(target for target in row["targets"] if target["label"] == label)
    cam_hw = np.array(target["cam"], np.float16).reshape(photo.cams_khw.shape[1:])
    if rule is None:
        first = target["boxes"][0]
        box = [first[corner] for corner in CORNERS]
    else:
        box = boxes_from_cam(cam_hw, photo.frame, rule)[0].tolist()
    return make_known_card(
        row["image_id"], f"map of {name}", cam_hw, photo.photo_HW3, photo.frame, box, true_N4.tolist(), note
    )
