"""Tests of dtbox: by hand, and against the released algorithm on scipy's distances and components."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from camworker.boxes.dtbox import core, dt_boxes, loose_and_tight, on_original
from camworker.frame import RESIZES, Frame

Rectangle = tuple[int, int, int, int]  # x, y, width, height


def core_by_scipy(mask: np.ndarray) -> np.ndarray:
    """Return q > 10, computed from squared distances in whole numbers."""
    if mask.all():
        return mask
    nearest = ndimage.distance_transform_edt(mask, return_distances=False, return_indices=True)
    squared = ((np.indices(mask.shape) - nearest) ** 2).sum(axis=0)
    return mask & (squared * 510**2 >= squared.max() * 21**2)  # 255 d / max d + .5 >= 11


def outlines_by_scipy(mask: np.ndarray) -> list[Rectangle]:
    """Return rectangles of 8-connected components, and of the pixels around each hole."""
    boxes = []
    for rows, columns in ndimage.find_objects(ndimage.label(mask, structure=np.ones((3, 3)))[0]):
        boxes.append((columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start))
    empty, _ = ndimage.label(np.pad(~mask, 1, constant_values=True))
    for rows, columns in ndimage.find_objects(empty)[1:]:  # the first is what lies outside
        width, height = columns.stop - columns.start, rows.stop - rows.start
        boxes.append((columns.start - 2, rows.start - 2, width + 2, height + 2))
    return boxes


def overlap_much(a: Rectangle, b: Rectangle) -> bool:
    across = max(0, min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0]))
    down = max(0, min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1]))
    return across * down > int(0.5 * max(a[2] * a[3], b[2] * b[3]))


def merged(boxes: list[Rectangle]) -> list[Rectangle]:
    """Return all boxes that the released code keeps: after a removal it skips the box that moved up."""
    boxes = sorted(boxes, key=lambda box: -box[2] * box[3])
    i = 0
    while i < len(boxes):
        j = i + 1
        while j < len(boxes):
            if overlap_much(boxes[i], boxes[j]):
                del boxes[j]
            j += 1
        i += 1
    return boxes


def candidates(map_HW: np.ndarray) -> list[Rectangle]:
    grey = np.floor(255 * np.clip(map_HW.astype(np.float64), 0, None) / map_HW.max() + 0.5)
    height, width = map_HW.shape
    found = [box for level in (20, 100, 110) for box in outlines_by_scipy(core_by_scipy(grey > level))]
    return [
        (min(x, width - 5), min(y, height - 5), min(w, width - x - 5), min(h, height - y - 5))
        for x, y, w, h in found
    ]


def blocks(shape: tuple[int, int], *filled: tuple[float, slice, slice]) -> np.ndarray:
    map_HW = np.zeros(shape, np.float32)
    for value, rows, columns in filled:
        map_HW[rows, columns] = value
    return map_HW


HAND = (
    (60, slice(20, 80), slice(10, 90)),  # 80 wide, 60 high: the greatest distance to a zero is 30
    (60, slice(50, 51), slice(90, 110)),  # a whisker, distance 1 everywhere
    (0, slice(60, 63), slice(70, 73)),  # a hole
)


def test_by_hand():
    map_HW = blocks(
        (100, 120), *HAND, (105, slice(30, 50), slice(20, 50)), (255, slice(35, 45), slice(30, 40))
    )
    # t = 20: q > 10 asks for more than 30 * 7 / 170 = 1.24, which takes the outermost ring off. Where the
    # whisker starts one pixel of that ring stays: its nearest zeros lie diagonally, 1.41 away. So x from 11
    # to 89, y from 21 to 78; and 7 x 7 around the hole, grown by its four sides. t = 100: the distances in
    # 30 x 20 end at 10, all stays. t = 110: 10 x 10.
    # Areas 4582, 600, 100, 49; 600 is not more than 2291.
    boxes = dt_boxes(map_HW)
    assert boxes.dtype == np.float32
    assert boxes.tolist() == [[11, 21, 90, 79], [20, 30, 50, 50]]
    # Without a second part the largest hole is the tight box: of t = 100 and 110 there is but one pixel.
    map_HW = blocks((100, 120), *HAND, (255, slice(40, 41), slice(40, 41)))
    assert dt_boxes(map_HW).tolist() == [[11, 21, 90, 79], [68, 58, 75, 65]]


def test_the_box_after_a_dropped_one_is_not_compared():
    # t = 100: 65 x 50, whose core is 63 x 48 = 3024 > 2291: dropped. t = 110: 61 x 46, kept whole, 2806: it
    # would be dropped too.
    second, third = (105, slice(25, 75), slice(15, 80)), (255, slice(27, 73), slice(17, 78))
    assert dt_boxes(blocks((100, 120), *HAND[:2], second, third)).tolist() == [
        [11, 21, 90, 79],
        [17, 27, 78, 73],
    ]
    rows = np.array([[0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 9, 9], [20, 20, 2, 2]])
    assert loose_and_tight(rows[[3, 2, 0, 1]]).tolist() == [rows[0].tolist(), rows[2].tolist()]


@pytest.mark.parametrize(
    ("boxes", "expected"),
    [
        ([[3, 4, 5, 6]], [0, 0]),  # one box: both
        ([[0, 0, 4, 4], [0, 0, 4, 4]], [0, 0]),  # two that are one
        ([[0, 0, 4, 4], [0, 0, 4, 2]], [0, 1]),  # half is not more than half
        ([[0, 0, 4, 4], [0, 0, 3, 3]], [0, 0]),  # 9 of 16 is
        ([[0, 0, 5, 3], [0, 0, 4, 2]], [0, 0]),  # 8 of 15: more than 7, which is half of 15 cut
        ([[0, 0, 5, 3], [0, 0, 7, 1]], [0, 1]),  # only 5 of its 7 lie inside
        ([[0, 0, 2, 2], [9, 9, 4, 4]], [1, 0]),
        ([[5, 5, 2, 3], [0, 0, 3, 2]], [0, 1]),  # equal areas keep their order
        ([[0, 0, 2, 2], [0, 0, 9, 0], [20, 0, -2, 3]], [0, 1]),  # without an area, and with less
    ],
)
def test_loose_and_tight_by_hand(boxes, expected):
    assert loose_and_tight(np.array(boxes)).tolist() == [boxes[index] for index in expected]


def test_many_equal_boxes_keep_their_order():
    boxes = np.tile([[0, 0, 1, 1]] * 3 + [[5, 5, 2, 2]] * 2, (20, 1))
    boxes[8:, :2] += 10 * np.arange(92)[:, None]
    # Row 4 is row 3 again and dropped; then comes row 8, the third of the larger ones.
    assert loose_and_tight(boxes).tolist() == boxes[[3, 8]].tolist()


SIDES = st.integers(-3, 12)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), SIDES, SIDES), min_size=1, max_size=8))
def test_the_two_boxes_are_the_first_two_of_the_released_code(boxes):
    expected = merged(boxes)
    loose, tight = loose_and_tight(np.array(boxes)).tolist()
    assert tuple(loose) == expected[0]
    assert tuple(tight) == (expected[1] if len(expected) > 1 else expected[0])


@pytest.mark.parametrize("seed", range(4))
def test_random_maps_equal_the_released_algorithm(seed):
    rng = np.random.default_rng(seed)
    distinct = dropped = holes = 0
    for _ in range(40):
        height, width = rng.integers(40, 220, 2)
        cam_hw = rng.normal(size=rng.integers(2, 9, 2))
        cam_hw[tuple(rng.integers(0, cam_hw.shape))] = 3  # not all negative
        map_HW = on_original(cam_hw, Frame(int(width), int(height), 224))
        found = candidates(map_HW)
        areas = sorted((w * h for _, _, w, h in found), reverse=True)
        if len(set(areas[:4])) == len(areas[:4]):  # else the order in which contours are met decides
            distinct += 1
            expected = merged(found)[:2]
            dropped += expected[1][2] * expected[1][3] != areas[1]
            holes += len(found) > 3
            corners = [[x, y, x + w, y + h] for x, y, w, h in expected]
            assert dt_boxes(map_HW).tolist() == corners
    # The maps are of use only while they try all of it.
    assert distinct > 15
    assert dropped > 0
    assert holes > 5


@given(hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, max_side=14)))
def test_the_core_of_small_masks(mask):
    assert core(mask.view(np.uint8)).tolist() == core_by_scipy(mask).tolist()


@pytest.mark.parametrize("density", [0.0002, 0.002, 0.02])
def test_the_core_of_large_masks(density):
    rng = np.random.default_rng(11)
    cut = 0
    for _ in range(8):
        mask = rng.random((200, 300)) > density
        expected = core_by_scipy(mask)
        assert core(mask.view(np.uint8)).tolist() == expected.tolist()
        cut += expected.sum() < mask.sum()
    assert cut == 8 or density > 0.001


def test_a_distance_at_the_limit_is_kept():
    # 7 of 170 is q = 10.5 + .5 = 11; zeros only at the left, so that the border counts as no background.
    mask = np.ones((9, 171), np.uint8)
    mask[:, 0] = 0
    assert core(mask)[0].tolist() == [0] * 7 + [1] * 164
    mask = np.ones((9, 172), np.uint8)
    mask[:, 0] = 0
    assert core(mask)[0].tolist() == [0] * 8 + [1] * 164


def test_a_mask_without_a_zero_is_kept():
    assert core(np.ones((40, 60), np.uint8)).all()
    # Nothing is cut from a map that is the same everywhere but for the margin; its three boxes are one.
    assert dt_boxes(np.full((40, 60), 0.3)).tolist() == [[0, 0, 55, 35]] * 2


def test_greys_are_rounded_and_negatives_are_zero():
    # 41 / 510 of 255 is 20.5: grey 21, above 20. A little less is grey 20.
    for value, xmax in ((41, 30), (40.99, 20)):
        map_HW = blocks((40, 60), (-1000, slice(0, 40), slice(0, 60)), (510, slice(10, 30), slice(10, 20)))
        map_HW[10:30, 20:30] = value
        assert dt_boxes(map_HW)[0].tolist() == [10, 10, xmax, 30]
    # The smallest number there is has greys as well.
    map_HW = blocks((40, 60), (1e-45, slice(10, 30), slice(10, 20)))
    assert dt_boxes(map_HW).tolist() == [[10, 10, 20, 30]] * 2


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (slice(20, 40), [20, 35]),  # cut at five from the border
        (slice(34, 40), [34, 35]),
        (slice(35, 40), [35, 35]),  # as released: no area
        (
            slice(37, 40),
            [33, 35],
        ),  # as released: x to 35, 40 - 37 - 5 = -2 wide, corners put in order
    ],
)
def test_at_the_border(columns, expected):
    map_HW = blocks((30, 40), (1, slice(10, 20), columns))
    assert dt_boxes(map_HW).tolist() == [[expected[0], 10, expected[1], 20]] * 2
    assert dt_boxes(map_HW.T).tolist() == [[10, expected[0], 20, expected[1]]] * 2


@pytest.mark.parametrize("value", [0, -1, np.nan])
def test_no_positive_value_gives_the_whole_map(value):
    assert dt_boxes(np.full((20, 30), value)).tolist() == [[0, 0, 30, 20]] * 2


def test_a_side_within_the_margin_gives_the_whole_map():
    assert dt_boxes(np.eye(5)).tolist() == [[0, 0, 5, 5]] * 2
    assert dt_boxes(np.ones((5, 60))).tolist() == [[0, 0, 60, 5]] * 2
    assert dt_boxes(np.ones((6, 60))).tolist() == [[0, 0, 55, 1]] * 2


MAPS = hnp.arrays(
    np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=16), elements=st.floats(-9, 9, width=32)
)


@given(MAPS)
def test_two_boxes_inside_the_map(map_HW):
    boxes = dt_boxes(map_HW)
    assert boxes.shape == (2, 4)
    assert (boxes >= 0).all()
    assert (boxes <= [*map_HW.shape[::-1]] * 2).all()
    assert (boxes[:, :2] <= boxes[:, 2:]).all()


def test_a_cam_is_resized_to_the_original():
    rng = np.random.default_rng(3)
    for cells, size in (((7, 7), (500, 375)), ((14, 10), (61, 90)), ((32, 32), (20, 24))):
        cam_hw = rng.normal(size=cells).astype(np.float16)
        width, height = size
        expected = torch.nn.functional.interpolate(
            torch.tensor(cam_hw)[None, None].float(), (height, width), mode="bilinear", align_corners=False
        )[0, 0]
        np.testing.assert_allclose(on_original(cam_hw, Frame(width, height, 224)), expected, atol=1e-5)
    # The centre square of 80 x 40 is 20..60, and beside it there is nothing.
    cam_hw = np.array([[1, 2], [3, 4]], np.float16)
    map_HW = on_original(cam_hw, Frame(80, 40, 20, "crop"))
    np.testing.assert_array_equal(map_HW[:, 20:60], on_original(cam_hw, Frame(40, 40, 20)))
    assert map_HW[:, :20].max() == map_HW[:, 60:].max() == 0
    np.testing.assert_allclose(on_original(cam_hw.T, Frame(40, 80, 20, "crop")), map_HW.T, rtol=1e-6)


@example(1, 4, 224, "crop")  # from 1.5 to 2.5: both ends are nearest to 2
@settings(max_examples=60)
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 7, 224]), st.sampled_from(RESIZES))
def test_a_map_has_the_size_of_the_original(width, height, input_size, resize):
    map_HW = on_original(np.ones((3, 3), np.float16), Frame(width, height, input_size, resize))
    assert map_HW.shape == (height, width)
    assert map_HW.dtype == np.float32
    covered = [int(map_HW.any(axis=axis).sum()) for axis in (1, 0)]
    assert map_HW.sum() == covered[0] * covered[1]
    if resize == "squash":
        assert covered == [height, width]
    else:
        # A square of the short side, but for half a pixel of the input and a whole one of the original.
        short = min(width, height)
        assert short in covered
        assert max(abs(side - short) for side in covered) <= 1 + short / (2 * input_size)
