"""units.parquet: a row per class, unit and patch. Its schema, and how it is made of what a pass gave."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from camworker.frame import CORNERS
from camworker.units.top_activations import TopActivations

UNITS: Final = pa.schema(
    [
        pa.field("label", pa.int32(), nullable=False),
        pa.field("name", pa.string(), nullable=False),
        pa.field("place", pa.int32(), nullable=False),  # of the unit in its class, from 1
        pa.field("unit", pa.int32(), nullable=False),
        pa.field("weight", pa.float32(), nullable=False),
        pa.field("patch", pa.int32(), nullable=False),  # of the patch in its unit, from 1
        pa.field("activation", pa.float32(), nullable=False),
        pa.field("mean", pa.float32(), nullable=False),  # over the map: ranks where activations are capped
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("source_row", pa.int64()),
        *(pa.field(name, pa.float32(), nullable=False) for name in CORNERS),
    ]
)


def units_table(
    classes: Sequence[int] | NDArray[np.integer],
    names: Sequence[str],
    units_KU: NDArray[np.int32],
    weights_KC: NDArray[np.floating],
    excitations: TopActivations,
    boxes_UN4: NDArray[np.float32],
    items: pa.Table,
) -> pa.Table:
    """The dictionary of these classes (schema UNITS), in their order; a patch a row, the best first.

    names: of all the network's classes. units_KU: each class's units, the largest weight first.
    excitations and boxes_UN4: of the distinct units, ascending. items: image_id, uri, source_row and
    number. A unit that no image excites has no row.
    """
    labels_K = np.asarray(classes, np.int32)
    excited = np.searchsorted(np.unique(units_KU), units_KU)
    k, place, patch = np.nonzero(excitations.is_real_UN[excited])
    unit = excited[k, place]
    best = excitations.best_UN[unit, patch]
    numbers = items["number"].to_numpy()
    order = np.argsort(numbers)
    images = items.select(["image_id", "uri", "source_row"]).take(
        order[np.searchsorted(numbers[order], best["number"])]
    )
    boxes_N4 = boxes_UN4[unit, patch]
    columns = {
        "label": labels_K[k],
        "name": [names[label] for label in labels_K[k]],
        "place": (place + 1).astype(np.int32),
        "unit": units_KU[k, place],
        "weight": weights_KC[labels_K[k], units_KU[k, place]].astype(np.float32),
        "patch": (patch + 1).astype(np.int32),
        "activation": np.ascontiguousarray(best["value"]),
        "mean": np.ascontiguousarray(best["mean"]),
        **{name: images[name].combine_chunks() for name in images.column_names},
        **{name: boxes_N4[:, n] for n, name in enumerate(CORNERS)},
    }
    return pa.table(columns, schema=UNITS)
