"""Tests of connected components against scipy, and of boxes of batches against the definition of cam20."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numba.core import caching
from scipy import ndimage

from camworker.boxes.connected_components import components_above
from camworker.boxes.numba_jit import jit
from camworker.boxes.rules import boxes_from_cam, boxes_from_cams, boxes_from_map
from camworker.frame import RESIZES, Frame


def labelled(mask_HW: np.ndarray) -> list[list[int]]:
    """Return corners and number of pixels of every component, in row order of their first pixels."""
    labels, _ = ndimage.label(mask_HW, structure=np.ones((3, 3)))
    regions = [
        (np.flatnonzero(labels.ravel() == n)[0], [x.start, y.start, x.stop, y.stop, (labels == n).sum()])
        for n, (y, x) in enumerate(ndimage.find_objects(labels), 1)
    ]
    return [list(map(int, region)) for _, region in sorted(regions, key=lambda pair: pair[0])]


def defined(cam_hw: np.ndarray, frame: Frame, rule: str) -> list[list[float]]:
    """Return the boxes by the definition of the rules: OpenCV's resize, a plain mask, scipy's labels."""
    side = frame.input_size
    map_HW = cv2.resize(cam_hw.astype(np.float32), (side, side), interpolation=cv2.INTER_LINEAR)
    if not map_HW.max() > 0:
        return [[0, 0, frame.width, frame.height]]
    name, _, threshold = rule.partition(":")
    level = np.float32(threshold or 0.2) * (
        cam_hw.astype(np.float32).mean() if name == "fine" else map_HW.max()
    )
    if name == "fine":
        level = min(level, np.float32(0.95) * map_HW.max())
    regions = labelled(map_HW > level)
    regions.sort(key=lambda region: -region[4])  # stable: equals stay in row order
    kept = [region for region in regions if 10 * region[4] >= regions[0][4]]
    return frame.to_original(np.array(kept if rule == "cam20-multi" else kept[:1])[:, :4]).tolist()


@given(st.data())
@settings(max_examples=300)
def test_components_equal_those_of_scipy(data):
    shape = data.draw(hnp.array_shapes(min_dims=2, max_dims=2, max_side=40))
    mask_HW = data.draw(hnp.arrays(np.bool_, shape))
    assert components_above(mask_HW.astype(np.float32), np.float32(0.5)).tolist() == labelled(mask_HW)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.4, 0.5, 0.7, 0.95])
@pytest.mark.parametrize("width", [1, 7, 8, 9, 64, 131])
def test_components_of_noise_equal_those_of_scipy(share, width):
    rng = np.random.default_rng(width)
    for height in (1, 2, 50, 120):
        map_HW = rng.random((height, width), np.float32)
        level = np.float32(1 - share)
        assert components_above(map_HW, level).tolist() == labelled(map_HW > level)


def test_components_that_join_late():
    comb = np.ones((41, 301), np.float32)
    comb[:-1, 1::2] = 0  # 151 teeth of 40 pixels on a back of 301
    assert components_above(comb, np.float32(0)).tolist() == [[0, 0, 301, 41, 151 * 40 + 301]]
    assert components_above(comb[::-1].copy(), np.float32(0)).tolist() == [[0, 0, 301, 41, 151 * 40 + 301]]
    assert components_above(comb[:-1], np.float32(0)).tolist() == [
        [x, 0, x + 1, 40, 40] for x in range(0, 301, 2)
    ]
    # A thousand regions a row are more than there is room for at first.
    dots = np.zeros((100, 2000), np.float32)
    dots[::2, ::2] = 1
    assert len(components_above(dots, np.float32(0))) == 50_000


def test_nothing_above_and_everything_above():
    map_HW = np.ones((9, 16), np.float32)
    assert components_above(map_HW, np.float32(1)).shape == (0, 5)
    assert components_above(map_HW, np.float32(0)).tolist() == [[0, 0, 16, 9, 16 * 9]]


SHAPES = [(7, 7), (8, 4), (1, 1), (1, 6), (13, 13), (32, 32), (5, 11)]
RULES = ["cam20", "cam:0.5", "cam:0", "cam20-multi", "fine:0.5", "fine:1", "fine:3.5"]


def random_cam(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Return a map like that of a network, or one of plateaus with components of equal size; of any sign."""
    kind = rng.integers(4)
    if kind == 0:
        return rng.normal(size=shape).astype(np.float16)
    if kind == 1:
        return (rng.random(shape) < 0.3).astype(np.float16) * np.float16(rng.choice([0.01, 1, 6e4]))
    if kind == 2:
        return rng.integers(-2, 3, shape).astype(np.float16)
    return (ndimage.gaussian_filter(rng.normal(size=shape), 1.5, mode="nearest") * 20).astype(np.float16)


