"""Tests of the sweep: at every threshold it equals the plain rules, for all kinds of maps."""

from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from camworker.boxes.iou import iou
from camworker.boxes.maxboxacc import contour_boxes, largest_contour_box, score_map
from camworker.boxes.rules import boxes_from_cam
from camworker.frame import Frame
from camworker.metrics.threshold_sweep import THRESHOLDS, Sweep

SIDE = 224
# One for all tests: what an earlier map leaves in its room must not matter.
SWEEP = Sweep()
# Overlapping boxes of all sizes, so that no two boxes meet them alike.
TRUTH = np.array(
    [[3, 5, 41, 29], [30, 20, 223, 90], [100, 60, 190, 223], [0, 130, 60, 224], [150, 3, 157, 9]]
)
EVERY = range(100)


def by_choe(cam_hw: Any, truth: Any, thresholds: Any) -> np.ndarray:
    """Return the IoU of V1 and V2 at these thresholds from the plain implementation."""
    score_HW = score_map(cam_hw)
    return np.array(
        [
            [
                iou(boxes, truth, inclusive=True).max()
                for boxes in (largest_contour_box(score_HW, tau), contour_boxes(score_HW, tau))
            ]
            for tau in THRESHOLDS[thresholds]
        ]
    )


def by_rule(cam_hw: Any, frame: Frame, truth: Any, thresholds: Any, inclusive: bool = False) -> np.ndarray:
    """Return the IoU of cam:T, and of the best component from scipy, at these thresholds."""
    size = (frame.input_size, frame.input_size)
    map_HW = cv2.resize(np.asarray(cam_hw, np.float32), size, interpolation=cv2.INTER_LINEAR)
    found = []
    for tau in THRESHOLDS[thresholds]:
        rule = iou(boxes_from_cam(cam_hw, frame, f"cam:{tau}"), truth, inclusive=inclusive).max()
        boxes = frame.whole_image()
        if map_HW.max() > 0:
            labels, _ = ndimage.label(map_HW > np.float32(tau) * map_HW.max(), np.ones((3, 3)))
            slices = ndimage.find_objects(labels)
            corners = np.array([[x.start, y.start, x.stop, y.stop] for y, x in slices], float)
            boxes = frame.to_original(corners)
        found.append([rule, iou(boxes, truth, inclusive=inclusive).max()])
    return np.array(found)


def assert_same(cam_hw: Any, thresholds: Any = EVERY, truth: np.ndarray = TRUTH) -> np.ndarray:
    thresholds = list(thresholds)
    found_T2 = SWEEP.maxboxacc(cam_hw, truth)
    assert found_T2.shape == (100, 2)
    np.testing.assert_allclose(found_T2[thresholds], by_choe(cam_hw, truth, thresholds), atol=1e-12)
    return found_T2


def assert_same_by_rule(
    cam_hw: Any, frame: Frame, thresholds: Any = EVERY, *, inclusive: bool = False
) -> np.ndarray:
    thresholds = list(thresholds)
    truth = (TRUTH * np.array([frame.width, frame.height] * 2) / SIDE).astype(np.float32)
    found_T2 = SWEEP.cam(cam_hw, frame, truth, inclusive=inclusive)
    assert found_T2.shape == (100, 2)
    expected = by_rule(cam_hw, frame, truth, thresholds, inclusive)
    np.testing.assert_allclose(found_T2[thresholds], expected, atol=1e-12)
    return found_T2


def rectangles(*filled: tuple[float, int, int, int, int]) -> np.ndarray:
    """Return a 224x224 map with rectangles (value, x0, y0, x1, y1), later ones over earlier ones."""
    map_HW = np.zeros((SIDE, SIDE), np.float16)
    for value, x0, y0, x1, y1 in filled:
        map_HW[y0:y1, x0:x1] = value
    return map_HW


