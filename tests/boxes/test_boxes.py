"""Tests of cam20 against scipy's labelling, and of IoU against counted pixels."""

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from camworker.boxes.iou import iou
from camworker.boxes.rules import boxes_from_cam, boxes_from_map
from camworker.frame import RESIZES, Frame


def oracle(map_HW: np.ndarray, threshold: float = 0.2) -> tuple[list[int], int, bool]:
    """Return the cam20 box from scipy, the number of components, and whether the largest was a tie."""
    labels, count = ndimage.label(map_HW > np.float32(threshold) * map_HW.max(), structure=np.ones((3, 3)))
    sizes = np.bincount(labels.ravel())[1:]
    largest = 1 + np.flatnonzero(sizes == sizes.max())
    first = min(largest, key=lambda label: np.flatnonzero(labels.ravel() == label)[0])
    rows, columns = np.nonzero(labels == first)
    box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    return [int(corner) for corner in box], count, len(largest) > 1


def random_map(kind: str, rng: np.random.Generator) -> np.ndarray:
    if kind == "smooth":
        return cv2.resize(rng.normal(size=(7, 7)).astype(np.float32), (64, 96))
    if kind == "noise":
        return (rng.random((24, 32)) ** rng.integers(1, 12)).astype(np.float32)
    if kind == "blocky":  # equal areas, holes and diagonals
        blocks = (rng.random((8, 6)) < 0.45).astype(np.float32)
        blocks[rng.integers(8), rng.integers(6)] = 1
        return np.kron(blocks, np.ones((4, 4), np.float32))
    # One component more often than not, which is a way of its own, and its border on the map's.
    blurred = ndimage.gaussian_filter(rng.normal(size=(40, 30)), 6, mode="wrap").astype(np.float32)
    return blurred - blurred.mean()


@pytest.mark.parametrize("kind", ["smooth", "noise", "blocky", "blurred"])
def test_cam20_is_the_box_of_the_largest_component(kind):
    rng = np.random.default_rng(20)
    counts, ties = [], 0
    for _ in range(250):
        map_HW = random_map(kind, rng)
        box, count, tie = oracle(map_HW)
        assert boxes_from_map(map_HW).tolist() == [box]
        counts.append(count)
        ties += tie
    # The maps are of use only while they try both ways, and ties.
    assert counts.count(1) < 200
    assert kind != "blurred" or counts.count(1) > 50
    assert kind != "blocky" or ties > 3


def test_equal_components_go_to_the_first_in_row_order():
    map_HW = np.zeros((12, 12), np.float32)
    map_HW[1:4, 8:11] = map_HW[6:9, 1:4] = 1
    assert boxes_from_map(map_HW).tolist() == [[8, 1, 11, 4]]
    assert boxes_from_map(map_HW[:, ::-1]).tolist() == [[1, 1, 4, 4]]
    assert boxes_from_map(map_HW[::-1]).tolist() == [[1, 3, 4, 6]]
    # In the same rows the one on the left.
    map_HW = np.zeros((4, 12), np.float32)
    map_HW[1:3, 7:9] = map_HW[1:3, 2:4] = 1
    assert boxes_from_map(map_HW).tolist() == [[2, 1, 4, 3]]


def test_the_number_of_pixels_decides_not_the_area_inside_the_outline():
    map_HW = np.zeros((10, 20), np.float32)
    map_HW[0:7, 0:7] = 1
    map_HW[1:6, 1:6] = 0  # a ring of 24 pixels around 25 empty ones
    map_HW[2:7, 10:16] = 1  # a block of 30
    assert boxes_from_map(map_HW).tolist() == [[10, 2, 16, 7]]
    map_HW[2:5, 2:5] = 1  # what lies in the ring's hole is a component of its own
    assert boxes_from_map(map_HW).tolist() == [[10, 2, 16, 7]]
    map_HW[2:7, 10:16] = 0
    assert boxes_from_map(map_HW).tolist() == [[0, 0, 7, 7]]
    map_HW = np.zeros((12, 12), np.float32)
    map_HW[0:11, 0:11] = 1
    map_HW[1:10, 1:10] = 0  # a ring of 40 pixels
    map_HW[2:9, 2:9] = 1  # 49 inside it
    assert boxes_from_map(map_HW).tolist() == [[2, 2, 9, 9]]


def test_diagonal_neighbours_are_one_component():
    map_HW = np.zeros((8, 8), np.float32)
    map_HW[1:3, 1:3] = map_HW[3:5, 3:5] = 1
    map_HW[6:8, 5:8] = 1  # the single block with most pixels
    assert boxes_from_map(map_HW).tolist() == [[1, 1, 5, 5]]


def test_the_threshold_is_a_fifth_and_excluded():
    assert boxes_from_map(np.array([[1, 5, 1]], np.float32)).tolist() == [[1, 0, 2, 1]]
    assert boxes_from_map(np.array([[1.01, 5, 0.99]], np.float32)).tolist() == [[0, 0, 2, 1]]
    # Of the maximum, not of the range between minimum and maximum.
    assert boxes_from_map(np.array([[1.01, 5, -20]], np.float32)).tolist() == [[0, 0, 2, 1]]


