"""Tests of the boxes of MaxBoxAcc by hand and against scipy, of inclusive IoU and scaled truth."""

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from camworker.boxes.iou import iou
from camworker.boxes.maxboxacc import (
    contour_boxes,
    largest_contour_box,
    scaled_truth,
    score_map,
)

NOTHING = [0, 0, 0, 0]


def scores(*filled: tuple[float, slice, slice], shape: tuple[int, int] = (224, 224)) -> np.ndarray:
    score_HW = np.zeros(shape, np.float32)
    for value, rows, columns in filled:
        score_HW[rows, columns] = value
    return score_HW


def boxes_by_scipy(mask: np.ndarray) -> list[list[int]]:
    """Return the boxes of 8-connected components, and of the pixels around holes, cut to the last pixel."""
    found = ndimage.find_objects(ndimage.label(mask, structure=np.ones((3, 3)))[0])
    boxes = [[columns.start, rows.start, columns.stop, rows.stop] for rows, columns in found]
    empty, _ = ndimage.label(np.pad(~mask, 1, constant_values=True))
    for rows, columns in ndimage.find_objects(empty)[1:]:  # the first is what lies outside
        boxes.append([columns.start - 2, rows.start - 2, columns.stop, rows.stop])
    height, width = mask.shape
    return [[x0, y0, min(x1, width - 1), min(y1, height - 1)] for x0, y0, x1, y1 in boxes] or [NOTHING]


def test_a_score_map_is_bicubic_and_spans_0_to_1():
    rng = np.random.default_rng(2)
    for cells in ((7, 7), (14, 9), (32, 32)):
        cam_hw = rng.normal(size=cells).astype(np.float16)
        # torch's bicubic has a = -0.75 and half-pixel centres too.
        upsampled = torch.nn.functional.interpolate(
            torch.tensor(cam_hw)[None, None].double(), (224, 224), mode="bicubic", align_corners=False
        )[0, 0].numpy()
        expected = (upsampled - upsampled.min()) / (upsampled.max() - upsampled.min())
        score_HW = score_map(cam_hw)
        assert score_HW.shape == (224, 224)
        assert score_HW.dtype == np.float32
        assert (score_HW.min(), score_HW.max()) == (0, 1)
        np.testing.assert_allclose(score_HW, expected, atol=2e-6)


def test_a_score_map_does_not_change_the_cam():
    cam_HW = np.random.default_rng(4).normal(size=(224, 224)).astype(np.float32)
    before = cam_HW.copy()
    score_map(cam_HW)
    np.testing.assert_array_equal(cam_HW, before)


# Upsampled, 0.1 everywhere is not quite the same everywhere.
@pytest.mark.parametrize("cells", [[0.1] * 4, [0] * 4, [-3] * 4, [1, 2, np.nan, 3], [1, 2, np.inf, 3]])
def test_constant_or_not_finite_is_zero(cells):
    score_HW = score_map(np.array(cells, np.float16).reshape(2, 2))
    assert not score_HW.any()
    for tau in (0, 0.5):
        assert contour_boxes(score_HW, tau).tolist() == [NOTHING]
        assert largest_contour_box(score_HW, tau).tolist() == NOTHING


def test_a_range_beyond_float32_is_zero():
    assert not score_map(np.array([[-3e38, 3e38]], np.float32)).any()


def test_a_negative_map_has_boxes_as_well():
    cam_hw = np.full((4, 4), -5.0)
    cam_hw[1, 2] = -1
    box = largest_contour_box(score_map(cam_hw), 0.5).tolist()
    assert box == largest_contour_box(score_map(cam_hw + 6), 0.5).tolist()
    assert box[0] < 140 < box[2]  # the middle of the cell, whose 56 pixels start at 112 and 56
    assert box[1] < 84 < box[3]


def test_a_ring_has_two_contours():
    ring = scores((1, slice(10, 20), slice(30, 40)), (0, slice(13, 17), slice(33, 37)))
    boxes = contour_boxes(ring, 0.3)
    assert boxes.dtype == np.int32
    # The hole's outline runs over the ring's pixels around the hole.
    assert boxes.tolist() == [[30, 10, 40, 20], [32, 12, 38, 18]]
    assert largest_contour_box(ring, 0.3).tolist() == [30, 10, 40, 20]
    assert largest_contour_box(ring, 0.3).dtype == np.int32


def test_contour_area_decides_and_not_the_box_or_the_pixels():
    diagonal = scores((1, slice(5, 8), slice(200, 203)))  # nine pixels: area 4
    diagonal[np.arange(50, 90), np.arange(50, 90)] = 1  # forty pixels: area 0
    assert sorted(contour_boxes(diagonal, 0.5).tolist()) == [[50, 50, 90, 90], [200, 5, 203, 8]]
    assert largest_contour_box(diagonal, 0.5).tolist() == [200, 5, 203, 8]


def test_equal_areas_go_to_the_first_contour():
    two = scores((1, slice(5, 9), slice(5, 9)), (1, slice(50, 54), slice(50, 54)))
    assert largest_contour_box(two, 0.5).tolist() == contour_boxes(two, 0.5)[0].tolist()
    dots = scores((1, slice(5, 6), slice(5, 6)), (1, slice(50, 51), slice(50, 51)))  # area 0 both
    assert largest_contour_box(dots, 0.5).tolist() == contour_boxes(dots, 0.5)[0].tolist()


def test_maxima_are_cut_at_the_last_pixel():
    assert contour_boxes(np.ones((224, 224)), 0.0).tolist() == [[0, 0, 223, 223]]
    assert largest_contour_box(scores((1, slice(0, 224), slice(219, 223))), 0.5).tolist() == [
        219,
        0,
        223,
        223,
    ]
    assert largest_contour_box(scores((1, slice(223, 224), slice(223, 224))), 0.5).tolist() == [
        223,
        223,
        223,
        223,
    ]


