"""The labels that images are known to have: from a column beside them, or from a file of their own."""

from collections.abc import Iterator
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from camworker.classes import Classes
from camworker.inputs.tabular import column_batches
from camworker.storage.parquet import combine_chunks

LABELS: Final = pa.schema([("image_id", pa.string()), ("label", pa.int32())])


def read_labels(path: str, classes: Classes) -> Iterator[pa.Table]:
    """The rows of a file of known labels (schema LABELS), some ten thousand at a time; -1: no label.

    Raises UsageError for a missing column and for a label that classes lacks.
    """
    for table in column_batches(path, LABELS.names, text=["image_id"]):
        labels = classes.indices(table["label"], f"{path}, column 'label'")
        yield pa.table([combine_chunks(table["image_id"]), pa.array(labels)], schema=LABELS)


def label_lists(column: pa.ChunkedArray, classes: Classes, path: str) -> pa.Array:
    """A table's column of labels, one or a list a row -> lists of class indices."""
    column, where = combine_chunks(column), f"{path}, column 'label'"
    count = len(column)
    rows = np.arange(count)
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        rows = np.repeat(rows, pc.fill_null(pc.list_value_length(column), 0).to_numpy())
        column = column.flatten()
    return _grouped(rows, classes.indices(column, where), count)


def no_labels(count: int) -> pa.Array:
    """For each of count rows, none."""
    return _grouped(np.empty(0, np.int64), np.empty(0, np.int64), count)


def _grouped(rows: NDArray, labels: NDArray, count: int) -> pa.Array:
    """Pairs of row and label -> for each of count rows its distinct labels, ascending."""
    real = (rows >= 0) & (labels >= 0)
    pairs = np.unique(np.stack([rows[real], labels[real].astype(np.int64)]), axis=1)
    offsets = np.searchsorted(pairs[0], np.arange(count + 1))
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(pairs[1], pa.int32()))
