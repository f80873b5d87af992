"""Tests of map scores: sweeps, the pointing game to the pixel, pixels of masks, the baselines."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from camworker.boxes.iou import iou
from camworker.boxes.maxboxacc import scaled_truth
from camworker.frame import Frame
from camworker.metrics.criteria import Criteria
from camworker.metrics.ground_truth.truth import Truth
from camworker.metrics.map_scores import (
    MapScores,
    gaussian_boxes,
    gaussian_map,
    pixel_histogram,
    points_at,
    score_maps,
)
from camworker.metrics.matching import match_predictions, read_targets
from camworker.metrics.threshold_sweep import THRESHOLDS, Sweep
from support.factories import encode
from support.prediction_rows import FAR, LEFT, WHOLE, broken, criteria, known, row, table, truth

# A map of 4 x 4 cells in a frame of 4 pixels: a cell is 25 pixels of an image of 100.
CAM = np.zeros((4, 4))
CAM[1, 2] = 1  # its middle lies at 62.5, 37.5
FOUR = criteria(4, (1, 4, 4))
FRAME = FOUR.frame(100, 100)


def mapped(rows: Any, true: Truth, how: Criteria = FOUR, rule: Any = "maxboxacc") -> MapScores:
    targets = read_targets(rows["targets"], how)
    return score_maps(rows, match_predictions(rows, true, how, targets), targets, true, how, rule)


def mask_file(folder: Path, name: str, pixels: np.ndarray) -> str:
    path = folder / name
    path.write_bytes(encode(pixels.astype(np.uint8) * 255, "PNG"))
    return str(path)


@pytest.mark.parametrize(
    ("corners", "hit"),
    [
        ((60, 30, 70, 40), True),  # inside
        ((62.5, 37.5, 63, 38), True),  # on its corner
        ((77.5, 30, 99, 40), True),  # 15 to the right
        ((77.51, 30, 99, 40), False),
        ((0, 30, 47.5, 40), True),  # 15 to the left: boxes end at xmax
        ((0, 30, 47.49, 40), False),
        ((60, 52.5, 70, 99), True),  # 15 below
        ((60, 52.51, 70, 99), False),
        ((60, 0, 70, 22.5), True),  # 15 above
        ((60, 0, 70, 22.49), False),
        ((71.5, 49.5, 99, 99), True),  # 9 and 12: 15 by Pythagoras
        ((71.51, 49.5, 99, 99), False),
        ((73.5, 48.5, 99, 99), False),  # 11 and 11: 15.6, though 15 along neither axis
    ],
)
def test_pointing_at_exactly_15_pixels(corners: Any, hit: bool) -> None:
    assert points_at(CAM, FRAME, np.array([corners])) is hit
    assert points_at(CAM, FRAME, np.array([(0, 99, 1, 100), corners])) is hit


def test_pointing_counts_pixels_of_the_original() -> None:
    # A tenth of the size: the same box is ten times as far.
    small, large = FOUR.frame(10, 10), FOUR.frame(1000, 1000)
    corners = np.array([(9.9, 9.9, 10, 10)])
    assert points_at(CAM, small, corners)
    assert not points_at(CAM, large, corners * 100)


def test_pointing_goes_through_the_crop() -> None:
    # Of an image of 300 x 100 the network sees 100 to 200.
    frame = Frame(300, 100, 4, "crop")
    assert points_at(CAM, frame, np.array([(162, 37, 163, 38)]))
    assert not points_at(CAM, frame, np.array([(62, 37, 63, 38)]))


@pytest.mark.parametrize(
    ("cells", "x", "y"),
    [
        ([(1, 3), (2, 0)], 87.5, 37.5),  # the first row, though the other lies further left
        ([(2, 1), (2, 3)], 37.5, 62.5),
        ([(y, x) for y in range(4) for x in range(4)], 12.5, 12.5),
    ],
)
@pytest.mark.parametrize("value", [1.0, 0.0, -1.0])
def test_the_first_of_equal_maxima_in_row_order_points(cells: Any, x: float, y: float, value: float) -> None:
    cam_hw = np.full((4, 4), value - 1)
    for cell in cells:
        cam_hw[cell] = value
    assert points_at(cam_hw, FRAME, np.array([(x, y, x + 0.1, y + 0.1)]))
    other = np.array([(x + 15.1, y + 15.1, x + 15.2, y + 15.2)])
    assert not points_at(cam_hw, FRAME, other)


def test_pointing_takes_the_upsampled_map() -> None:
    # Of 2 x 2 cells the largest is at 3/4; upsampled to 8 the maximum is the corner's plateau.
    cam_hw = np.array([[0, 0], [0, 1.0]])
    frame = Frame(80, 80, 8)
    assert points_at(cam_hw, frame, np.array([(65, 65, 65.1, 65.1)]))  # the first pixel of the plateau
    assert not points_at(cam_hw, frame, np.array([(76, 76, 80, 80)]))


@pytest.mark.parametrize(
    ("pixel", "hit"),
    [
        ((37, 62), True),  # the pixel below the maximum
        ((37, 77), True),  # begins at 77, 14.5 away
        ((37, 78), False),  # 15.5
        ((37, 47), True),  # ends at 48, 14.5 away
        ((37, 46), False),
        ((46, 71), True),  # begins at 8.5, 8.5
        ((50, 75), False),  # 12.5, 12.5
    ],
)
def test_pointing_at_the_pixels_of_a_mask(tmp_path: Path, pixel: tuple[int, int], hit: bool) -> None:
    mask_HW = np.zeros((100, 100))
    mask_HW[pixel] = 1
    paths = [mask_file(tmp_path, "a.png", np.zeros((100, 100))), mask_file(tmp_path, "b.png", mask_HW)]
    assert points_at(CAM, FRAME, np.empty((0, 4)), paths) is hit
    # The mask says more than the box around it.
    assert points_at(CAM, FRAME, np.array([WHOLE]), paths) is hit


def test_a_mask_of_another_size_is_stretched_over_the_image(tmp_path: Path) -> None:
    mask_HW = np.zeros((10, 20))
    mask_HW[4, 15] = 1  # 75 to 80, 40 to 50
    path = mask_file(tmp_path, "a.png", mask_HW)
    assert points_at(CAM, FRAME, np.empty((0, 4)), [path])
    mask_HW[:] = 0
    mask_HW[4, 16] = 1  # from 80 on
    assert not points_at(CAM, FRAME, np.empty((0, 4)), [mask_file(tmp_path, "b.png", mask_HW)])


def test_an_empty_mask_cannot_be_pointed_at(tmp_path: Path) -> None:
    empty = mask_file(tmp_path, "a.png", np.zeros((100, 100)))
    assert not points_at(CAM, FRAME, np.empty((0, 4)), [empty])


def test_pixels_by_the_highest_threshold_that_they_reach() -> None:
    score_HW = np.array([[0, 0.0099], [0.01, 0.5], [0.9899, 1]])
    mask_HW = np.array([[0, 1], [1, 255], [0, 1]], np.uint8)
    counts = pixel_histogram(score_HW, mask_HW)
    assert counts.shape == (2, 100)
    assert counts.dtype == np.int64
    assert {n: counts[0, n] for n in np.flatnonzero(counts[0])} == {0: 1, 98: 1}
    assert {n: counts[1, n] for n in np.flatnonzero(counts[1])} == {0: 1, 1: 1, 99: 1}


SCORES = st.one_of(st.floats(0, 1, width=32), st.sampled_from(THRESHOLDS.astype(np.float32).tolist()))


@given(
    hnp.arrays(np.float32, (3, 4), elements=SCORES),
    hnp.arrays(np.uint8, (3, 4), elements=st.sampled_from([0, 1, 255])),
)
def test_pixels_above_each_threshold_are_those_of_a_loop(score_HW: np.ndarray, mask_HW: np.ndarray) -> None:
    counts = pixel_histogram(score_HW, mask_HW)
    for kind in (0, 1):
        reached = counts[kind][::-1].cumsum()[::-1]
        scores = [float(s) for s, m in zip(score_HW.ravel(), mask_HW.ravel(), strict=True) if m == kind]
        assert reached.tolist() == [sum(score >= tau for score in scores) for tau in THRESHOLDS]


def test_the_gaussian_is_centred_and_of_56_pixels() -> None:
    map_HW = gaussian_map()
    assert map_HW.shape == (224, 224)
    assert (map_HW == map_HW[::-1]).all()
    assert (map_HW == map_HW.T).all()
    assert map_HW.max() == map_HW[111, 111]
    # 56 pixels along one axis are a factor of exp(-1/2).
    distance = math.exp(-((56.5**2 - 0.5**2) / 2) / 56**2)
    assert map_HW[111, 168] / map_HW[111, 112] == pytest.approx(distance, rel=1e-6)


def test_the_gaussian_s_boxes_follow_from_its_formula() -> None:
    line = [math.exp(-((n - 111.5) ** 2) / 2 / 56**2) for n in range(224)]
    lowest, highest = line[0] ** 2, line[111] ** 2
    scores = [(value * line[111] - lowest) / (highest - lowest) for value in line]  # along the middle row
    boxes = gaussian_boxes()
    assert boxes.shape == (100, 4)
    for tau, box in zip(THRESHOLDS, boxes.tolist(), strict=True):
        above = [n for n, score in enumerate(scores) if int(255 * score + 1e-4) > int(tau * 255)]
        assert box == [above[0], above[0], min(above[-1] + 1, 223), min(above[-1] + 1, 223)]
    np.testing.assert_array_equal(gaussian_boxes(np.array([0.5, 0.2])), boxes[[50, 20]])


def test_the_baselines_of_an_image() -> None:
    rows = table(row("a", [(1, WHOLE)], size=(200, 100)), broken("b"))
    true = truth(("a", 1, (0, 0, 20, 10)), ("a", 1, (50, 0, 200, 100)), ("b", 1, WHOLE), ("a", 2, None))
    found = mapped(rows, true, criteria())
    assert found.whole_image[0] == 0.75  # the best of the two
    assert np.isnan(found.whole_image[1:]).all()
    assert found.gaussian.shape == (3, 100)
    assert np.isnan(found.gaussian[1:]).all()
    scaled = np.array([[0, 0, 22, 22], [56, 0, 224, 224]])
    overlaps = iou(gaussian_boxes(), scaled, inclusive=True)
    np.testing.assert_allclose(found.gaussian[0], overlaps.max(1), atol=1e-12)


def test_with_the_cam_rules_the_gaussian_lies_over_the_original() -> None:
    rows = table(row("a", [(1, WHOLE)], size=(448, 224)))
    corners = (100, 50, 300, 180)
    found = mapped(rows, truth(("a", 1, corners)), criteria(), "cam")
    stretched = gaussian_boxes() * [2, 1, 2, 1]
    np.testing.assert_allclose(found.gaussian[0], iou(stretched, np.array([corners]))[:, 0], atol=1e-6)


def test_the_whole_image_is_the_same_in_both_conventions() -> None:
    """For truth in whole pixels both conventions give the same value."""
    rows = table(row("a", [(1, WHOLE)], size=(10, 10)))
    true = truth(("a", 1, (0, 0, 10, 5)), inclusive=True)  # half of the image
    for how in (criteria(), criteria(inclusive=True)):
        assert mapped(rows, true, how).whole_image.tolist() == [0.5]


def test_the_sweep_of_instances_is_that_of_their_own_maps() -> None:
    rng = np.random.default_rng(0)
    cams = rng.normal(size=(4, 4, 4)).astype(np.float16)
    rows = table(
        row("a", [(1, WHOLE)], known(1, WHOLE, cam=cams[0]), known(2, WHOLE, cam=cams[1]), size=(200, 100)),
        row("b", [(1, WHOLE)], known(3, WHOLE, cam=cams[2])),
        broken("c"),
        row("d", [(1, WHOLE)], known(1, WHOLE, cam=cams[3])),
        shape=(1, 4, 4),
    )
    # Boxes of two labels of one image, mixed.
    true = truth(
        *(("a", 2, LEFT), ("a", 1, FAR), ("a", 2, (150, 0, 200, 100)), ("b", 3, LEFT), ("c", 1, WHOLE)),
        *(("d", 2, WHOLE), ("d", 1, None), ("a", 1, (0, 0, 60, 60))),
    )
    found = mapped(rows, true, FOUR)
    assert found.sweep is not None
    assert found.sweep.shape == (6, 100, 2)
    boxes = {0: [FAR, (0, 0, 60, 60)], 1: [LEFT, (150, 0, 200, 100)], 2: [LEFT]}
    for instance, corners in boxes.items():
        frame = FOUR.frame(*((100, 100) if instance == 2 else (200, 100)))
        expected = Sweep().maxboxacc(
            cams[instance], scaled_truth(np.array(corners), frame.width, frame.height)
        )
        np.testing.assert_array_equal(found.sweep[instance], expected.astype(np.float32))
        by_rule = mapped(rows, true, FOUR, "cam").sweep
        assert by_rule is not None
        expected = Sweep().cam(cams[instance], frame, np.array(corners, np.float32), inclusive=False)
        np.testing.assert_array_equal(by_rule[instance], expected.astype(np.float32))
    assert not found.sweep[3:].any()  # failed; no box; no map of its own
    assert mapped(rows, true, FOUR, None).sweep is None


def test_the_maxboxacc_sweep_uses_the_corners_in_the_file() -> None:
    map_HW = np.zeros((224, 224))
    map_HW[:100, :50] = 1  # its box is 0, 0, 50, 100
    how = criteria(224, (1, 224, 224))
    rows = table(row("a", [(1, WHOLE)], known(1, WHOLE, cam=map_HW), size=(224, 224)), shape=(1, 224, 224))
    named = truth(("a", 1, (0, 0, 51, 101)), inclusive=True)
    unnamed = truth(("a", 1, (0, 0, 50, 100)))
    for true in (named, unnamed):
        for convention in (how, criteria(224, (1, 224, 224), inclusive=True)):
            sweep = mapped(rows, true, convention).sweep
            assert sweep is not None
            assert (sweep == 1).all()


def test_pointing_of_instances() -> None:
    rows = table(
        row("a", [(1, WHOLE)], known(1, WHOLE, cam=CAM), known(2, WHOLE, cam=CAM.T)),
        row("b", [(1, WHOLE)], known(1, WHOLE, cam=CAM)),
        broken("c"),
        shape=(1, 4, 4),
    )
    there, elsewhere = (60, 30, 70, 40), (0, 90, 10, 100)
    true = truth(
        *(("a", 2, there), ("a", 1, elsewhere), ("a", 1, there)),
        *(("b", 1, None), ("b", 2, there), ("c", 1, WHOLE)),
    )
    found = mapped(rows, true)
    # CAM; its mirror image at 37.5, 62.5; no box; no map; failed.
    assert found.pointing_hit.tolist() == [True, False, False, False, False]
    assert found.has_pointing_target.tolist() == [True, True, False, True, True]


def test_pixels_of_instances(tmp_path: Path) -> None:
    score_HW = np.zeros((224, 224))
    score_HW[:, :56] = 1
    score_HW[:, 56:112] = 0.5
    how = criteria(224, (1, 224, 224))
    top, right = np.zeros((224, 224)), np.zeros((224, 224))
    top[:112] = 1
    right[:, 168:] = 1
    masks = [mask_file(tmp_path, "top.png", top), mask_file(tmp_path, "right.png", right)]
    ids, labels = ["a", "b", "a", "c"], [1, 1, 2, 1]

    true = Truth.from_rows(
        ids,
        labels,
        masks=pa.array([masks[0], masks[0], masks[1], None], pa.string()),
        ignores=pa.array([masks[1], None, None, None], pa.string()),
    )
    rows = table(
        row("a", [(1, WHOLE)], known(1, WHOLE, cam=score_HW), known(2, WHOLE, cam=score_HW)),
        broken("b"),
        row("c", [(1, WHOLE)], known(1, WHOLE, cam=score_HW)),
        shape=(1, 224, 224),
    )
    found = mapped(rows, true, how)
    assert found.pixels is not None
    counts = [
        {(kind, n): int(instance[kind, n]) for kind, n in np.argwhere(instance).tolist()}
        for instance in found.pixels
    ]
    quarter = 112 * 56
    assert counts == [
        # The right quarter is ignored where it is not object.
        {
            (1, 99): quarter,
            (1, 50): quarter,
            (1, 0): 2 * quarter,
            (0, 99): quarter,
            (0, 50): quarter,
            (0, 0): quarter,
        },
        {(0, 99): 2 * quarter, (0, 50): 2 * quarter, (0, 0): 2 * quarter, (1, 0): 2 * quarter},
        {(0, 0): 4 * quarter, (1, 0): 4 * quarter},  # failed: a map of zeros
        {},
    ]
    # The first maximum is the top left corner: on the top mask, 167 pixels from the right one; "c" has none.
    assert found.has_pointing_target.tolist() == [True, True, True, False]
    assert found.pointing_hit.tolist() == [True, False, False, False]


def test_without_masks_there_are_no_pixels() -> None:
    assert mapped(table(row("a", [(1, WHOLE)])), truth(("a", 1, FAR)), criteria()).pixels is None


def test_no_instances() -> None:
    for rows in (table(), table(row("stray", [(1, WHOLE)])), table(broken("stray"))):
        found = mapped(rows, truth(("a", 1, WHOLE)), criteria())
        assert found.sweep is not None
        assert found.sweep.shape == (0, 100, 2)
        assert found.gaussian.shape == (0, 100)
