"""Tests of refined maps against a plain NumPy reference in float64."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from camworker.boxes.refine import (
    decode_refined,
    encode_refined,
    foreground_probability,
    refined_maps,
    refined_values,
)
from camworker.refinement import ForegroundHead, Refinement
from support.refinement import random_features, random_head, reference_map, reference_probability

SCORINGS = ("softmax", "sigmoid")


@given(
    seed=st.integers(0, 2**32 - 1),
    channels=st.sampled_from([1, 2, 3, 7, 16, 40]),
    grid=st.sampled_from([(28, 28), (9, 12), (14, 7), (5, 5)]),
    kind=st.sampled_from(["ridge", "foreground"]),
    scoring=st.sampled_from(SCORINGS),
    counts=st.lists(st.integers(0, 4), min_size=1, max_size=3),
)
@settings(max_examples=80, deadline=None)
def test_maps_equal_the_reference(seed, channels, grid, kind, scoring, counts):
    rng = np.random.default_rng(seed)
    fine_BCHW, deep_BCHW = random_features(rng, len(counts), channels, grid)
    head = random_head(rng, channels, deep_BCHW.shape[1])
    images_M = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    cams_Mhw = rng.normal(size=(len(images_M), 7, 7)).astype(np.float16)
    refinement = Refinement.of(kind, scoring)
    maps_MHW = refined_values(cams_Mhw, images_M, fine_BCHW, deep_BCHW, refinement, head)
    assert (maps_MHW.dtype, maps_MHW.shape) == (np.float32, (len(images_M), *grid))
    for cam_hw, image, map_HW in zip(cams_Mhw, images_M, maps_MHW, strict=True):
        expected = reference_map(cam_hw, fine_BCHW[image], deep_BCHW[image], refinement, head)
        np.testing.assert_allclose(map_HW, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["ridge", "foreground"])
def test_a_map_does_not_depend_on_the_batch(kind):
    rng = np.random.default_rng(4)
    fine_BCHW, deep_BCHW = random_features(rng, 3, 6, (8, 8))
    head, refinement = random_head(rng, 6, deep_BCHW.shape[1]), Refinement.of(kind, "softmax")
    images_M = np.array([0, 0, 1, 2, 2, 1, 0])
    cams_Mhw = rng.normal(size=(7, 4, 4)).astype(np.float32)
    maps_MHW = refined_maps(cams_Mhw, images_M, fine_BCHW, deep_BCHW, refinement, head)
    for cam_hw, image, map_HW in zip(cams_Mhw, images_M, maps_MHW, strict=True):
        own = slice(image, image + 1)
        alone = refined_maps(
            cam_hw[None], np.zeros(1, np.int64), fine_BCHW[own], deep_BCHW[own], refinement, head
        )
        assert alone[0].tobytes() == map_HW.tobytes()


@pytest.mark.parametrize("kind", ["ridge", "foreground"])
@pytest.mark.parametrize("value", [0, -1, np.nan, np.inf])
def test_a_map_without_a_positive_value_has_no_refined_map(kind, value):
    rng = np.random.default_rng(1)
    fine_BCHW, deep_BCHW = random_features(rng, 1, 3, (6, 6))
    cams_Mhw = np.stack([np.full((3, 3), value, np.float32), np.eye(3, dtype=np.float32)])
    cams_Mhw[0, 0, 0] = min(value, 0)
    refinement = Refinement.of(kind, "softmax")
    head = random_head(rng, 3, deep_BCHW.shape[1])
    with np.errstate(all="raise"):
        maps_MHW = refined_maps(cams_Mhw, np.zeros(2, np.int64), fine_BCHW, deep_BCHW, refinement, head)
    assert maps_MHW.dtype == np.uint8
    assert maps_MHW[0].tolist() == np.zeros((6, 6)).tolist()
    assert maps_MHW[1].max() == 255


def test_constant_features_leave_the_map_as_it_is():
    refinement = Refinement.of("ridge", "softmax")
    cam_hw = np.array([[0.5, 1], [-1, 0.25]], np.float32)
    fine_BCHW = np.full((1, 3, 2, 2), 7.3, np.float32)
    with np.errstate(all="raise"):
        map_HW = refined_values(cam_hw[None], np.zeros(1, np.int64), fine_BCHW, None, refinement, None)[0]
    # The regression is the constant 2 mean(U) - 1.
    constant = 1 / (1 + np.exp(-6 * (2 * 1.75 / 4 - 1)))
    np.testing.assert_allclose(map_HW, constant * np.maximum(cam_hw, 0) ** 0.25, atol=1e-6)


def test_features_that_know_the_object_sharpen_its_map():
    """A map of 2x2 cells and a channel that is 1 on an object of 3x3 of 8x8 positions."""
    object_HW = np.zeros((8, 8), np.float32)
    object_HW[1:4, 1:4] = 1
    fine_BCHW = object_HW[None, None]
    cam_hw = np.array([[1, 0], [0, 0]], np.float32)
    refinement = Refinement.of("ridge", "softmax")
    map_HW = refined_values(cam_hw[None], np.zeros(1, np.int64), fine_BCHW, None, refinement, None)[0]
    assert map_HW[object_HW == 1].min() > 4 * map_HW[object_HW == 0].max()


def test_the_probability_of_the_foreground():
    rng = np.random.default_rng(8)
    fine_BCHW, deep_BCHW = random_features(rng, 2, 5, (12, 10))
    head = random_head(rng, 5, deep_BCHW.shape[1])
    made_BHW = foreground_probability(fine_BCHW, deep_BCHW, head)
    for fine_CHW, deep_CHW, made_HW in zip(fine_BCHW, deep_BCHW, made_BHW, strict=True):
        np.testing.assert_allclose(made_HW, reference_probability(fine_CHW, deep_CHW, head), atol=1e-6)
    # A head of one map, for a network that has only that, by hand: 4 z is 4, 0 and -2000.
    fine_BCHW = np.array([1.5, 0.5, -499.5], np.float32).reshape(1, 1, 1, 3)
    without_deep = ForegroundHead(np.ones(1), np.zeros(0), -0.5)
    with np.errstate(all="raise"):
        made = foreground_probability(fine_BCHW, None, without_deep)
    np.testing.assert_allclose(made, [[[0.98201379, 0.5, 0]]], atol=1e-7)


def test_a_head_of_other_features_is_refused():
    rng = np.random.default_rng(2)
    fine_BCHW, deep_BCHW = random_features(rng, 1, 3, (4, 4))
    cams_Mhw, images_M = np.ones((1, 2, 2), np.float32), np.zeros(1, np.int64)
    refinement = Refinement.of("foreground", "softmax")
    deep_channels = deep_BCHW.shape[1]
    for head, deep in [
        (None, deep_BCHW),
        (random_head(rng, 4, deep_channels), deep_BCHW),
        (random_head(rng, 3, deep_channels + 1), deep_BCHW),
        (random_head(rng, 3, deep_channels), None),
    ]:
        with pytest.raises(ValueError, match="head"):
            refined_maps(cams_Mhw, images_M, fine_BCHW, deep, refinement, head)


def test_rounding():
    maps_MHW = np.array([[[0, 0.25, 1], [0.5, 1e-6, 4]], [[0, 0, 0], [0, 0, 0]]], np.float32)
    u8_MHW = encode_refined(maps_MHW)
    assert u8_MHW.tolist() == [[[0, 64, 128], [90, 0, 255]], [[0] * 3] * 2]
    decoded = decode_refined(u8_MHW)
    assert decoded.dtype == np.float32
    np.testing.assert_allclose(decoded, (u8_MHW / 255.0) ** 2, rtol=1e-6)
    assert encode_refined(
        decode_refined(np.arange(256, dtype=np.uint8).reshape(1, 16, 16))
    ).ravel().tolist() == (list(range(256)))


def test_features_in_another_memory_layout():
    rng = np.random.default_rng(3)
    fine_BCHW, deep_BCHW = random_features(rng, 2, 4, (6, 5))
    head, refinement = random_head(rng, 4, deep_BCHW.shape[1]), Refinement.of("foreground", "softmax")
    cams_Mhw, images_M = rng.normal(size=(2, 3, 3)).astype(np.float32), np.arange(2)
    expected = refined_maps(cams_Mhw, images_M, fine_BCHW, deep_BCHW, refinement, head)
    last = [
        np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2) for x in (fine_BCHW, deep_BCHW)
    ]
    assert refined_maps(cams_Mhw, images_M, *last, refinement, head).tobytes() == expected.tobytes()
    none = refined_maps(cams_Mhw[:0], images_M[:0], fine_BCHW, deep_BCHW, refinement, head)
    assert (none.shape, none.dtype) == ((0, 6, 5), np.uint8)
