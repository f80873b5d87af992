"""Known labels of images, from a column of a table or from a file of image ids and labels."""

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from camworker.classes import Classes
from camworker.inputs.tabular import column_batches
from camworker.storage.parquet import combine_chunks
from camworker.storage.uris import Connections

LABELS: Final = pa.schema([("image_id", pa.string())]).append(pa.field("label", pa.int32()))


def read_labels(path: str, classes: Classes, *, connections: Connections | None = None) -> Iterator[pa.Table]:
    """Yield the rows of a file of known labels in batches of some ten thousand rows.

    Args:
        path: Parquet or CSV file with columns image_id and label.
        classes: Classes of the network, to look up the labels.
        connections: Connections to object stores; by default they are opened for this call.

    Yields:
        Tables of schema LABELS; the label of a row without one is -1.

    Raises:
        UsageError: The file cannot be read, a column is missing or a label is not among the classes.
    """
    for table in column_batches(path, LABELS.names, text=["image_id"], connections=connections):
        labels = classes.resolve(table["label"], f"{path}, column 'label'")
        yield pa.table([combine_chunks(table["image_id"]), pa.array(labels)], schema=LABELS)


def label_lists(
    column: "pa.Array[Any] | pa.ChunkedArray[Any]", classes: Classes, path: str
) -> "pa.ListArray[Any]":
    """Return the labels of a table's rows as lists of class indices.

    Args:
        column: Column with a label or a list of labels in each row.
        classes: Classes of the network, to look up the labels.
        path: File of the column, for messages.

    Returns:
        For each row its distinct class indices in ascending order, list<int32>.

    Raises:
        UsageError: A label is not among the classes.
    """
    labels = combine_chunks(column)
    count = len(labels)
    rows = np.arange(count)
    if isinstance(labels, pa.ListArray | pa.LargeListArray):
        rows = np.repeat(rows, combine_chunks(pc.list_value_length(labels)).fill_null(0).to_numpy())
        labels = labels.flatten()
    return _grouped(rows, classes.resolve(labels, f"{path}, column 'label'"), count)


def no_labels(count: int) -> "pa.ListArray[Any]":
    """Return `count` empty lists of labels, list<int32>."""
    return _grouped(np.empty(0, np.int64), np.empty(0, np.int32), count)


def _grouped(rows_N: NDArray[np.int64], labels_N: NDArray[np.int32], count: int) -> "pa.ListArray[Any]":
    """Group pairs of row and label by row; a label of -1 is none."""
    has_label_N = labels_N >= 0
    pairs = np.unique(np.stack([rows_N[has_label_N], labels_N[has_label_N].astype(np.int64)]), axis=1)
    offsets = np.searchsorted(pairs[0], np.arange(count + 1))
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(pairs[1], pa.int32()))