@pytest.mark.parametrize("value", [0.0, -3.0, -0.0])
def test_a_map_without_a_positive_value_gives_the_whole_map(value):
    assert boxes_from_map(np.full((3, 5), value)).tolist() == [[0, 0, 5, 3]]
    for resize in RESIZES:
        whole = boxes_from_cam(np.full((7, 7), value, np.float16), Frame(400, 200, 224, resize))
        assert whole.tolist() == [[0, 0, 400, 200]]


@pytest.mark.parametrize("resize", RESIZES)
def test_a_peak_that_upsampling_removes_gives_the_whole_image(resize):
    # Between cells the deep negatives win: the upsampled map has no positive value though the cam has.
    cam_hw = np.full((7, 7), -100, np.float16)
    cam_hw[3, 3] = 0.001
    assert boxes_from_cam(cam_hw, Frame(400, 200, 224, resize)).tolist() == [[0, 0, 400, 200]]


def test_boxes_of_a_cam_are_in_pixels_of_the_original():
    # Along a side 2 -> 4 gives 1, .75, .25, 0; products over .2 reach the third column and row.
    cam_hw = np.array([[1, 0], [0, 0]], np.float16)
    assert boxes_from_cam(cam_hw, Frame(400, 200, 4)).tolist() == [[0, 0, 300, 150]]
    # 8 x 4 with two columns cut off each side: 50 original pixels each way.
    assert boxes_from_cam(cam_hw, Frame(400, 200, 4, "crop")).tolist() == [[100, 0, 250, 150]]
    assert boxes_from_cam(cam_hw.T[::-1], Frame(200, 400, 4)).tolist() == [[0, 100, 150, 400]]


def test_a_cam_is_upsampled_bilinearly():
    rng = np.random.default_rng(7)
    for _ in range(20):
        cam_hw = rng.normal(size=(7, 7)).astype(np.float16)
        upsampled = cv2.resize(cam_hw.astype(np.float32), (224, 224), interpolation=cv2.INTER_LINEAR)
        assert boxes_from_cam(cam_hw, Frame(224, 224, 224)).tolist() == [oracle(upsampled)[0]]


MAPS = hnp.arrays(
    np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.floats(-100, 100, width=32)
)


@given(MAPS)
def test_a_box_is_inside_its_map_and_has_an_area(map_HW):
    boxes = boxes_from_map(map_HW)
    assert boxes.dtype == np.float32
    ((xmin, ymin, xmax, ymax),) = boxes.astype(int)
    assert 0 <= xmin < xmax <= map_HW.shape[1]
    assert 0 <= ymin < ymax <= map_HW.shape[0]
    if map_HW.max() > 0:
        assert map_HW[ymin:ymax, xmin:xmax].max() > np.float32(0.2) * map_HW.max()


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([0, 0, 2, 2], [1, 1, 3, 3], 1 / 7),
        ([0, 0, 2, 2], [0, 0, 2, 2], 1),
        ([0, 0, 2, 2], [2, 0, 4, 2], 0),  # they touch: half-open boxes share nothing
        ([0, 0, 2, 2], [5, 5, 6, 6], 0),
        ([0, 0, 2, 2], [0, 5, 2, 6], 0),  # apart in one direction only
        ([0, 0, 4, 4], [1, 1, 3, 2], 2 / 16),
        ([1, 1, 1, 3], [0, 0, 4, 4], 0),  # empty
        ([1, 1, 1, 1], [1, 1, 1, 1], 0),  # empty and identical
        ([0.25, 0, 0.75, 1], [0.5, 0, 1, 1], 1 / 3),
    ],
)
def test_iou_by_hand(a, b, expected):
    assert iou(np.array([a]), np.array([b]))[0, 0] == pytest.approx(expected, abs=1e-12)
    assert iou(np.array([b]), np.array([a]))[0, 0] == pytest.approx(expected, abs=1e-12)


def test_iou_is_a_matrix():
    a = np.array([[0, 0, 2, 2], [1, 1, 3, 3], [0, 0, 3, 3]], np.float32)
    assert iou(a, a[:2]).shape == (3, 2)
    np.testing.assert_allclose(iou(a, a[:2]), [[1, 1 / 7], [1 / 7, 1], [4 / 9, 4 / 9]])
    assert iou(np.empty((0, 4)), a).shape == (0, 3)
    assert iou(a, np.empty((0, 4))).shape == (3, 0)


CORNERS = st.tuples(*[st.integers(0, 9)] * 4)


@given(st.lists(CORNERS, max_size=4), st.lists(CORNERS, max_size=4))
def test_iou_counts_pixels(a, b):
    def pixels(box):
        return {(x, y) for x in range(box[0], box[2]) for y in range(box[1], box[3])}

    matrix = iou(np.array(a).reshape(-1, 4), np.array(b).reshape(-1, 4))
    for i, one in enumerate(map(pixels, a)):
        for j, other in enumerate(map(pixels, b)):
            assert matrix[i, j] == pytest.approx(len(one & other) / max(1, len(one | other)))
