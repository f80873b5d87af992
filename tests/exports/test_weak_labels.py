"""Weak labels: which boxes of a row are selected, and new boxes made from its maps."""

import numpy as np
import pyarrow as pa
import pytest

from camworker.exports.selection import Counts, LabelSelection
from camworker.exports.weak_labels import labelled_images
from camworker.inference.localizer import Localizer
from camworker.inference.predictions import FailedPrediction
from camworker.inputs.sources import open_source
from camworker.ledger.ledger import Ledger
from camworker.ledger.snapshot import Snapshot
from camworker.schemas import ITEMS
from camworker.storage.memory import MemoryStore
from support.export_rows import HOT, RECIPE, ROWS, commit, known, ledger_of, recipe, seen
from support.factories import TINY_CLASSES, run_generation, tiny_package


def selected_boxes(ledger, **selection):
    """Return (image id, label, corners) of every box, and the counts."""
    counts = Counts()
    images = list(labelled_images(Snapshot.load(ledger), LabelSelection(**selection), counts))
    boxes = [
        (image.image_id, label, tuple(box))
        for image in images
        for label, box in zip(image.labels, image.boxes, strict=True)
    ]
    assert (counts.images, counts.boxes) == (len(images), len(boxes))
    return boxes, counts


A1, C1 = ("a", 0, (1, 2, 30, 40)), ("c", 1, (0, 0, 200, 100))
A2 = [("a", 2, (5, 6, 7, 8)), ("a", 2, (9, 9, 11, 12))]


def test_the_best_label_is_the_default():
    boxes, counts = selected_boxes(ledger_of(ROWS))
    assert boxes == [A1, C1]
    assert counts.failed == {"decode_error": 1}
    assert counts.seen == 3


def test_more_ranks_give_all_their_boxes():
    boxes, counts = selected_boxes(ledger_of(ROWS), ranks=2)
    assert boxes == [A1, *A2, C1]
    assert counts.boxes_without_area == 1  # the second of c


def test_the_minimum_score_is_included():
    # float32(0.9) is below 0.9.
    boxes, counts = selected_boxes(ledger_of(ROWS), min_score=0.9, ranks=2)
    assert boxes == [A1]
    assert (counts.labels_under_min_score, counts.empty_images) == (3, 1)
    assert selected_boxes(ledger_of(ROWS), min_score=0.25)[1].labels_under_min_score == 0


def test_classes():
    boxes, counts = selected_boxes(ledger_of(ROWS), classes=frozenset({2}), ranks=2)
    assert boxes == A2
    assert (counts.labels_of_other_classes, counts.empty_images) == (3, 1)
    # A label of another class with a low score is counted once.
    boxes, counts = selected_boxes(ledger_of(ROWS), classes=frozenset({0}), min_score=0.3, ranks=2)
    assert boxes == [A1]
    assert (counts.labels_of_other_classes, counts.labels_under_min_score) == (2, 1)


def test_known_labels():
    boxes, counts = selected_boxes(ledger_of(ROWS), targets=True)
    assert boxes == [("a", 3, (0, 0, 9, 9))]
    assert (counts.known_labels, counts.empty_images) == (1, 1)
    boxes, counts = selected_boxes(ledger_of(ROWS), targets=True, min_score=0.21)
    assert (boxes, counts.labels_under_min_score, counts.empty_images) == ([], 1, 2)


def test_numbers_are_independent_of_the_selection():
    ledger = ledger_of(ROWS)
    commit(ledger, {"d": seen((2, 0.7, (0, 0, 1, 1)))}, shard=1)
    for selection in (
        LabelSelection(),
        LabelSelection(classes=frozenset({2}), ranks=2),
        LabelSelection(min_score=0.6),
    ):
        numbers = {
            image.image_id: image.number
            for image in labelled_images(Snapshot.load(ledger), selection, Counts())
        }
        assert numbers
        assert {"a": 1, "c": 2, "d": 3}.items() >= numbers.items()


def test_only_the_latest_row_of_an_image():
    ledger = ledger_of(ROWS)
    commit(
        ledger, {"a": seen((1, 0.8, (7, 7, 9, 9))), "c": FailedPrediction("removed", "gone")}, generation=2
    )
    boxes, counts = selected_boxes(ledger)
    assert boxes == [("a", 1, (7, 7, 9, 9))]
    assert counts.failed == {"decode_error": 1}


def test_parts_are_read_lazily(monkeypatch):
    ledger = ledger_of({"a": ROWS["a"]})
    for shard in range(1, 5):
        commit(ledger, {f"{shard}": ROWS["a"]}, shard=shard)
    opened = []
    read = ledger.store.open
    monkeypatch.setattr(ledger.store, "open", lambda key: opened.append(key) or read(key))
    images = labelled_images(Snapshot.load(ledger), LabelSelection(), Counts())
    for number in range(1, 6):
        assert next(images).number == number
        assert len(opened) == number


def test_a_part_without_predictions():
    boxes, counts = selected_boxes(ledger_of({"b": ROWS["b"]}), ranks=2)
    assert (boxes, counts.seen) == ([], 1)


def test_another_rule_makes_new_boxes_from_the_stored_maps():
    """One hot cell in row 1, column 2 of 4, upsampled to 32x32 pixels of the network's input.

    Along each axis the map is a triangle of half width 8 around the cell's centre (x = 20, y = 12): at the
    centres of the pixels it is 15, 13, 11, 9, 7... sixteenths on each side. The product 15 * 9 is more than
    half of 15 * 15, and 15 * 7 is less, so the box extends four pixels to each side; one pixel is 200 / 32 by
    100 / 32 original pixels.
    """
    box = (16 * 200 / 32, 8 * 100 / 32, 24 * 200 / 32, 16 * 100 / 32)
    cams = np.stack([HOT, HOT.T])
    rows = {"a": seen((0, 0.9, (0, 0, 1, 1)), cams=cams, targets=[known(1, 0.2, (0, 0, 1, 1))])}
    assert selected_boxes(ledger_of(rows), box_rule="cam:0.5")[0] == [("a", 0, box)]
    assert selected_boxes(ledger_of(rows), box_rule="cam:0.5", targets=True)[0] == [("a", 1, box)]


@pytest.mark.parametrize("resize", ["squash", "crop"])
@pytest.mark.parametrize("views", ["single", "flip", "ten-crop"])
def test_the_rule_of_the_recipe_gives_the_stored_boxes(folder, resize, views):
    localizer = Localizer(tiny_package(), device="cpu", precision="float32", resize=resize, views=views)
    ledger = Ledger(MemoryStore(), RECIPE)
    ledger.write_recipe(recipe(TINY_CLASSES.names, resize=resize, views=views, top_k=3))
    items = open_source(str(folder), TINY_CLASSES).items
    labels = pa.array([[n % 3, (n + 1) % 3] for n in range(items.num_rows)], pa.list_(pa.int32()))
    items = items.set_column(items.schema.get_field_index("labels"), ITEMS.field("labels"), labels)
    run_generation(ledger, localizer, items, size=4)
    for selection in (
        {"ranks": 3},
        {"targets": True},
        {"ranks": 2, "min_score": 0.33, "keep_fallback": True},
    ):
        stored = selected_boxes(ledger, **selection)
        made = selected_boxes(ledger, **selection, box_rule="cam20")
        assert stored[0]
        assert made == stored
    assert selected_boxes(ledger, ranks=3, box_rule="cam:0.6")[0] != selected_boxes(ledger, ranks=3)[0]
