"""Constructed rows of predictions and their truth, for the tests of the metrics."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from camworker.frame import FrameSpec
from camworker.inference.predictions import (
    TARGET_BOX_DTYPE,
    AnyPrediction,
    FailedPrediction,
    Prediction,
    Target,
)
from camworker.metrics.compute import summarize_tally
from camworker.metrics.criteria import Criteria
from camworker.metrics.ground_truth.truth import Truth
from camworker.metrics.matching import COLUMNS
from camworker.metrics.summary import RunSettings, Summary, TruthFacts
from camworker.metrics.summary_json import to_json
from camworker.metrics.tally import EvaluationConfig, Tally
from camworker.schemas import CamShape
from support.factories import make_items
from support.row_tables import make_boxes, predictions_table, with_shapes

Corners = tuple[float, float, float, float]
Row = tuple[str, AnyPrediction]

WHOLE, LEFT, FAR = (0, 0, 100, 100), (0, 0, 50, 100), (90, 90, 99, 99)
CLASSES = 8
NOWHERE = np.zeros((2, 2))


def known(label: int, *corners: Corners, cam: Any = NOWHERE, refined: Any = None) -> Target:
    """Return a known label with its maps and the boxes of one of them."""
    boxes = make_boxes(label, 0.5, np.array(corners, np.float32), 1)
    stored = None if refined is None else np.asarray(refined, np.uint8)
    return Target(label, 0.5, np.asarray(cam, np.float16), boxes[list(TARGET_BOX_DTYPE.names)], stored)


def row(
    image_id: str,
    ranked: Sequence[tuple[int, Corners]],
    *targets: Target,
    size: tuple[int, int] = (100, 100),
    score: float = 0.5,
    cams: Any = None,
    refined: Any = None,
) -> Row:
    """Return a row of (label, box) pairs; all boxes of a label have its rank."""
    labels = list(dict.fromkeys(label for label, _ in ranked))
    boxes = [
        make_boxes(label, score, np.array([corners], np.float32), labels.index(label) + 1)
        for label, corners in ranked
    ]
    return image_id, Prediction(
        *size,
        np.array(labels, np.int32),
        tuple(f"class {label}" for label in labels),
        np.full(len(labels), score, np.float32),
        np.zeros((0, 0, 0), np.float16) if cams is None else np.asarray(cams, np.float16),
        np.concatenate(boxes),
        targets,
        None if refined is None else np.asarray(refined, np.uint8),
    )


def broken(image_id: str, status: Any = "decode_error") -> Row:
    return image_id, FailedPrediction(status, "because")


def part(*rows: Row, shape: tuple[int, int, int] = (1, 2, 2), generation: int = 1) -> pa.Table:
    """Return the table of a part; `shape` is that of the maps, and rows without maps get zeros."""
    made = [
        replace(p, cams=np.zeros(shape, np.float16)) if p.cams is not None and not p.cams.size else p
        for _, p in rows
    ]
    if not rows:
        return part(broken("x"), shape=shape).slice(0, 0)
    table = predictions_table(make_items(*(i for i, _ in rows)), generation, made)
    return with_shapes(table, CamShape(*shape))


def table(*rows: Row, shape: tuple[int, int, int] = (1, 2, 2)) -> pa.Table:
    """Return the columns of a part that the metrics read."""
    return part(*rows, shape=shape).select([*COLUMNS, "cams", "refined"])


def truth(*rows: tuple[str, int, Corners | None], **facts: Any) -> Truth:
    """Return the truth of rows of image, label and box; a row without a box has None."""
    nothing = (np.nan,) * 4
    corners = np.array([nothing if box is None else box for _, _, box in rows], np.float32).reshape(-1, 4)
    return Truth.from_rows([i for i, _, _ in rows], [label for _, label, _ in rows], corners, **facts)


def criteria(input_size: int = 32, shape: tuple[int, int, int] = (1, 2, 2), **how: Any) -> Criteria:
    return Criteria(FrameSpec(input_size), CamShape(*shape), **how)


def config(how: Criteria | None = None, **what: Any) -> EvaluationConfig:
    return EvaluationConfig(how or criteria(), CLASSES, **what)


def figures(
    rows: pa.Table, true: Truth, what: EvaluationConfig | None = None, ranked_classes: int = 5
) -> dict[str, Any]:
    """Return the JSON object of the summary of rows that rank `ranked_classes` classes."""
    return to_json(summary_of(tallied(rows, true, what), true, what, ranked_classes))


def summary_of(
    tally: Tally, true: Truth, what: EvaluationConfig | None = None, ranked_classes: int = 5, **about: Any
) -> Summary:
    """Return the summary of a tally of this truth."""
    settings = RunSettings("r0123456789ab", "cam20", ranked_classes, tuple("abcdefgh"), **about)
    return summarize_tally(tally, TruthFacts.from_truth(true, tally.seen), what or config(), settings)


def tallied(rows: pa.Table, true: Truth, what: EvaluationConfig | None = None) -> Tally:
    """Return the tally of rows."""
    return Tally().update(rows, true, what or config())


# What most tests need: one image, and all is right.
RIGHT = row("a", [(1, WHOLE)], known(1, WHOLE))
A = truth(("a", 1, WHOLE))

# A map of 4 x 4 cells in a frame of 4 pixels: a cell is 25 pixels of an image of 100. Its box is the upper
# half below 0.25 and one cell from there on.
HALF, CELL = (0, 0, 100, 50), (0, 0, 25, 25)
STEP = np.zeros((4, 4))
STEP[:2] = 0.25
STEP[0, 0] = 1
BY_CELLS = criteria(4, (1, 4, 4))


def stepped(*corners: Any) -> tuple[pa.Table, Truth]:
    """Return rows "0", "1", ... with the map STEP, and their true boxes."""
    ids = [str(n) for n in range(len(corners))]
    rows = table(*(row(i, [(1, WHOLE)], known(1, WHOLE, cam=STEP)) for i in ids), shape=(1, 4, 4))
    return rows, truth(*((i, 1, box) for i, box in zip(ids, corners, strict=True)))
