"""Weak masks: by hand, and against scipy's components."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from camworker.boxes.masks import weak_mask, without_specks
from camworker.frame import Frame

EIGHT = np.ones((3, 3))


def without_specks_by_scipy(mask: np.ndarray) -> np.ndarray:
    """The definition, on images of labels."""
    labels, count = ndimage.label(mask, EIGHT)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    largest = sizes[1:].max(initial=0)
    kept = [labels == number for number in range(1, count + 1) if sizes[number] * 10 >= largest]
    cleaned = np.any([np.zeros_like(mask), *kept], axis=0)
    for component in kept:
        gaps, gap_count = ndimage.label(np.pad(~component, 1, constant_values=True))
        for gap in range(2, gap_count + 1):  # the first one lies outside of the component
            hole = (gaps == gap)[1:-1, 1:-1]
            if hole.sum() * 10 < largest:
                cleaned |= hole
    return cleaned


def drawn(*lines: str) -> np.ndarray:
    return np.array([[character == "#" for character in line] for line in lines])


@given(hnp.arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12))))
@settings(max_examples=300, deadline=None)
def test_noise_is_cleaned_as_by_scipy(mask: np.ndarray) -> None:
    assert np.array_equal(without_specks(mask), without_specks_by_scipy(mask))


@given(st.integers(0, 2**32 - 1), st.floats(0.3, 0.7))
@settings(max_examples=50, deadline=None)
def test_larger_shapes_are_cleaned_as_by_scipy(seed: int, share: float) -> None:
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).random((40, 50)), 1.2)
    mask = noise > np.quantile(noise, share)
    assert np.array_equal(without_specks(mask), without_specks_by_scipy(mask))


def test_a_mask_is_what_exceeds_the_mean() -> None:
    """One row of cells 0, 0, 4, 4 upsampled four times: the mean is 2, half way between two cells."""
    map_hw = np.array([[0, 0, 4, 4]] * 4, np.float32)
    mask = weak_mask(map_hw, Frame(16, 12, 16))
    assert mask.dtype == bool
    assert np.array_equal(mask, np.repeat([[False, True]], 8, axis=1).repeat(12, axis=0))
    # Between the centres of cells 1 and 2, at 6 and 10 pixels, M is x - 6: above 3 from 9 on.
    assert weak_mask(map_hw, Frame(16, 12, 16), 1.5).sum(axis=1).tolist() == [7] * 12
    assert weak_mask(map_hw, Frame(16, 12, 16), 0.5).sum(axis=1).tolist() == [9] * 12


def test_the_level_stays_below_the_peak() -> None:
    map_hw = np.array([[0, 0, 4, 4]] * 4, np.float32)
    assert weak_mask(map_hw, Frame(16, 12, 16), 100.0).sum(axis=1).tolist() == [6] * 12


def test_crop_sets_nothing_outside_of_the_centre_square() -> None:
    mask = weak_mask(np.eye(4, dtype=np.float32) + 1, Frame(60, 20, 16, "crop"), 0.5)
    assert np.array_equal(np.flatnonzero(mask.any(axis=0)), np.arange(20, 40))
    assert mask[:, 20:40].all()
    tall = weak_mask(np.eye(4, dtype=np.float32) + 1, Frame(20, 60, 16, "crop"), 0.5)
    assert np.array_equal(tall, mask.T)


def test_less_than_a_tenth_of_the_largest_component() -> None:
    """23 pixels around a hole of two: three are at least a tenth, two are less."""
    mask = drawn(
        "...........",
        ".#####..##.",
        ".##.##.....",
        ".##.##.##..",
        ".#####..#..",
        ".#####.....",
    )
    cleaned = drawn(
        "...........",
        ".#####.....",
        ".#####.....",
        ".#####.##..",
        ".#####..#..",
        ".#####.....",
    )
    assert np.array_equal(without_specks(mask), cleaned)
    mask[4, 3] = cleaned[2:5, 3] = False  # now the hole has three
    assert np.array_equal(without_specks(mask), cleaned)


def test_what_lies_in_the_hole_of_a_small_component_stays() -> None:
    mask = np.zeros((60, 60), bool)
    mask[0, :] = mask[-1, :] = mask[:, 0] = mask[:, -1] = True
    mask[2:-2, 2:-2] = True
    assert np.array_equal(without_specks(mask)[1:-1, 1:-1], mask[1:-1, 1:-1])
    assert not without_specks(mask)[0].any()


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (3, 2), (2000, 1)])
def test_images_of_any_size(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    for resize in ("squash", "crop"):
        assert weak_mask(rng.random((7, 7)), Frame(*size, 32, resize)).shape == size[::-1]


def test_a_map_without_a_positive_value_has_no_mask() -> None:
    assert not weak_mask(np.zeros((4, 4), np.float32), Frame(9, 8, 16)).any()