@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.sampled_from(SHAPES),
    side=st.integers(32, 320),
    resize=st.sampled_from(RESIZES),
    rule=st.sampled_from(RULES),
)
@settings(max_examples=150)
def test_boxes_of_a_batch_follow_the_definition(seed, shape, side, resize, rule):
    rng = np.random.default_rng(seed)
    frames = [Frame(*rng.integers(1, 2000, 2).tolist(), side, resize) for _ in range(2)]
    cams_Mhw = np.stack([random_cam(rng, shape) for _ in range(3)])
    image_M = np.array([0, 0, 1])
    boxes = boxes_from_cams(cams_Mhw, frames, image_M, rule)
    assert boxes.corners_L4.dtype == np.float32
    ends = np.cumsum(boxes.counts_M)[:-1]
    pieces, fallbacks = np.split(boxes.corners_L4, ends), np.split(boxes.fallback_L, ends)
    for cam_hw, image, boxes_N4, fallback_N in zip(cams_Mhw, image_M, pieces, fallbacks, strict=True):
        if not cam_hw.max() > 0:
            assert fallback_N.tolist() == [True]
        elif fallback_N.any():  # a map that is resized to less than its size can lose its positive cells
            assert side < max(shape)
        assert boxes_N4.tolist() == defined(cam_hw, frames[image], rule)
        assert boxes_N4.tobytes() == boxes_from_cam(cam_hw, frames[image], rule).tobytes()


@pytest.mark.parametrize("rule", ["dtbox", "maxboxacc:0.3"])
def test_every_rule_makes_boxes_of_a_batch(rule):
    rng = np.random.default_rng(3)
    frames = [Frame(60, 40, 32), Frame(30, 50, 32)]
    cams_Mhw = np.stack([random_cam(rng, (5, 5)) for _ in range(12)] + [np.zeros((5, 5), np.float16)])
    image_M = np.arange(13) % 2
    made = boxes_from_cams(cams_Mhw, frames, image_M, rule)
    expected = [boxes_from_cam(cam, frames[n], rule) for cam, n in zip(cams_Mhw, image_M, strict=True)]
    assert made.counts_M.tolist() == [len(boxes) for boxes in expected]
    assert made.corners_L4.tobytes() == np.concatenate(expected).tobytes()
    # maxboxacc has an empty box for a map of zeros, and not the box over the whole image.
    without_box = [rule == "dtbox" and not cam.max() > 0 for cam in cams_Mhw]
    assert made.fallback_L.tolist() == np.repeat(without_box, made.counts_M).tolist()


def test_a_batch_of_no_maps():
    boxes = boxes_from_cams(np.empty((0, 7, 7), np.float16), [], np.zeros(0, np.int64))
    assert (boxes.corners_L4.shape, boxes.corners_L4.dtype) == ((0, 4), np.float32)
    assert (boxes.counts_M.shape, boxes.fallback_L.shape, boxes.fallback_L.dtype) == ((0,), (0,), np.bool_)


def test_values_that_are_not_finite():
    map_HW = np.array([[1, np.inf, 1], [1, 1, 1]], np.float32)
    assert boxes_from_map(map_HW).tolist() == [[1, 0, 2, 1]]
    map_HW[1, 1] = np.nan
    assert boxes_from_map(map_HW).tolist() == [[0, 0, 3, 2]]
    assert boxes_from_map(-map_HW).tolist() == [[0, 0, 3, 2]]


def test_compiling_works_without_a_cache_folder(monkeypatch):
    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])
    with pytest.raises(RuntimeError, match="no locator"):
        caching.FunctionCache(labelled)
    assert jit(lambda value: value + 1)(1) == 2
