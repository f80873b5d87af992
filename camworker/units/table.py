"""The table units.parquet: one row for each class, unit and patch."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from camworker.frame import CORNERS
from camworker.units.top_activations import TopActivations

_FIELDS: "Final[list[pa.Field[Any]]]" = [
    pa.field("label", pa.int32(), nullable=False),
    pa.field("name", pa.string(), nullable=False),
    pa.field("unit_rank", pa.int32(), nullable=False),  # rank of the unit in its class by weight, from 1
    pa.field("unit", pa.int32(), nullable=False),
    pa.field("weight", pa.float32(), nullable=False),
    pa.field("patch_rank", pa.int32(), nullable=False),  # rank of the patch in its unit, from 1
    pa.field("max_activation", pa.float32(), nullable=False),
    pa.field("mean_activation", pa.float32(), nullable=False),  # over the map; orders equal maxima
    pa.field("image_id", pa.string(), nullable=False),
    pa.field("uri", pa.string(), nullable=False),
    pa.field("source_row", pa.int64()),
    pa.field("xmin", pa.float32(), nullable=False),
    pa.field("ymin", pa.float32(), nullable=False),
    pa.field("xmax", pa.float32(), nullable=False),
    pa.field("ymax", pa.float32(), nullable=False),
]
UNITS: Final = pa.schema(_FIELDS)


def units_table(
    classes: Sequence[int] | NDArray[np.integer],
    names: Sequence[str],
    units_KU: NDArray[np.int32],
    weights_KC: NDArray[np.floating],
    activations: TopActivations,
    boxes_UN4: NDArray[np.float32],
    items: pa.Table,
) -> pa.Table:
    """Return the table of these classes (schema UNITS), ordered by class, unit rank and patch rank.

    A unit that no image activates has no rows.

    Args:
        classes: Indices of the classes, in the order of the rows.
        names: Names of all classes of the network.
        units_KU: The units of each class, by descending weight.
        weights_KC: Weights of the network's head.
        activations: The top activations of the distinct units of `units_KU`, ascending by unit.
        boxes_UN4: The patches of `activations` in pixels of the original images.
        items: The images: columns image_id, uri, source_row and number.
    """
    labels_K = np.asarray(classes, np.int32)
    activation_row_KU = np.searchsorted(np.unique(units_KU), units_KU)
    k, unit_rank, patch_rank = np.nonzero(activations.is_used_UN[activation_row_KU])
    activation_row = activation_row_KU[k, unit_rank]
    best = activations.best_UN[activation_row, patch_rank]
    numbers = items["number"].to_numpy()
    order = np.argsort(numbers)
    images = items.select(["image_id", "uri", "source_row"]).take(
        order[np.searchsorted(numbers[order], best["number"])]
    )
    boxes_N4 = boxes_UN4[activation_row, patch_rank]
    columns: list[Any] = [
        labels_K[k],
        [names[label] for label in labels_K[k]],
        (unit_rank + 1).astype(np.int32),
        units_KU[k, unit_rank],
        weights_KC[labels_K[k], units_KU[k, unit_rank]].astype(np.float32),
        (patch_rank + 1).astype(np.int32),
        np.ascontiguousarray(best["value"]),
        np.ascontiguousarray(best["mean"]),
        *(images[name].combine_chunks() for name in images.column_names),
        *(boxes_N4[:, corner] for corner in range(len(CORNERS))),
    ]
    return pa.Table.from_arrays([pa.array(column) for column in columns], schema=UNITS)