@pytest.mark.parametrize(
    ("tau", "value", "inside"),
    [
        # floor(.3 * 255) is 76: 76.4 and 76.9 are cut to it, 77 is above.
        (0.3, 76.4 / 255, False),
        (0.3, 76.9 / 255, False),
        (0.3, 77.001 / 255, True),
        (0.0, 0.9 / 255, False),
        (0.0, 1.001 / 255, True),
        (0.99, 252.9 / 255, False),  # floor(252.45) is 252
        (0.99, 253.001 / 255, True),
    ],
)
def test_score_and_threshold_are_rounded_down_to_grey_levels(tau, value, inside):
    score_HW = scores((value, slice(20, 30), slice(20, 40)), (1, slice(20, 30), slice(20, 30)))
    assert largest_contour_box(score_HW, tau).tolist() == [20, 20, 40 if inside else 30, 30]


def test_the_threshold_is_a_share_of_the_maximum():
    half = scores((0.2, slice(20, 30), slice(20, 40)), (0.5, slice(20, 30), slice(20, 30)))
    assert largest_contour_box(half, 0.39).tolist() == [20, 20, 40, 30]  # floor(.39 * 127) is 49, .2 is 51
    assert largest_contour_box(half, 0.41).tolist() == [20, 20, 30, 30]  # 52


@pytest.mark.parametrize("tau", [0, 0.2, 0.55, 0.99])
def test_every_contour_is_a_component_or_a_hole(tau):
    rng = np.random.default_rng(int(tau * 100))
    several = 0
    for _ in range(20):
        grey_HW = cv2.resize(rng.normal(size=(20, 20)), (224, 224), interpolation=cv2.INTER_CUBIC)
        score_HW = np.clip(grey_HW, 0, None) / grey_HW.max()
        expected = boxes_by_scipy((score_HW * 255).astype(int) > int(tau * 255))
        boxes = contour_boxes(score_HW, tau).tolist()
        assert sorted(boxes) == sorted(expected)
        assert largest_contour_box(score_HW, tau).tolist() in boxes
        several += len(boxes) > 1
    assert several > 5 or tau == 0.99


@given(hnp.arrays(np.float16, (3, 3), elements=st.floats(-8, 8, width=16)), st.integers(0, 99))
def test_boxes_are_inside_the_square(cam_hw, hundredths):
    boxes = contour_boxes(score_map(cam_hw), hundredths / 100)
    assert boxes.min() >= 0
    assert boxes.max() <= 223
    assert (boxes[:, :2] <= boxes[:, 2:]).all()


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([0, 0, 0, 0], [0, 0, 0, 0], 1),
        ([1, 2, 5, 6], [3, 1, 4, 5], 8 / 27),
        ([0, 0, 1, 1], [1, 1, 2, 2], 1 / 7),  # they share a pixel
        ([0, 0, 1, 1], [2, 0, 3, 1], 0),
        ([0, 0, 223, 223], [0, 0, 111, 223], 0.5),
        ([0, 0, 9, 9], [2, 2, 2, 2], 0.01),
        ([3, 3, 2, 2], [3, 3, 2, 2], 0),  # no width, no height
    ],
)
def test_inclusive_iou_by_hand(a, b, expected):
    assert iou(np.array([a]), np.array([b]), inclusive=True)[0, 0] == pytest.approx(expected, abs=1e-15)
    assert iou(np.array([b]), np.array([a]), inclusive=True)[0, 0] == pytest.approx(expected, abs=1e-15)


ENDS = st.tuples(st.integers(0, 8), st.integers(0, 8)).map(sorted)
CORNERS = st.tuples(ENDS, ENDS).map(lambda ends: (ends[0][0], ends[1][0], ends[0][1], ends[1][1]))


@given(st.lists(CORNERS, max_size=4), st.lists(CORNERS, max_size=4))
def test_inclusive_iou_counts_pixels(a, b):
    def pixels(box):
        return {(x, y) for x in range(box[0], box[2] + 1) for y in range(box[1], box[3] + 1)}

    matrix = iou(np.array(a, np.int32), np.array(b, np.int32), inclusive=True)
    assert matrix.shape == (len(a), len(b))
    assert matrix.dtype == np.float64
    for i, one in enumerate(map(pixels, a)):
        for j, other in enumerate(map(pixels, b)):
            assert matrix[i, j] == len(one & other) / len(one | other)


def test_scaled_truth_is_rounded_towards_zero():
    truth = scaled_truth(np.array([[1, 2, 4, 3], [0, 0, 10, 20], [9.9, 19.9, 9.99, 19.99]]), 10, 20)
    assert truth.dtype == np.int32
    # 22.4, 22.4, 89.6, 33.6; maxima that reach the border are 224; 221.76, 222.88, 223.776, 223.888.
    assert truth.tolist() == [[22, 22, 89, 33], [0, 0, 224, 224], [221, 222, 223, 223]]
    each = scaled_truth(np.array([[1, 2, 4, 3], [1, 2, 4, 3]]), np.array([10, 100]), np.array([20, 224]))
    assert each.tolist() == [[22, 22, 89, 33], [2, 2, 8, 3]]
    assert scaled_truth(np.empty((0, 4)), 10, 20).shape == (0, 4)


@given(st.tuples(*[st.integers(0, 5000)] * 4), st.integers(1, 5000), st.integers(1, 5000))
def test_scaled_truth_equals_python_s_int(corners, width, height):
    expected = [int(value * 224 / side) for value, side in zip(corners, [width, height] * 2, strict=True)]
    assert scaled_truth(np.array(corners, np.float32), width, height).tolist() == [expected]
