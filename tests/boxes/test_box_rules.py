"""Tests of box rules: names, other thresholds than that of cam20, and several boxes, against scipy."""

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from boxes.test_boxes import oracle, random_map
from camworker.boxes.dtbox import dt_boxes, on_original
from camworker.boxes.maxboxacc import largest_contour_box, score_map
from camworker.boxes.rules import RULES, boxes_from_cam, boxes_from_map, check_rule, uses_refined
from camworker.errors import UsageError
from camworker.frame import RESIZES, Frame


@pytest.mark.parametrize("threshold", ["0", "0.35", ".7", "0.95"])
def test_cam_with_another_threshold(threshold):
    rng = np.random.default_rng(35)
    for _ in range(40):
        map_HW = random_map("smooth", rng)[:64]
        expected = [oracle(map_HW, float(threshold))[0]]
        assert boxes_from_map(map_HW, f"cam:{threshold}").tolist() == expected
        assert boxes_from_cam(map_HW, Frame(64, 64, 64), f"cam:{threshold}").tolist() == expected


@pytest.mark.parametrize("resize", RESIZES)
def test_a_threshold_of_a_fifth_is_cam20(resize):
    rng = np.random.default_rng(5)
    frame = Frame(500, 375, 224, resize)
    for _ in range(60):
        cam_hw = rng.normal(size=(7, 7)).astype(np.float16)
        for rule in ("cam:0.2", "cam:.20"):
            assert boxes_from_cam(cam_hw, frame, rule).tobytes() == boxes_from_cam(cam_hw, frame).tobytes()
            assert boxes_from_map(cam_hw, rule).tobytes() == boxes_from_map(cam_hw).tobytes()


@pytest.mark.parametrize("rule", ["cam:0.9999999999", "cam:0.9"])
@pytest.mark.parametrize("peak", [1.5, 1e-45, np.inf])
def test_the_peak_is_above_every_threshold(rule, peak):
    assert boxes_from_map(np.array([[0, 0, peak]]), rule).tolist() == [[2, 0, 3, 1]]


def multi_oracle(map_HW: np.ndarray) -> list[list[int]]:
    """Return the boxes of cam20-multi from scipy, which numbers components in row order."""
    labels, count = ndimage.label(map_HW > np.float32(0.2) * map_HW.max(), structure=np.ones((3, 3)))
    sizes = ndimage.sum_labels(labels > 0, labels, range(1, count + 1))
    places = ndimage.find_objects(labels)
    order = sorted(range(count), key=lambda index: -sizes[index])
    large = [places[index] for index in order if 10 * sizes[index] >= sizes.max()]
    return [[columns.start, rows.start, columns.stop, rows.stop] for rows, columns in large]


@pytest.mark.parametrize("kind", ["smooth", "noise", "blocky", "blurred"])
def test_multi_gives_every_large_component(kind):
    rng = np.random.default_rng(21)
    counts = []
    for _ in range(100):
        map_HW = random_map(kind, rng)
        boxes = boxes_from_map(map_HW, "cam20-multi")
        assert boxes.dtype == np.float32
        assert boxes.tolist() == multi_oracle(map_HW)
        assert boxes[0].tolist() == boxes_from_map(map_HW)[0].tolist()
        counts.append(len(boxes))
    assert max(counts) > 1


def test_multi_keeps_a_tenth_and_orders_by_area_then_rows():
    map_HW = np.zeros((24, 24), np.float32)
    map_HW[20:22, 0:10] = 1  # 20 pixels
    map_HW[0:2, 9] = map_HW[4, 5:7] = map_HW[4, 2:4] = 1  # two each, a tenth
    map_HW[10, 10] = 1  # one
    assert boxes_from_map(map_HW, "cam20-multi").tolist() == [
        [0, 20, 10, 22],
        [9, 0, 10, 2],
        [2, 4, 4, 5],
        [5, 4, 7, 5],
    ]
    map_HW[22, 0] = 1  # 21 pixels: two are less than a tenth
    assert boxes_from_map(map_HW, "cam20-multi").tolist() == [[0, 20, 10, 23]]
    # Twelve pixels each, both from the top row: the first pixel there decides, not how far left a box goes.
    map_HW = np.zeros((6, 12), np.float32)
    map_HW[0:4, 8] = map_HW[4, 0:8] = map_HW[0:3, 2:6] = 1
    assert boxes_from_map(map_HW, "cam20-multi").tolist() == [[2, 0, 6, 3], [0, 0, 9, 5]]


