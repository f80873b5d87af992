"""Summaries of a few constructed rows, and a small output, for the tests of pages and tables."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from camworker.inference.localizer import Localizer
from camworker.ledger.ledger import Ledger
from camworker.ledger.recipe import Recipe
from camworker.metrics.compute import summarize_tally
from camworker.metrics.criteria import Criteria
from camworker.metrics.ground_truth.truth import Truth
from camworker.metrics.summary import RunSettings, Summary, TruthFacts
from camworker.metrics.tally import EvaluationConfig, Tally
from camworker.schemas import PREDICTIONS, CamShape
from camworker.storage.uris import open_store
from support.factories import TINY_CLASSES, photographs_of, run_generation
from support.recipes import make_recipe

HOSTILE = '<script>alert("x")</script><img src=//x.example/y>'
SIDE = 20  # of every image, in pixels
CAM = np.array([4, 1, 1, 0], "<f2").tobytes()
WHOLE, LEFT, CORNER = (0, 0, 20, 20), (0, 0, 10, 20), (0, 0, 5, 5)

RECIPE = make_recipe(("cat", HOSTILE, "bird"), top_k=5)

Box = tuple[int, int, int, int]


def box(label: int, corners: Box) -> dict[str, Any]:
    return {"label": label, "score": 0.5, **dict(zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True))}


def row(
    image_id: str, ranked: list[tuple[int, Box]], known: dict[int, Box] | None = None, *, score: float = 0.75
) -> dict[str, Any]:
    """Return a row with status "ok".

    Args:
        image_id: The image.
        ranked: Classes with a box each, in the order of their ranks.
        known: Known labels with a box each; the map of each is highest in its top left quarter.
        score: The score of the first class.
    """
    return {
        "image_id": image_id,
        "status": "ok",
        "width": SIDE,
        "height": SIDE,
        "labels": [label for label, _ in ranked],
        "names": [str(label) for label, _ in ranked],
        "scores": [score] + [0.0] * (len(ranked) - 1),
        "boxes": [{"rank": rank, **box(*pair)} for rank, pair in enumerate(ranked, 1)],
        "targets": [
            {"label": label, "score": score, "cam": CAM, "boxes": [box(label, corners)]}
            for label, corners in (known or {}).items()
        ],
    }


def broken(image_id: str, status: str = "decode_error") -> dict[str, Any]:
    return {"image_id": image_id, "status": status}


def predictions(*rows: dict[str, Any]) -> pa.Table:
    names = [*EvaluationConfig(CRITERIA, 3).columns]
    return pa.Table.from_pylist(
        [{"labels": [], "scores": [], "boxes": [], "targets": [], **row} for row in rows],
        pa.schema([PREDICTIONS.field(name) for name in names]),
    )


CRITERIA = Criteria(RECIPE.frame_spec, CamShape(5, 2, 2))


def tally_of(rows: pa.Table, truth: Truth, config: EvaluationConfig) -> tuple[Tally, TruthFacts]:
    tally = Tally().update(rows, truth, config)
    return tally, TruthFacts.from_truth(truth, tally.seen)


def summary_of(
    rows: pa.Table,
    truth: Truth,
    recipe: Recipe = RECIPE,
    *,
    select: float | None = None,
    box_rule: str = "cam20",
    complete: bool = True,
    **changes: Any,
) -> tuple[Summary, TruthFacts]:
    """Return the summary of rows; `changes` replaces attributes of the summary."""
    config = EvaluationConfig(
        CRITERIA, len(recipe.classes), None if box_rule == "dtbox" else "maxboxacc", select
    )
    tally, facts = tally_of(rows, truth, config)
    settings = RunSettings("r0123456789ab", box_rule, min(5, recipe.top_k), recipe.classes.names, complete)
    return replace(summarize_tally(tally, facts, config, settings), **changes), facts


def four_of_each() -> tuple[pa.Table, Truth]:
    """Return rows and truth of four images (right, wrong class, box too large, failed) plus one more each."""
    rows = predictions(
        row("a", [(0, WHOLE), (2, WHOLE)], {0: WHOLE}, score=0.95),
        row("b", [(2, WHOLE), (0, WHOLE)], {0: LEFT}, score=0.75),
        row(HOSTILE, [(1, WHOLE)], {1: WHOLE}, score=0.55),
        broken("d"),
        row("without", [(1, WHOLE)], score=0.5),
    )
    truth = Truth.from_rows(
        ["a", "b", HOSTILE, "d", "unseen"],
        [0, 0, 1, 2, 2],
        [WHOLE, WHOLE, CORNER, WHOLE, WHOLE],
        unknown={"dragon": 2, HOSTILE: 1},
        notes={"iscrowd": 3},
    )
    return rows, truth


def localized(out: Path, photos: Path, localizer: Localizer, *, generation: int = 1) -> Ledger:
    """Write an output of photographs with the classes 0, 1, 2, 0, ... in turn, in shards of four."""
    ledger = Ledger(open_store(str(out)), "r0123456789ab")
    ledger.write_recipe(replace(RECIPE, classes=TINY_CLASSES))
    items = photographs_of(photos)
    column = items.schema.field("labels")
    labels = pa.array([[n % 3] for n in range(items.num_rows)], column.type)
    items = items.set_column(items.schema.get_field_index("labels"), column, labels)
    run_generation(ledger, localizer, items, generation=generation, size=4)
    return ledger
