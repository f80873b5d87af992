"""Tests of fine-multi:T on maps whose parts can be counted by hand."""

import numpy as np
import pytest

from camworker.boxes.rules import boxes_from_cam, boxes_from_cams, boxes_from_map, check_rule
from camworker.errors import UsageError
from camworker.frame import Frame

SIDE = 32
RULE = "fine-multi:1"


def boxes_of(map_HW: np.ndarray, fine_CHW: np.ndarray, rule: str = RULE) -> list[list[float]]:
    frame = Frame(SIDE, SIDE, SIDE)
    made = boxes_from_cams(map_HW[None], [frame], np.zeros(1, np.int64), rule, fine_CHW[None])
    assert made.counts_M.tolist() == [len(made.corners_L4)]
    return made.corners_L4.tolist()


def features(left: list[float], right: list[float]) -> np.ndarray:
    """Features on a grid of 4x4 cells: one vector in the left half, another in the right."""
    fine_CHW = np.empty((len(left), 4, 4), np.float32)
    fine_CHW[..., :2], fine_CHW[..., 2:] = np.array(left)[:, None, None], np.array(right)[:, None, None]
    return fine_CHW


def two_with_a_bridge() -> np.ndarray:
    map_HW = np.zeros((SIDE, SIDE), np.float32)
    map_HW[10:20, 4:14] = map_HW[10:18, 18:28] = 1
    map_HW[14:16, 14:18] = 0.5  # above the mean, 0.18
    return map_HW


def test_parts_that_look_alike_have_a_box_each():
    map_HW = two_with_a_bridge()
    parts = [[4, 10, 16, 20], [16, 10, 28, 18]]  # each has the half of the bridge that is nearer to it
    assert boxes_of(map_HW, features([1, 0], [1, 0])) == parts
    assert boxes_of(map_HW, features([1, 0], [0.96, 0.28])) == parts  # a cosine of 0.96
    assert boxes_of(map_HW, features([1, 0], [0.8, 0.6])) == [[4, 10, 28, 20]]
    assert boxes_of(map_HW, features([1, 0], [1, 0]), "fine:1") == [[4, 10, 28, 20]]


def test_a_small_part_is_not_split_off():
    map_HW = two_with_a_bridge()
    map_HW[12:18, 18:28] = 0
    map_HW[10:12, 18:28] = 1
    map_HW[11:13, 14:18] = map_HW[14:16, 14:18]
    map_HW[14:16, 14:18] = 0
    assert boxes_of(map_HW, features([1, 0], [1, 0])) == [[4, 10, 28, 20]]


def test_other_components_join_by_area_and_peak():
    map_HW = np.zeros((SIDE, SIDE), np.float32)
    map_HW[2:12, 2:12] = 1
    map_HW[20:25, 2:7] = 0.8  # a quarter of the area, 0.8 of the peak
    map_HW[20:25, 20:25] = 0.79
    map_HW[2:6, 20:26] = 1  # 24 pixels
    alike = features([1, 0], [0, 1])
    assert boxes_of(map_HW, alike) == [[2, 2, 12, 12], [2, 20, 7, 25]]


def test_boxes_of_several_images():
    maps_Mhw = np.stack([np.zeros((SIDE, SIDE), np.float32), two_with_a_bridge(), two_with_a_bridge()])
    frames = [Frame(SIDE, SIDE, SIDE), Frame(2 * SIDE, SIDE, SIDE)]
    fine_BCHW = np.stack([features([1, 0], [0, 1]), features([1, 0], [1, 0])])
    made = boxes_from_cams(maps_Mhw, frames, np.array([0, 0, 1]), RULE, fine_BCHW)
    assert made.counts_M.tolist() == [1, 1, 2]
    assert made.fallback_L.tolist() == [True, False, False, False]
    assert made.corners_L4.tolist() == [
        [0, 0, SIDE, SIDE],
        [4, 10, 28, 20],
        [8, 10, 32, 20],
        [32, 10, 56, 18],
    ]


def test_it_needs_features():
    map_HW = two_with_a_bridge()
    assert check_rule("fine-multi:.5") == "fine-multi:0.5"
    for call in (
        lambda: check_rule(RULE, stored=True),
        lambda: boxes_from_map(map_HW, RULE),
        lambda: boxes_from_cam(map_HW, Frame(SIDE, SIDE, SIDE), RULE),
    ):
        with pytest.raises(UsageError, match=r"^box rule 'fine-multi:1' needs [^\n]*features"):
            call()
