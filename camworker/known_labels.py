"""The labels that images are known to have: from a column beside them, or from a file of their own."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from camworker.classes import Classes
from camworker.errors import UsageError
from camworker.records import ITEMS
from camworker.tables import read_columns


def with_labels(items: pa.Table, path: str, classes: Classes) -> pa.Table:
    """items with the labels of a file added to those that they have."""
    table = read_columns(path, ["image_id", "label"], text=["image_id"])
    labels = classes.indices(table["label"], f"{path}, column 'label'")
    rows = pc.fill_null(pc.index_in(table["image_id"], items["image_id"].combine_chunks()), -1)
    rows = rows.to_numpy().astype(np.int64)
    if table.num_rows and not (rows >= 0).any():
        theirs, ours = (str(t["image_id"][:1].to_pylist()).strip("[]") for t in (table, items))
        raise UsageError(f"{path}: no image_id is among the input's ({theirs} against {ours or 'none'})")
    column = items["labels"].combine_chunks()
    lengths = pc.list_value_length(column).to_numpy()
    rows = np.concatenate([np.repeat(np.arange(len(column)), lengths), rows])
    labels = np.concatenate([column.flatten().to_numpy(), labels])
    position = ITEMS.get_field_index("labels")
    return items.set_column(position, ITEMS.field(position), _grouped(rows, labels, len(column)))


def label_lists(column: pa.ChunkedArray, classes: Classes, path: str) -> pa.Array:
    """A table's column of labels, one or a list a row -> lists of class indices."""
    column, where = one_chunk(column), f"{path}, column 'label'"
    count = len(column)
    rows = np.arange(count)
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        rows = np.repeat(rows, pc.fill_null(pc.list_value_length(column), 0).to_numpy())
        column = column.flatten()
    return _grouped(rows, classes.indices(column, where), count)


def no_labels(count: int) -> pa.Array:
    """For each of count rows, none."""
    return _grouped(np.empty(0, np.int64), np.empty(0, np.int64), count)


def one_chunk(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """A column in one piece."""
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _grouped(rows: NDArray, labels: NDArray, count: int) -> pa.Array:
    """Pairs of row and label -> for each of count rows its distinct labels, ascending."""
    real = (rows >= 0) & (labels >= 0)
    pairs = np.unique(np.stack([rows[real], labels[real].astype(np.int64)]), axis=1)
    offsets = np.searchsorted(pairs[0], np.arange(count + 1))
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(pairs[1], pa.int32()))
