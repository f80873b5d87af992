"""Frame: values computed by hand, and boxes mapped to the input and back for any image."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from camworker.frame import RESIZES, Frame

SIDES = st.integers(1, 20_000)
INPUT_SIZES = st.sampled_from([1, 2, 7, 224, 227, 256, 299])
# Far outside the input too: a box of a map never is, but a caller's may be.
COORDINATES = st.floats(-1e4, 1e4, allow_nan=False, width=32)


@st.composite
def frames(draw: st.DrawFn) -> Frame:
    width, height = draw(SIDES), draw(SIDES)
    return Frame(width, height, draw(INPUT_SIZES), draw(st.sampled_from(RESIZES)))


@st.composite
def boxes_inside(draw: st.DrawFn, width: int, height: int) -> np.ndarray:
    x = sorted(draw(st.tuples(st.floats(0, width), st.floats(0, width))))
    y = sorted(draw(st.tuples(st.floats(0, height), st.floats(0, height))))
    return np.array([[x[0], y[0], x[1], y[1]]])


@pytest.mark.parametrize(
    ("frame", "resized", "offset", "in_input", "in_original"),
    [
        # 800 x 400 over 200 x 200: 4 original pixels a column, 2 a row.
        (Frame(800, 400, 200), (200, 200), (0, 0), [10, 20, 30, 200], [40, 40, 120, 400]),
        # The short side 400 -> 200 halves both; the centre square starts 100 in (400 wide - 200) / 2.
        (Frame(800, 400, 200, "crop"), (400, 200), (100, 0), [10, 20, 30, 200], [220, 40, 260, 400]),
        (Frame(400, 800, 200, "crop"), (200, 400), (0, 100), [10, 20, 30, 200], [20, 240, 60, 600]),
        # Enlarging: 3 x 2 to a short side of 4 is 6 x 4, one column off each side.
        (Frame(3, 2, 4, "crop"), (6, 4), (1, 0), [0, 0, 4, 4], [0.5, 0, 2.5, 2]),
        # An odd rest: 5 columns too many are 2 on the left, 3 on the right.
        (Frame(15, 10, 10, "crop"), (15, 10), (2, 0), [0, 0, 10, 10], [2, 0, 12, 10]),
        # 301 x 200 to a short side of 100 is 150.5 wide, rounded to even: 150.
        (Frame(301, 200, 100, "crop"), (150, 100), (25, 0), [0, 0, 75, 50], [301 / 6, 0, 602 / 3, 100]),
    ],
)
def test_boxes_by_hand(frame, resized, offset, in_input, in_original):
    assert frame.resized == resized
    assert frame.offset == offset
    got = frame.to_original(np.array([in_input]))
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, [in_original], rtol=1e-6)
    np.testing.assert_allclose(frame.to_input(np.array([in_original])), [in_input], rtol=1e-6, atol=1e-5)


def test_boxes_beyond_the_input_are_clipped_to_the_image():
    assert Frame(800, 400, 200).to_original(np.array([[-5, -1, 900, 201]])).tolist() == [[0, 0, 800, 400]]
    # Under crop the image reaches beyond the input: 150 to the left of the input is 50 outside the image.
    frame = Frame(800, 400, 200, "crop")
    assert frame.to_original(np.array([[-50, 0, 250, 200]])).tolist() == [[100, 0, 700, 400]]
    assert frame.to_original(np.array([[-150, 0, 350, 200]])).tolist() == [[0, 0, 800, 400]]


@given(frames(), st.data())
def test_to_input_and_back(frame, data):
    boxes = data.draw(boxes_inside(frame.width, frame.height))
    back = frame.to_original(frame.to_input(boxes))
    # float32 holds an input coordinate to 2^-24 of the largest; the scale carries that to the original.
    tolerance = 4e-7 * max(frame.width, frame.height, frame.input_size) + 1e-5
    np.testing.assert_allclose(back, boxes, atol=tolerance, rtol=0)


@given(frames(), st.lists(st.tuples(*[COORDINATES] * 4), max_size=5))
def test_any_box_ends_inside_the_image(frame, rows):
    boxes = frame.to_original(np.array(rows, np.float32).reshape(-1, 4))
    assert boxes.shape == (len(rows), 4)
    assert (boxes >= 0).all()
    assert (boxes[:, ::2] <= frame.width).all()
    assert (boxes[:, 1::2] <= frame.height).all()


@given(frames(), st.tuples(*[COORDINATES] * 4))
def test_corners_keep_their_order(frame, row):
    x, y = sorted(row[::2]), sorted(row[1::2])
    ((xmin, ymin, xmax, ymax),) = frame.to_original(np.array([[x[0], y[0], x[1], y[1]]]))
    assert xmin <= xmax
    assert ymin <= ymax


@given(SIDES, SIDES, INPUT_SIZES)
def test_whole_input_is_the_whole_image_when_squashed(width, height, size):
    frame = Frame(width, height, size, "squash")
    whole = frame.to_original(np.array([[0, 0, size, size]]))
    np.testing.assert_allclose(whole, [[0, 0, width, height]], rtol=1e-6)
    assert frame.whole_image().tolist() == [[0, 0, width, height]]
    assert frame.whole_image().dtype == np.float32


@given(SIDES, SIDES, INPUT_SIZES)
def test_the_whole_input_is_a_centred_square_under_crop(width, height, size):
    frame = Frame(width, height, size, "crop")
    assert min(frame.resized) == size
    xmin, ymin, xmax, ymax = frame.to_original(np.array([[0, 0, size, size]]))[0].astype(float)
    # Both margins are whole input pixels, so they differ by at most one of them.
    pixel = np.array([width, height]) / frame.resized
    margins = np.array([[xmin, width - xmax], [ymin, height - ymax]])
    assert (np.abs(margins[:, 0] - margins[:, 1]) <= pixel + 1e-2).all()
    short = min(width, height)
    # Rounding the long side to whole input pixels makes the scales differ by half a pixel in it.
    np.testing.assert_allclose([xmax - xmin, ymax - ymin], short, rtol=0.5 / size + 1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 10, 224), "at least one pixel"),
        ((10, 0, 224), "at least one pixel"),
        ((10, 10, 0), "at least one pixel"),
        ((-1, 10, 224), "at least one pixel"),
        ((10, 10, 224, "pad"), "pad"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        Frame(*arguments)
