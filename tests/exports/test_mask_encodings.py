"""Run lengths and polygons of masks, read by pycocotools."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco_mask

from camworker.exports.mask_encodings import RunLengths, joined, polygons

MASKS = hnp.arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12)))


def blob(width: int, height: int) -> np.ndarray:
    """Two components with edges at all angles, one of them with a hole."""
    y, x = np.mgrid[:height, :width]
    ring = ((x / width - 0.4) ** 2 + (y / height - 0.5) ** 2 < 0.1) & ~(
        (x / width - 0.45) ** 2 + (y / height - 0.5) ** 2 < 0.02
    )
    return ring | ((x / width - 0.9) ** 2 + (y / height - 0.4) ** 2 < 0.005)


def by_pycocotools(outlines: list[np.ndarray], height: int, width: int) -> np.ndarray:
    """The pixels of a list of polygons, joined as a COCO reader joins them."""
    flat = [outline.reshape(-1).astype(float).tolist() for outline in outlines]
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(flat, height, width))).astype(bool)


@given(MASKS)
def test_run_lengths_are_those_of_pycocotools(mask: np.ndarray) -> None:
    encoded = RunLengths.of(mask)
    reference = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert encoded.coco() == {"size": list(mask.shape), "counts": reference["counts"].decode()}
    assert np.array_equal(encoded.pixels(), mask)
    assert encoded.area == mask.sum()
    if mask.any():
        x, y, width, height = coco_mask.toBbox(reference)
        assert encoded.box == [x, y, x + width, y + height]


def test_long_runs() -> None:
    """Lengths of several groups of five bits, growing and shrinking."""
    mask = blob(3000, 2000)
    reference = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert RunLengths.of(mask).coco()["counts"] == reference["counts"].decode()


@given(MASKS)
@settings(deadline=None)
def test_exact_polygons_cover_the_pixels_of_the_mask(mask: np.ndarray) -> None:
    outlines = polygons(mask, tolerance=0)
    assert len(outlines) == cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)[0] - 1
    assert np.array_equal(by_pycocotools(outlines, *mask.shape), mask) if outlines else not mask.any()
    if outlines:
        assert np.array_equal(by_pycocotools([joined(outlines)], *mask.shape), mask)
    assert sum(cv2.contourArea(outline) for outline in outlines) == mask.sum()


@given(MASKS)
@settings(deadline=None)
def test_polygons_of_small_masks_keep_their_area(mask: np.ndarray) -> None:
    areas = [cv2.contourArea(outline) for outline in polygons(mask)]
    assert sum(areas) == pytest.approx(mask.sum(), rel=0.02 * 3)
    assert areas == sorted(areas, reverse=True)


def test_polygons_of_large_masks_have_few_corners() -> None:
    mask = blob(600, 400)
    outlines = polygons(mask)
    assert [len(outline) < 200 for outline in outlines] == [True, True]
    for read in (by_pycocotools(outlines, *mask.shape), by_pycocotools([joined(outlines)], *mask.shape)):
        assert (read & mask).sum() / (read | mask).sum() > 0.985
        assert not read[200, 270]  # the hole
        assert read[160, 540]  # the second component


def test_one_pixel() -> None:
    mask = np.zeros((3, 4), bool)
    mask[1, 2] = True
    (outline,) = polygons(mask)
    assert sorted(map(tuple, outline.tolist())) == [(2, 1), (2, 2), (3, 1), (3, 2)]
