"""Constructed rows, ledgers that hold them, and difficult names, for the tests of exports."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from camworker.exports.export import export
from camworker.exports.selection import Counts, LabelSelection
from camworker.exports.weak_labels import labelled_images
from camworker.inference.predictions import TARGET_BOX_DTYPE, FailedPrediction, Prediction, Target
from camworker.ledger.ledger import Ledger
from camworker.ledger.snapshot import Snapshot
from camworker.schemas import ITEMS, CamShape
from camworker.storage.memory import MemoryStore
from support.recipes import make_recipe
from support.row_tables import make_boxes, predictions_table, with_shapes

RECIPE = "r0123456789ab"
NASTY = ("\"<b>' & co: #1", "line\nbreak\r\ttab", "gr\u00fcn \u65e5\u672c \U0001f600", "\x7f\x85\u2028\ufeff")
NAMES = ("cat", "dog", "bird", "bird", *NASTY)
SHAPE = CamShape(2, 4, 4)
# A map of one hot cell: row 1, column 2.
HOT = np.array([[0, 0, 0, 0], [0, 0, 8, 0], [0, 0, 0, 0], [0, 0, 0, 0]], np.float16)

# Image ids that differ in what file names must not hold, or file systems do not tell apart.
IDS = (
    *("a.jpg", "a.png", "A.jpg", "a_jpg", "a/jpg", "a jpg", "../a.jpg", "/a.jpg"),
    *("a\\jpg", "a\0jpg", "a\njpg"),
)


def recipe(names=NAMES, **settings):
    """Return a recipe whose rows rank two classes."""
    return make_recipe(names, **{"top_k": 2} | settings)


def boxes_of(label, score, corners, rank):
    """Return structured boxes of one class and rank."""
    return make_boxes(label, score, np.array(corners, np.float32).reshape(-1, 4), rank)


def known(label, score, *corners, cam=HOT, refined=None):
    """Return a known label with its maps and boxes."""
    boxes = boxes_of(label, score, corners, 1)[list(TARGET_BOX_DTYPE.names)].astype(TARGET_BOX_DTYPE)
    return Target(label, score, cam, boxes, refined)


def seen(*ranked, size=(200, 100), targets=(), cams=None, refined=None):
    """Return a row with status "ok"; `ranked` has (label, score, corners...) for each of up to two ranks."""
    ranked = [*ranked, (1, 0.01, (0, 0, 1, 1))][:2]
    return Prediction(
        *size,
        labels=np.array([label for label, *_ in ranked], np.int32),
        names=tuple(NAMES[label] for label, *_ in ranked),
        scores=np.array([score for _, score, *_ in ranked], np.float32),
        cams=np.zeros((2, 4, 4), np.float16) if cams is None else cams,
        boxes=np.concatenate(
            [boxes_of(label, score, corners, n) for n, (label, score, *corners) in enumerate(ranked, 1)]
        ),
        targets=tuple(targets),
        refined=refined,
    )


def commit(ledger, rows, generation=1, shard=0, **item):
    """Commit a part with these rows (predictions by image id)."""
    item = {"uri": "/in/a b.jpg", "identity": "1", "labels": [], "size": 1, **item}
    items = pa.Table.from_pylist([{**item, "image_id": image_id} for image_id in rows], ITEMS)
    refined = [row.refined for row in rows.values() if row.refined is not None]
    shape = CamShape(*refined[0].shape) if refined else None
    table = with_shapes(predictions_table(items, generation, list(rows.values())), SHAPE, shape)
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    assert ledger.store.create(ledger.layout.part_key(generation, shard), buffer.getvalue())


def ledger_of(rows, **changes):
    """Return a ledger in memory with one part; `changes` replaces settings of the recipe."""
    ledger = Ledger(MemoryStore(), RECIPE)
    ledger.write_recipe(recipe(**changes))
    commit(ledger, rows)
    return ledger


ROWS = {
    "a": seen(
        (0, 0.9, (1, 2, 30, 40)),
        (2, 0.3, (5, 6, 7, 8), (9, 9, 11, 12)),
        targets=[known(3, 0.2, (0, 0, 9, 9))],
    ),
    "b": FailedPrediction("decode_error", "because"),
    "c": seen((1, 0.5, (0, 0, 200, 100)), (0, 0.25, (3, 3, 3, 9))),
}


def exported(ledger, form, path, **choice):
    """Write an export that is not empty and return its path."""
    counts = export(Snapshot.load(ledger), form, path, LabelSelection(**choice))
    assert counts.images
    return path


def every_class():
    """Return an image of each class, with corners that float32 rounds."""
    return {
        f"{label}/../\u00e9 {name[:3]}.jpg": seen(
            (label, 0.1 + label / 10, (0.1, 1 / 3, 199.9 - label, 100 * 0.7))
        )
        for label, name in enumerate(NAMES)
    }


def stored(ledger, **choice):
    """Return the images that every reader of the export has to find, by id."""
    images = labelled_images(Snapshot.load(ledger), LabelSelection(**choice), Counts())
    return {image.image_id: image for image in images}