def test_multi_goes_through_the_frame():
    cam_hw = np.zeros((8, 8), np.float16)
    cam_hw[1, 1] = cam_hw[6, 5] = 1
    frame = Frame(400, 200, 8)
    assert boxes_from_cam(cam_hw, frame, "cam20-multi").tolist() == [[50, 25, 100, 50], [250, 150, 300, 175]]
    assert boxes_from_cam(-cam_hw, frame, "cam20-multi").tolist() == [[0, 0, 400, 200]]


@pytest.mark.parametrize("resize", RESIZES)
def test_dtbox_is_made_at_the_size_of_the_original(resize):
    rng = np.random.default_rng(9)
    frame = Frame(300, 200, 224, resize)
    for _ in range(5):
        cam_hw = rng.normal(size=(7, 7)).astype(np.float16)
        map_HW = on_original(cam_hw, frame)
        boxes = boxes_from_cam(cam_hw, frame, "dtbox")
        assert boxes.dtype == np.float32
        assert boxes.tolist() == dt_boxes(map_HW).tolist() == boxes_from_map(map_HW, "dtbox").tolist()
    whole = boxes_from_cam(np.full((7, 7), -1, np.float16), frame, "dtbox")
    assert whole.tolist() == [[0, 0, 300, 200]] * 2


def test_maxboxacc_is_scaled_to_the_original():
    cam_hw = np.zeros((7, 7), np.float16)
    cam_hw[2, 4] = 1
    x0, y0, x1, y1 = largest_contour_box(score_map(cam_hw), 0.3).tolist()
    boxes = boxes_from_cam(cam_hw, Frame(448, 112, 224), "maxboxacc:0.3")
    assert boxes.dtype == np.float32
    assert boxes.tolist() == [[2 * x0, y0 / 2, 2 * x1, y1 / 2]]
    # The square of 224 is the frame, whatever its size: here 4 original pixels of a side of 112.
    boxes = boxes_from_cam(cam_hw, Frame(896, 448, 112, "crop"), "maxboxacc:0.3")
    assert boxes.tolist() == [[224 + 2 * x0, 2 * y0, 224 + 2 * x1, 2 * y1]]
    assert boxes_from_map(cam_hw, "maxboxacc:0.3").tolist() == [[x0 / 32, y0 / 32, x1 / 32, y1 / 32]]
    x0, y0, x1, y1 = largest_contour_box(score_map(cam_hw[:4]), 0.3).tolist()
    wide = boxes_from_map(cam_hw[:4], "maxboxacc:0.3")
    np.testing.assert_allclose(wide, [[x0 / 32, y0 / 56, x1 / 32, y1 / 56]], rtol=1e-6)
    # Negative maps are maps as others are; of a constant one the box is empty.
    negative = boxes_from_cam(cam_hw[:4] - np.float16(2), Frame(224, 224, 224), "maxboxacc:0.3")
    assert negative.tolist() == [[x0, y0, x1, y1]]
    constant = boxes_from_cam(np.ones((7, 7)), Frame(448, 112, 224), "maxboxacc:0")
    assert constant.tolist() == [[0, 0, 0, 0]]


@pytest.mark.parametrize(
    ("rule", "spelling"),
    [
        ("cam20", "cam20"),
        ("cam20-multi", "cam20-multi"),
        ("dtbox", "dtbox"),
        ("cam:0", "cam:0"),
        ("cam:0.0", "cam:0"),
        ("cam:.3", "cam:0.3"),
        ("cam:0.30", "cam:0.3"),
        ("cam:00.25", "cam:0.25"),
        ("cam:0.00001", "cam:0.00001"),
        ("maxboxacc:.150", "maxboxacc:0.15"),
        ("fine:1.0", "fine:1"),
        ("fine:0.6250", "fine:0.625"),
        ("fine:12.5", "fine:12.5"),
        ("fine-multi:1.50", "fine-multi:1.5"),
    ],
)
def test_canonical_spelling_of_rules(rule, spelling):
    if not rule.startswith("fine-multi"):
        assert check_rule(rule, stored=True) == spelling
        assert check_rule(spelling, stored=True) == spelling
    if not rule.startswith("maxboxacc"):
        assert check_rule(rule) == spelling


