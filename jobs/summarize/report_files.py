"""The files of `summarize --report`: summary.html with the best and worst images, summary.json and tables."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from camworker.errors import UsageError
from camworker.ledger.recipe import Recipe
from camworker.ledger.snapshot import Snapshot
from camworker.metrics.summary import Summary
from camworker.metrics.summary_json import to_json
from camworker.metrics.tally import Example, Tally
from camworker.reports.cards import Card, Section, make_known_card
from camworker.reports.summary_page import write_summary
from camworker.reports.summary_tables import (
    UNMATCHED_COLUMNS,
    VALUE_COLUMNS,
    class_table,
    threshold_table,
    unmatched_rows,
    value_rows,
    write_csv,
)
from jobs.photographs import Photograph, photographs
from jobs.summarize.tally_parts import TalliedTruth


def write_report(
    folder: str,
    snapshot: Snapshot,
    recipes: Sequence[Recipe],
    tally: Tally,
    truth: TalliedTruth,
    summary: Summary,
    *,
    output: str,
    truth_path: str,
) -> Path:
    """Write the report of a summary.

    Its files are summary.html, summary.json, figures.csv, per_class.csv, thresholds.csv and unmatched.csv.

    Args:
        folder: Where to write them.
        snapshot: What the summary's recipe holds.
        recipes: The recipe of the summary, then those that it is compared with.
        tally: The tally of the summary.
        truth: What was kept of the ground truth.
        summary: The summary.
        output: Where the predictions were read, for the page.
        truth_path: Where the ground truth was read, for the page.

    Returns:
        The path of the page.

    Raises:
        UsageError: The folder cannot be written.
    """
    sections = _sections(snapshot, tally, summary.settings.box_rule, truth)
    home = Path(folder)
    try:
        home.mkdir(parents=True, exist_ok=True)
        content = json.dumps(to_json(summary, detailed=True), allow_nan=False, indent=1, ensure_ascii=False)
        (home / "summary.json").write_text(content + "\n", encoding="utf-8")
        write_csv(home / "figures.csv", VALUE_COLUMNS, value_rows(summary))
        write_csv(home / "per_class.csv", *class_table(summary))
        write_csv(home / "thresholds.csv", *threshold_table(summary.sweep))
        write_csv(home / "unmatched.csv", UNMATCHED_COLUMNS, unmatched_rows(summary))
        return write_summary(home, summary, recipes, truth.facts, sections, output=output, truth=truth_path)
    except OSError as error:
        raise UsageError(f"{folder} cannot be written: {error}; give --report another folder") from error


def _sections(
    snapshot: Snapshot,
    tally: Tally,
    box_rule: str,
    truth: TalliedTruth,
) -> list[Section]:
    """Return the sections of the best and the worst images; no image is in both."""
    if not tally.best:
        return []
    worst = [example for example in tally.worst if example not in tally.best]
    cards = _cards(snapshot, [*tally.best, *worst], box_rule, truth)
    sections = [
        (title, [cards[image_id, label] for _, _, image_id, label in examples if (image_id, label) in cards])
        for title, examples in (
            ("Highest IoU" if worst else "All images, the highest IoU first", tally.best),
            ("Lowest IoU", worst),
        )
    ]
    return [Section(title, shown) for title, shown in sections if shown]


def _cards(
    snapshot: Snapshot,
    examples: Sequence[Example],
    box_rule: str,
    truth: TalliedTruth,
) -> dict[tuple[str, int], Card]:
    """Return the card of each image and label, if the image still has a row."""
    labels: dict[str, list[tuple[int, float]]] = {}
    for iou, _, image_id, label in examples:
        labels.setdefault(image_id, []).append((label, iou))
    new = box_rule != snapshot.recipe.box_rule
    cards = {}
    for photo in photographs(snapshot, list(labels)):
        image_id = photo.row["image_id"]
        for label, iou in labels[image_id]:
            name = snapshot.recipe.classes.names[label]
            true_N4 = truth.boxes[image_id, label]
            cards[image_id, label] = _card(photo, name, label, iou, box_rule, true_N4, new=new)
    return cards


def _card(
    photo: Photograph,
    name: str,
    label: int,
    iou: float,
    rule: str,
    true_N4: NDArray[np.float32],
    *,
    new: bool,
) -> Card:
    """Return the card of a label with the box that was judged: the stored one, or a new one by the rule."""
    row = photo.row
    note = f"{name}: IoU {iou:.2f}. First class: {row['names'][0]}, {row['scores'][0]:.2f}."
    if photo.photo_HW3 is None:
        return Card(row["image_id"], (), photo.error, note)
    index = next(n for n, target in enumerate(row["targets"]) if target["label"] == label)
    maps = photo.targets[index]
    box = (maps.boxes(photo.frame, rule) if new else row["targets"][index]["boxes"])[0]
    return make_known_card(
        row["image_id"], name, maps, photo.photo_HW3, photo.frame, rule, box, true_N4.tolist(), note
    )