RING = [(1, 20, 30, 120, 130), (0, 40, 50, 100, 110)]
SHAPES = {
    "a constant": np.full((7, 7), 3.0),
    "zeros": np.zeros((7, 7)),
    "a constant below zero": np.full((7, 7), -3.0),
    "one cell": np.array([[2.0]]),
    "one row": np.array([[0, 3, 1, 2, 0, 3, 3.0]]),
    "one column": np.array([[0], [3], [1], [2.0]]),
    "all below zero": np.array([[-3, -1], [-2, -4.0]]),
    "two cells apart": np.eye(2),
    "one pixel": rectangles((1, 70, 80, 71, 81)),
    "the corners": rectangles(*((1, x, y, x + 1, y + 1) for x in (0, 223) for y in (0, 223))),
    "everything but a pixel": 1 - rectangles((1, 70, 80, 71, 81)),
    "everything but a corner": 1 - rectangles((1, 0, 0, 1, 1)),
    "a plateau with steps": rectangles(
        (0.3, 10, 10, 200, 200), (0.6, 20, 20, 60, 60), (1, 150, 150, 190, 180)
    ),
    "a ring": rectangles(*RING),
    "a ring at the edge": rectangles((1, 0, 0, 224, 224), (0, 1, 1, 223, 223)),
    "an open ring": rectangles(*RING, (0, 60, 30, 61, 130)),
    "a ring closed by a corner only": rectangles(*RING, (0, 60, 30, 61, 49), (1, 59, 48, 60, 49)),
    "an island in a hole": rectangles(*RING, (1, 60, 70, 90, 100)),
    "a ring in a ring, with an island": rectangles(
        *RING, (0.7, 50, 60, 90, 100), (0, 55, 65, 85, 95), (1, 60, 70, 64, 74), (0.4, 70, 70, 80, 90)
    ),
    "a ring with two holes": rectangles(*RING, (1, 68, 50, 70, 110)),
    "a hole that is larger than another object": rectangles(*RING, (1, 150, 10, 215, 80)),
    "thin things": rectangles((1, 5, 5, 100, 6), (0.8, 5, 20, 6, 200), (0.5, 90, 90, 92, 92)),
    "equal squares": rectangles(*((1, x, y, x + 9, y + 9) for x in (7, 77, 140) for y in (9, 100, 180))),
    "equal squares of several heights": rectangles(
        *((0.2 + (x * y) % 7 / 10, x, y, x + 9, y + 9) for x in (7, 77, 140) for y in (9, 100, 180))
    ),
}


@pytest.mark.parametrize("name", SHAPES)
def test_every_threshold_of_every_shape(name: str) -> None:
    assert_same(SHAPES[name], range(0, 100, 3))
    assert_same_by_rule(SHAPES[name], Frame(300, 200, SIDE), range(0, 100, 7))


