"""Why a first (label, box) pair is wrong: the categories of localization errors."""

from collections.abc import Mapping
from typing import Final, Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from camworker.frame import CORNERS

ErrorKind = Literal["correct", "wrong_class", "several_instances", "part", "too_large", "too_small", "no_box"]
ERRORS: Final[tuple[ErrorKind, ...]] = get_args(ErrorKind)
ERROR_TITLES: Final[Mapping[ErrorKind, str]] = {
    "correct": "correct class, IoU at least 0.5",
    "wrong_class": "wrong class",
    "several_instances": "box over several instances",
    "part": "box over a part of the object",
    "too_large": "box too large",
    "too_small": "box too small",
    "no_box": "no box: the image failed",
}

# Gao et al., "TS-CAM", ICCV 2021, section 4: intersection over the true box's area (IoG), over the predicted
# box's area (IoP).
_SEVERAL_IOG: Final = 0.3
_PART_IOP: Final = 0.5


def error_categories(
    instances: pd.DataFrame,
    classified: NDArray[np.bool_],
    localized: NDArray[np.bool_],
    predicted: pd.DataFrame,
    true: pd.DataFrame,
) -> NDArray[np.int8]:
    """Return why the first (label, box) pair of each instance's row is wrong.

    The categories follow Gao et al. (TS-CAM, ICCV 2021). A pair that has the right label but misses is
    several_instances if it covers more than 0.3 of at least two true boxes, else part if more than half of
    its area lies in a true box, else too_large or too_small by its area compared with that of the true box
    that it covers most. TS-CAM's "more" (more than 0.7 of the true box is covered) is part of too_large here.

    Args:
        instances: row, label and instance of all U instances.
        classified: Whether the label is among the first 1 and 5 ranked classes, [U, 2].
        localized: Whether the label is localized among the first 1 and 5 pairs, [U, 2].
        predicted: row, rank, label and corners of predicted boxes.
        true: row, label, instance and corners of true boxes.

    Returns:
        Index into ERRORS of each instance, [U]; meaningful for instances with true boxes.
    """
    errors = np.full(len(instances), ERRORS.index("no_box"), np.int8)
    first = predicted[predicted["rank"] == 0].drop(columns=["label", "rank"])
    pairs = instances.drop(columns="label").merge(first, on="row")
    errors[pairs["instance"]] = ERRORS.index("wrong_class")
    pairs = pairs[classified[pairs["instance"], 0]].drop(columns="row")
    pairs = pairs.merge(true, on="instance", suffixes=("", "_true"))
    if len(pairs):
        a = pairs[list(CORNERS)].to_numpy(np.float64)
        b = pairs[[f"{corner}_true" for corner in CORNERS]].to_numpy(np.float64)
        sides = np.clip(np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]), 0, None)
        inside, area_a, area_b = (
            np.prod(x, axis=1) for x in (sides, a[:, 2:] - a[:, :2], b[:, 2:] - b[:, :2])
        )
        area_a = np.maximum(area_a, np.finfo(float).tiny)
        kinds = pd.DataFrame({"instance": pairs["instance"], "iog": inside / area_b, "iop": inside / area_a})
        kinds["larger"] = area_a > area_b
        kinds["several"] = kinds["iog"] > _SEVERAL_IOG
        kinds = kinds.sort_values(["instance", "iog"], ascending=[True, False], kind="stable")
        by_instance = kinds.groupby("instance")
        table = by_instance.agg({"several": "sum", "iop": "max", "larger": "first"})
        names = np.select(
            [table["several"] > 1, table["iop"] > _PART_IOP, table["larger"]],
            [ERRORS.index(name) for name in ("several_instances", "part", "too_large")],
            ERRORS.index("too_small"),
        )
        errors[table.index] = names
    errors[localized[:, 0]] = ERRORS.index("correct")
    return errors
