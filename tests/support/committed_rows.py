"""Commit parts with rows of given statuses, without a plan."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from camworker.inference.predictions import FailedPrediction, Prediction
from camworker.ledger.ledger import Ledger
from camworker.schemas import ITEMS, CamShape
from camworker.storage.local import LocalStore
from support.recipes import make_recipe
from support.row_tables import make_boxes, predictions_table, with_shapes

RECIPE, OTHER = "r0123456789ab", "rba9876543210"


def commit_rows(out, generation, shard=0, *, recipe=RECIPE, shape=(1, 4, 4), **statuses):
    """Commit a part with rows of these statuses; the width of an image that is ok is its generation."""
    k, h, w = shape
    boxes = make_boxes(0, 1.0, np.array([[0, 0, 1, 1]], np.float32), 1)
    cams = np.full(shape, generation, np.float16)
    one = np.ones(k, np.float32)
    rows = [
        Prediction(generation, 1, one.astype(np.int32), ("cat",) * k, one, cams, boxes)
        if status == "ok"
        else FailedPrediction(status, "because")
        for status in statuses.values()
    ]
    item = {"uri": "/in", "identity": f"of {generation}", "labels": []}
    items = pa.Table.from_pylist([{**item, "image_id": i} for i in statuses], ITEMS)
    ledger = Ledger(LocalStore(out), recipe)
    ledger.write_recipe(make_recipe())
    # As in real output, no two parts have equal metadata.
    about = {"generation": str(generation), "shard": str(shard)}
    table = with_shapes(predictions_table(items, generation, rows), CamShape(k, h, w), **about)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, write_page_checksum=True)
    assert ledger.store.create(ledger.layout.part_key(generation, shard), sink.getvalue().to_pybytes())
    return ledger
