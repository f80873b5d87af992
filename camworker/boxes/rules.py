"""Boxes from maps by named box rules.

Boxes are float32 rows of xmin, ymin, xmax, ymax, half-open: the box over a whole map is 0, 0, W, H.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from camworker.boxes.dtbox import dt_boxes, on_original
from camworker.boxes.fine_multi import similar_parts
from camworker.boxes.maxboxacc import SIDE, largest_contour_box, score_map
from camworker.errors import UsageError
from camworker.frame import Frame, to_original

# Rules as users write them. T and TAU are plain decimal numbers: 0 <= T < 1, and 0 < T in fine rules.
RULES: Final = ("cam20", "cam:T", "cam20-multi", "dtbox", "fine:T", "fine-multi:T")
_FIXED: Final = {"cam20": ("cam", 0.20), "cam20-multi": ("multi", 0.20), "dtbox": ("dtbox", 0.0)}
_WITH_THRESHOLD: Final = re.compile(r"(cam|maxboxacc|fine|fine-multi):([0-9]*\.?[0-9]+)")
_FINE: Final = ("fine", "fine-multi")
_HIGHEST_LEVEL: Final = 0.95  # of the peak, so that no threshold of a fine rule leaves an empty mask

Boxes = NDArray[np.float32]
_NO_BOX: Final = np.zeros((1, 4), np.int64)  # differs from every box of a component: these have an area


@dataclass(frozen=True, slots=True)
class MapBoxes:
    """The boxes of M maps, map after map.

    Attributes:
        corners_L4: The boxes, float32 [L, 4].
        counts_M: The number of boxes of each map, int64 [M].
        fallback_L: Whether a box is the one over the whole image because its map has no positive value,
            bool [L].
    """

    corners_L4: Boxes
    counts_M: NDArray[np.int64]
    fallback_L: NDArray[np.bool_]


def check_rule(rule: str, *, stored: bool = False) -> str:
    """Return a box rule in its canonical spelling: "cam:.30" becomes "cam:0.3".

    Args:
        rule: A rule of `boxes_from_map`.
        stored: Whether the rule is for stored maps (exports and metrics), which allow maxboxacc:TAU. The
            features that fine-multi:T needs are not stored.

    Raises:
        UsageError: The rule does not exist or is not allowed; the message lists those that are.
    """
    name, threshold = _parse(rule)
    if name == "maxboxacc" and not stored:
        raise UsageError(f"box rule {rule!r} is for export and summarize: choose from {', '.join(RULES)}")
    if name == "fine-multi" and stored:
        raise UsageError(f"box rule {rule!r} needs features, which are not stored: choose it for localize")
    if rule in _FIXED:
        return rule
    return f"{name}:{np.format_float_positional(threshold, trim='-')}"


def uses_refined(rule: str) -> bool:
    """Return whether a box rule works on refined maps; the others work on class activation maps.

    Raises:
        UsageError: The rule does not exist.
    """
    return _parse(rule)[0] in _FINE


def boxes_from_map(map_HW: NDArray[np.floating], rule: str = "cam20") -> Boxes:
    """Return the boxes of a map of any size, in pixels of that map.

    The rules, M being the map:

    - cam20 (Zhou et al., CVPR 2016, section 3.2): the mask is M > 0.20 * max(M). The box is the bounding box
    of
      the 8-connected component with the most pixels; of several, the one that row order meets first.
    - cam:T: the same with the threshold T, as in cam:0.3.
    - cam20-multi: the mask of cam20 and a box around each component that has at least a tenth of the largest
      component's pixels, ordered by the number of pixels, ties in row order.
    - dtbox: the loose and the tight box, see `dtbox.dt_boxes`.
    - fine:T, for refined maps: the box of the largest component, as in cam20, of the mask
      M > min(T * mean(M), 0.95 * max(M)). T is relative to the mean and may exceed 1. The mean is that of the
      map before it is upsampled: upsampling by a whole number, as from 28 to 224, does not change it.
    - maxboxacc:TAU (Choe et al., CVPR 2020): the largest contour of the score map, see
      `maxboxacc.largest_contour_box`, scaled to the map. This box can be empty.

    Except for maxboxacc:TAU, a map without a positive value gives the box over the whole map. fine-multi:T
    needs more than a map, see `boxes_from_cams`.

    Args:
        map_HW: The map [H, W].
        rule: Name of the box rule.

    Returns:
        float32 [N, 4], N >= 1, the best box first.

    Raises:
        UsageError: The rule does not exist or needs features.
    """
    name, threshold = _parse(rule)
    map_HW = np.asarray(map_HW, np.float32)
    height, width = map_HW.shape
    if name == "dtbox":
        return dt_boxes(map_HW)
    if name == "maxboxacc":
        return _largest_contour(map_HW, threshold, (width, height))
    if name == "fine-multi":
        raise _needs_features(rule)
    boxes_N4 = _boxes_above(np.ascontiguousarray(map_HW), name, threshold, map_HW.mean())
    return np.array([[0, 0, width, height]] if boxes_N4 is _NO_BOX else boxes_N4, np.float32)


def boxes_from_cam(cam_hw: NDArray[np.floating], frame: Frame, rule: str = "cam20") -> Boxes:
    """Return the boxes of a class activation map, or of a refined map, in pixels of the original image.

    The map is upsampled from the feature grid to the network's input (bilinear, half-pixel centres), and the
    boxes that the rule finds there are mapped through the frame. A map without a positive value gives the box
    over the whole original image. dtbox upsamples to the original image instead, see `dtbox.on_original`;
    maxboxacc upsamples to its own 224x224 square, whose boxes are scaled to the network's input.

    Args:
        cam_hw: Class activation map on the feature grid, [h, w]; for fine:T a refined map, decoded.
        frame: The frame of the map's image.
        rule: Name of the box rule, see `boxes_from_map`.

    Returns:
        float32 [N, 4], N >= 1, the best box first.

    Raises:
        UsageError: The rule does not exist or needs features.
    """
    return boxes_from_cams(np.asarray(cam_hw)[None], [frame], np.zeros(1, np.int64), rule).corners_L4


def boxes_from_cams(
    maps_Mhw: NDArray[np.floating],
    frames: Sequence[Frame],
    image_M: NDArray[np.int64],
    rule: str = "cam20",
    fine_BCHW: NDArray[np.float32] | None = None,
) -> MapBoxes:
    """Return the boxes of many maps, as `boxes_from_cam` does for one.

    Args:
        maps_Mhw: Class activation maps of M labels, [M, h, w]; for fine rules refined maps, decoded.
        frames: Frames of the images, which may differ only in the size of the original image.
        image_M: The index into frames of each map's image, [M].
        rule: Name of the box rule, see `boxes_from_map`; also fine-multi:T, see `fine_multi.similar_parts`.
        fine_BCHW: Features of each image at stride 8, which only fine-multi:T uses.

    Raises:
        UsageError: The rule does not exist, or it needs features and there are none.
    """
    name, threshold = _parse(rule)
    if name == "fine-multi" and fine_BCHW is None:
        raise _needs_features(rule)
    if not len(image_M):
        return MapBoxes(np.empty((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, np.bool_))
    maps_Mhw = np.ascontiguousarray(maps_Mhw, np.float32)
    size = (frames[0].input_size, frames[0].input_size)
    boxes: list[NDArray[np.number]]
    if name == "dtbox":
        maps = (on_original(map_hw, frames[image]) for map_hw, image in zip(maps_Mhw, image_M, strict=True))
        pairs = [(dt_boxes(map_HW), not map_HW.max() > 0) for map_HW in maps]
        counts_M = np.full(len(pairs), 2)
        fallback_L = np.repeat([fallback for _, fallback in pairs], counts_M)
        return MapBoxes(np.concatenate([pair for pair, _ in pairs]), counts_M, fallback_L)
    if name == "maxboxacc":
        boxes = [_largest_contour(map_hw, threshold, size) for map_hw in maps_Mhw]
    else:
        buffer_HW = np.empty(size, np.float32)  # shared by all maps, so that it stays in the CPU cache
        maps = (cv2.resize(map_hw, size, buffer_HW, interpolation=cv2.INTER_LINEAR) for map_hw in maps_Mhw)
        means_M = maps_Mhw.mean((1, 2)) if name in _FINE else np.zeros(len(maps_Mhw), np.float32)
        with_features = fine_BCHW if name == "fine-multi" else None
        features = [None if with_features is None else with_features[image] for image in image_M]
        boxes = [
            _boxes_above(map_HW, name, threshold, mean, fine_CHW)
            for map_HW, mean, fine_CHW in zip(maps, means_M, features, strict=True)
        ]
    counts_M = np.array([len(map_boxes) for map_boxes in boxes])
    boxes_L4 = np.concatenate(boxes)
    sizes_B2 = np.array([(frame.width, frame.height) for frame in frames])
    sizes_L2 = sizes_B2[np.repeat(image_M, counts_M)]
    originals_L4 = to_original(boxes_L4, sizes_L2, frames[0].input_size, frames[0].resize)
    fallback_L = np.repeat([map_boxes is _NO_BOX for map_boxes in boxes], counts_M)
    originals_L4[fallback_L, :2], originals_L4[fallback_L, 2:] = 0, sizes_L2[fallback_L]
    return MapBoxes(originals_L4, counts_M, fallback_L)


@lru_cache  # called for every map
def _parse(rule: str) -> tuple[str, float]:
    """Return the kind of a rule (cam, multi, dtbox, maxboxacc, fine, fine-multi) and its threshold.

    Raises:
        UsageError: The rule does not exist.
    """
    if rule in _FIXED:
        return _FIXED[rule]
    match = _WITH_THRESHOLD.fullmatch(rule)
    if match:
        name, threshold = match[1], float(match[2])
        if 0 < threshold < np.inf if name in _FINE else threshold < 1:
            return name, threshold
    raise UsageError(
        f"unknown box rule {rule!r}: choose from {', '.join(RULES)} (cam: 0 <= T < 1, as in cam:0.3; fine: "
        "T > 0, as in fine:1.5), in export and summarize also maxboxacc:TAU"
    )


def _needs_features(rule: str) -> UsageError:
    return UsageError(f"box rule {rule!r} needs the features of the image")


def _boxes_above(
    map_HW: NDArray[np.float32],
    name: str,
    threshold: float,
    mean: np.float32,
    fine_CHW: NDArray[np.float32] | None = None,
) -> NDArray[np.int64]:
    """Return the boxes of a rule on components, in map pixels, or _NO_BOX without a positive value."""
    # Importing Numba takes a third of a second, which checking a rule does not need.
    from camworker.boxes.connected_components import PIXELS, components_above

    level = _level(map_HW, name, threshold, mean)
    if level is None:
        return _NO_BOX
    if fine_CHW is not None:
        return similar_parts(map_HW, level, fine_CHW)
    components_N5: NDArray[np.int64] = components_above(map_HW, level)
    pixels_N = components_N5[:, PIXELS]
    if name != "multi":
        chosen = [pixels_N.argmax()]  # the first of several largest components
    else:
        order = np.argsort(-pixels_N, kind="stable")
        chosen = order[pixels_N[order] * 10 >= pixels_N.max()]
    return components_N5[chosen, :4]


def _level(map_HW: NDArray[np.float32], name: str, threshold: float, mean: np.float32) -> np.float32 | None:
    """Return the level above which pixels are in the mask; None for a map without a positive value."""
    if name in _FINE:
        relative = np.float32(threshold) * mean
        # A lower bound of the peak decides nearly always, and takes a fraction of the time.
        bound = map_HW[4::8, 4::8].max(initial=0)
        if bound > 0 and relative < np.float32(_HIGHEST_LEVEL) * bound:
            return relative
    peak = map_HW.max()
    if not peak > 0:
        return None
    level: np.float32
    if name in _FINE:
        level = np.minimum(relative, np.float32(_HIGHEST_LEVEL) * peak)
    else:
        level = np.float32(threshold) * peak
    # A threshold next to 1 can round to 1; the peak itself stays in the mask.
    return level if level < peak else np.nextafter(peak, np.float32(0))


def _largest_contour(cam_hw: NDArray[np.floating], tau: float, size: tuple[int, int]) -> Boxes:
    """Return the box of maxboxacc:TAU, scaled to a map of size (width, height)."""
    box_4 = largest_contour_box(score_map(cam_hw), tau)
    scaled: Boxes = (box_4 * np.array([size * 2]) / SIDE).astype(np.float32)
    return scaled