@given(st.floats(0, 1, exclude_max=True))
def test_canonical_spelling_of_thresholds(threshold):
    spelling = check_rule("cam:" + np.format_float_positional(threshold, trim="0"))
    assert check_rule(spelling) == spelling
    assert float(spelling.removeprefix("cam:")) == threshold


@pytest.mark.parametrize(
    "rule",
    [
        *("cam21", "", "cam", "cam:", "cam:1", "cam:1.0", "cam:-0.1", "cam:+0.1", "cam: 0.1", "cam:0.1 "),
        *("cam:1e-1", "cam:0_1", "cam:0.1.2", "cam:.", "cam:1.", "cam:nan", "cam:inf", "cam:0,3"),
        *("cam:\u0660.3", "cam:0.3\n", "CAM20", "cam20-multi:0.3", "dtbox:1", "cam20 "),
        *("maxboxacc", "maxboxacc:1", "maxboxacc:nan"),
        *("fine", "fine:", "fine:0", "fine:0.00", "fine:-1", "fine:1e1", "fine-multi", "fine-multi:0"),
        "fine:" + 400 * "9",  # more than a float holds
    ],
)
def test_unknown_rules(rule):
    for call in (
        check_rule,
        uses_refined,
        lambda rule: check_rule(rule, stored=True),
        lambda rule: boxes_from_map(np.ones((2, 2)), rule),
        lambda rule: boxes_from_cam(np.zeros((2, 2)), Frame(2, 2, 2), rule),
    ):
        with pytest.raises(UsageError) as caught:
            call(rule)
        message = str(caught.value)
        assert "\n" not in message
        assert message.startswith(f"unknown box rule {rule!r}: choose from cam20, cam:T, cam20-multi, dtbox")


def test_maxboxacc_is_refused_unless_allowed():
    with pytest.raises(
        UsageError, match=r"'maxboxacc:0\.3' is for export and summarize: choose from cam20, "
    ):
        check_rule("maxboxacc:0.3")
    assert not any("maxboxacc" in rule for rule in RULES)


def test_rules_on_refined_maps():
    assert [uses_refined(rule) for rule in ("cam20", "cam:0.3", "cam20-multi", "dtbox", "maxboxacc:0.3")] == [
        False
    ] * 5
    assert uses_refined("fine:1")
    assert uses_refined("fine-multi:0.625")


def test_fine_is_relative_to_the_mean():
    map_HW = np.array([[0, 1, 2, 9, 0, 0, 0, 0]], np.float32)  # its mean is 1.5
    assert boxes_from_map(map_HW, "fine:0.5").tolist() == [[1, 0, 4, 1]]
    assert boxes_from_map(map_HW, "fine:1").tolist() == [[2, 0, 4, 1]]
    assert boxes_from_map(map_HW, "fine:2").tolist() == [[3, 0, 4, 1]]
    # At most 0.95 of the peak: T times the mean is more than the peak here.
    assert boxes_from_map(map_HW, "fine:7").tolist() == [[3, 0, 4, 1]]
    map_HW[0, 4] = 8.6
    assert boxes_from_map(map_HW, "fine:7").tolist() == [[3, 0, 5, 1]]
    assert boxes_from_map(np.full((3, 5), 0.5), "fine:1.5").tolist() == [[0, 0, 5, 3]]
    assert boxes_from_map(np.zeros((3, 5)), "fine:1").tolist() == [[0, 0, 5, 3]]


def test_the_mean_of_a_map_is_that_of_its_upsampled_map():
    rng = np.random.default_rng(7)
    for _ in range(20):
        map_hw = rng.random((28, 28), np.float32)
        large_HW = cv2.resize(map_hw, (224, 224), interpolation=cv2.INTER_LINEAR)
        np.testing.assert_allclose(large_HW.mean(), map_hw.mean(), rtol=1e-5)
        assert (
            boxes_from_map(large_HW, "fine:1.2").tolist()
            == boxes_from_cam(map_hw, Frame(224, 224, 224), "fine:1.2").tolist()
        )
