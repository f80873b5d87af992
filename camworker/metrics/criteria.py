"""`Criteria`: which boxes and maps of rows are evaluated, and how they are compared with ground truth."""

from dataclasses import dataclass
from typing import Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from camworker.boxes.rules import uses_refined
from camworker.errors import UsageError
from camworker.frame import Frame, FrameSpec
from camworker.metrics.ground_truth.truth import Truth
from camworker.schemas import CamShape

MapKind = Literal["raw", "refined"]
MAP_KINDS: Final[tuple[MapKind, ...]] = get_args(MapKind)
MAP_COLUMNS: Final[dict[MapKind, str]] = {"raw": "cams", "refined": "refined"}

RAW_RULE: Final = "cam20"  # makes the boxes with which those of refined maps are compared
NO_REFINED_MAPS: Final = "these rows hold no refined maps: they were localized without refinement"
_LAST_PIXEL: Final = np.array([0, 0, 1, 1], np.float32)  # from half-open corners to inclusive ones


def map_kind(rule: str) -> MapKind:
    """Return which maps a box rule is for."""
    return "refined" if uses_refined(rule) else "raw"


@dataclass(frozen=True)
class Criteria:
    """How predictions are compared with ground truth.

    Attributes:
        frame_spec: How images were fitted into the network's input; maps boxes of new maps to pixels.
        cam_shape: Shape of the class activation maps of a row.
        box_rule: Rule by which boxes are made anew from the stored maps; None to use the stored boxes.
        inclusive: Whether IoU adds 1 to widths and heights, as the ILSVRC development kit does. Ground truth
            whose file names the last pixel of a box is then compared by the corners in its file.
        refined_shape: Shape of the refined maps of a row; None if it has none.
        maps: Which maps of known labels the threshold sweep, the pointing game and PxAP are about.
    """

    frame_spec: FrameSpec
    cam_shape: CamShape
    box_rule: str | None = None
    inclusive: bool = False
    refined_shape: CamShape | None = None
    maps: MapKind = "raw"

    def shape(self, kind: MapKind) -> CamShape:
        """Return the shape of the maps of a row.

        Raises:
            UsageError: The rows hold no refined maps.
        """
        shape = self.cam_shape if kind == "raw" else self.refined_shape
        if shape is None:
            raise UsageError(NO_REFINED_MAPS)
        return shape

    def frame(self, width: float, height: float) -> Frame:
        """Return the frame of an image of `width` x `height` pixels, as displayed."""
        return self.frame_spec.frame(int(width), int(height))

    def comparable_corners(self, corners: NDArray[np.floating], truth: Truth) -> NDArray[np.floating]:
        """Return half-open true corners [..., 4] in the convention in which IoU is computed."""
        return corners - _LAST_PIXEL if self.inclusive and truth.inclusive else corners