def drawn_maps(seed: int, count: int) -> Iterator[np.ndarray]:
    """Return float16 maps of many kinds and sizes: smooth, in steps, dots, overlapping rectangles."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        h, w = rng.integers(1, 20, 2)
        kind = number % 6
        if kind == 0:
            drawn = rng.normal(size=(h, w)) * 10.0 ** rng.integers(-5, 4)
        elif kind == 1:
            drawn = rng.integers(-2, 4, (h, w))
        elif kind == 2:
            drawn = -np.abs(rng.normal(size=(h, w)))
        elif kind == 3:
            sizes = rng.integers(1, 60, (rng.integers(1, 30), 2))
            starts = rng.integers(0, 200, sizes.shape)
            corners = np.concatenate([starts, starts + sizes], axis=1)
            drawn = rectangles(*((rng.integers(0, 6), *box) for box in corners.tolist()))
        elif kind == 4:
            side, density = rng.integers(2, 30), rng.random()
            drawn = np.zeros((SIDE, SIDE))
            drawn[:side, :side] = (rng.random((side, side)) < density) * rng.integers(1, 4, (side, side))
            drawn = np.roll(drawn, rng.integers(0, SIDE, 2), (0, 1))
        else:
            drawn = cv2.resize(rng.normal(size=(30, 30)), (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
        yield np.asarray(drawn, np.float16)


@pytest.mark.parametrize("seed", range(4))
def test_random_maps_by_maxboxacc(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for cam_hw in drawn_maps(seed, 48):
        truth = np.sort(rng.integers(0, SIDE, (rng.integers(1, 4), 2, 2)), axis=1).reshape(-1, 4)
        assert_same(cam_hw, rng.choice(100, 5), truth)


@pytest.mark.parametrize("seed", range(10, 14))
def test_random_maps_by_rule(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for cam_hw in drawn_maps(seed, 48):
        width, height = rng.integers(1, 700, 2).tolist()
        resize: Any = rng.choice(["squash", "crop"])
        frame = Frame(width, height, int(rng.choice([7, 32, 65, 224, 256])), str(resize))  # type: ignore[arg-type]
        assert_same_by_rule(cam_hw, frame, rng.choice(100, 5), inclusive=bool(rng.integers(2)))


VALUES = st.one_of(st.integers(-3, 3).map(float), st.floats(-65504, 65504, width=16))


@given(
    hnp.arrays(np.float16, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9), elements=VALUES),
    st.integers(0, 99),
)
@example(np.array([[0, 6e-8]], np.float16), 99)  # the smallest value that there is
@example(np.array([[-65504, 65504]], np.float16), 50)
@settings(max_examples=60)
def test_any_map(cam_hw: np.ndarray, threshold: int) -> None:
    thresholds = [0, threshold, 99]
    assert_same(cam_hw, thresholds)
    assert_same_by_rule(cam_hw, Frame(50, 80, 36), thresholds)


@given(hnp.arrays(np.bool_, (9, 9)))
@settings(max_examples=60)
def test_any_black_and_white_pixels(pixels: np.ndarray) -> None:
    """Contours, holes and their ties depend on single pixels."""
    map_HW = np.zeros((SIDE, SIDE))
    map_HW[100:109, 40:49] = pixels
    truth = np.array([[38, 98, 44, 104], [41, 101, 50, 103]])
    assert_same(map_HW, [0, 50], truth)
    assert_same_by_rule(pixels, Frame(224, 224, 9), [0, 50])
    if not pixels.all():
        assert_same(1 - map_HW, [50], truth)


def test_buffers_grow_with_the_number_of_components() -> None:
    rng = np.random.default_rng(5)
    dots = np.zeros((SIDE, SIDE))
    dots[::2, ::2] = rng.integers(1, 100, (112, 112)) / 100  # 12,544 components where all are above
    sweep = Sweep()
    found_T2 = sweep.maxboxacc(dots, TRUTH)
    thresholds = [0, 30, 98]
    np.testing.assert_allclose(found_T2[thresholds], by_choe(dots, TRUTH, thresholds), atol=1e-12)
    pierced = 1 - dots  # as many holes
    found_T2 = sweep.maxboxacc(pierced, TRUTH)
    np.testing.assert_allclose(found_T2[thresholds], by_choe(pierced, TRUTH, thresholds), atol=1e-12)
    smooth = next(drawn_maps(6, 1))
    np.testing.assert_array_equal(sweep.maxboxacc(smooth, TRUTH), Sweep().maxboxacc(smooth, TRUTH))


def test_buffers_grow_with_the_width() -> None:
    rng = np.random.default_rng(7)
    sweep = Sweep()
    for side in (8, 300, 40, 301, SIDE):
        stripes = np.zeros((side, side))
        stripes[3:6] = np.indices((3, side))[1] % 2 * rng.random((3, 1))  # as many runs as a row can have
        for map_HW in (rng.integers(0, 2, (5, 5)) + rng.random((5, 5)), stripes):
            frame = Frame(SIDE, SIDE, side)
            found_T2 = sweep.cam(map_HW, frame, TRUTH.astype(np.float32), inclusive=False)
            expected = by_rule(map_HW, frame, TRUTH.astype(np.float32), [0, 50])
            np.testing.assert_allclose(found_T2[[0, 50]], expected, atol=1e-12)


def test_hand_computed_steps() -> None:
    """A plateau of 0.3, a larger one of 0.6 on it, a peak: the box shrinks at 0.3 and at 0.6."""
    steps = rectangles((0.3, 0, 0, 100, 100), (0.6, 0, 0, 50, 100), (1, 0, 0, 10, 10))
    found_T2 = SWEEP.maxboxacc(steps, np.array([[0, 0, 50, 100]]))
    # Inclusive, of maxima that lie behind the last pixel: 101 x 101, 51 x 101, 11 x 11 pixels.
    outer, inner = 51 / 101, 11 * 11 / (51 * 101)
    # A grey of 76 is above floor(255 x 0.29) = 73, not above floor(255 x 0.3) = 76; 153 and 0.6 likewise.
    np.testing.assert_allclose(found_T2[:30], outer, atol=1e-12)
    np.testing.assert_allclose(found_T2[30:60], 1, atol=1e-12)
    np.testing.assert_allclose(found_T2[60:], inner, atol=1e-12)


def test_hand_computed_steps_by_rule() -> None:
    steps = np.zeros((4, 4))
    steps[:2, :] = 0.25  # exact in binary, so that 0.25 is not above 0.25
    steps[:2, :2] = 1
    frame = Frame(100, 60, 4)  # cells of 25 x 15 pixels
    found_T2 = SWEEP.cam(steps, frame, np.array([[0, 0, 50, 30]], np.float32), inclusive=False)
    assert found_T2[:25].tolist() == [[0.5, 0.5]] * 25
    assert found_T2[25:].tolist() == [[1, 1]] * 75
    inclusive_T2 = SWEEP.cam(steps, frame, np.array([[0, 0, 50, 30]], np.float32), inclusive=True)
    np.testing.assert_allclose(inclusive_T2[:25], 51 / 101, atol=1e-12)


def test_the_best_of_several_is_not_the_largest() -> None:
    two = np.zeros((8, 8))
    two[0:4, 0:4] = 1
    two[6:8, 6:8] = 0.5
    frame = Frame(8, 8, 8)
    found_T2 = SWEEP.cam(two, frame, np.array([[6, 6, 8, 8]], np.float32), inclusive=False)
    assert found_T2[:50].tolist() == [[0, 1]] * 50
    assert found_T2[50:].tolist() == [[0, 0]] * 50


def test_equal_components_by_rule_go_to_the_first_in_row_order() -> None:
    # The U's left arm is met first, though the dot's box begins further left below it.
    map_HW = np.zeros((6, 6))
    map_HW[0, 3] = map_HW[1, 4] = map_HW[0, 5] = 1
    map_HW[3:6, 0] = 1
    found_T2 = SWEEP.cam(map_HW, Frame(6, 6, 6), np.array([[3, 0, 6, 2]], np.float32), inclusive=False)
    assert (found_T2[:, 0] == 1).all()


def test_a_map_without_contours_has_the_box_of_the_first_pixel() -> None:
    found_T2 = SWEEP.maxboxacc(np.zeros((7, 7)), np.array([[0, 0, 1, 0]]))
    assert found_T2.tolist() == [[0.5, 0.5]] * 100


@pytest.mark.parametrize("resize", ["squash", "crop"])
def test_a_map_without_a_positive_value_has_the_box_over_the_whole_image(resize: Any) -> None:
    frame = Frame(100, 40, 32, resize)
    truth = np.array([[0, 0, 50, 40]], np.float32)
    assert SWEEP.cam(np.zeros((4, 4)), frame, truth, inclusive=False).tolist() == [[0.5, 0.5]] * 100
    inclusive_T2 = SWEEP.cam(-np.ones((4, 4)), frame, truth, inclusive=True)
    np.testing.assert_allclose(inclusive_T2, 51 / 101, atol=1e-12)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_map_that_is_not_finite_has_no_contours(value: float) -> None:
    assert_same(np.array([[1, value], [0, 1]]))


def test_other_thresholds() -> None:
    thresholds = np.array([0.0, 0.15, 0.5])
    cam_hw = next(drawn_maps(3, 1))
    found_T2 = Sweep(thresholds).maxboxacc(cam_hw, TRUTH)
    np.testing.assert_array_equal(found_T2, SWEEP.maxboxacc(cam_hw, TRUTH)[[0, 15, 50]])


def test_thresholds_are_hundredths() -> None:
    assert THRESHOLDS.tolist() == [n / 100 for n in range(100)]


def test_a_span_beyond_float32_has_no_contours() -> None:
    """Infinity divided by infinity has no level."""
    found = Sweep().maxboxacc(np.array([[-3e38, 3e38]], np.float32), np.array([[0, 0, 0, 0]]))
    assert found.tolist() == [[1, 1]] * len(THRESHOLDS)  # the box 0, 0, 0, 0 against itself
