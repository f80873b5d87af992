"""The foreground head: sums that merge, and the least squares that they stand for."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from camworker.errors import UsageError
from camworker.networks.foreground import (
    MANY_CLASSES,
    MIN_FOREGROUND_IMAGES,
    ForegroundSums,
    effective_classes,
    fit_head,
)

FINE, DEEP, H, W = 5, 3, 8, 6


def image(seed: int, *, deep: bool = True) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """Feature maps and a map of one image: the object is a disc that some channels respond to."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:H, :W]
    disc_HW = np.exp(-((y - random.uniform(1, H - 1)) ** 2 + (x - random.uniform(1, W - 1)) ** 2) / 4)
    scale_C = np.array([1, 10, 0.1, 3, 30]).reshape(-1, 1, 1)
    fine_CHW = scale_C * (random.normal(size=(FINE, H, W)) + disc_HW) + 7
    deep_CHW = random.normal(size=(DEEP, H // 2, W // 2)) + disc_HW[::2, ::2]
    return fine_CHW.astype(np.float32), deep_CHW.astype(np.float32) if deep else None, disc_HW.astype("f4")


IMAGES = [image(seed) for seed in range(120)]
SUMS = [ForegroundSums.of_image(*maps, [f"class {n % 40}"]) for n, maps in enumerate(IMAGES)]


def total(parts: list[ForegroundSums]) -> ForegroundSums:
    return sum(parts, ForegroundSums.zero(FINE, DEEP))


def numbers(sums: ForegroundSums) -> np.ndarray:
    head = fit_head(sums)
    return np.concatenate([head.fine_C, head.deep_C, [head.bias]])


def upsampled(deep_CHW: np.ndarray) -> np.ndarray:
    """Bilinear with half-pixel centres, from each position's two neighbours in each direction."""
    for axis, size in ((1, H), (2, W)):
        position = np.clip((np.arange(size) + 0.5) / 2 - 0.5, 0, deep_CHW.shape[axis] - 1)
        low = np.floor(position).astype(int)
        high = np.minimum(low + 1, deep_CHW.shape[axis] - 1)
        share = (position - low).reshape([-1 if n == axis else 1 for n in range(3)])
        deep_CHW = deep_CHW.take(low, axis) * (1 - share) + deep_CHW.take(high, axis) * share
    return deep_CHW


def test_the_head_is_the_penalized_least_squares_over_all_positions() -> None:
    rows, targets = [], []
    for fine_CHW, deep_CHW, map_HW in IMAGES:
        rows += list(
            np.concatenate([fine_CHW.astype(float), upsampled(deep_CHW.astype(float))]).reshape(8, -1).T
        )
        relative = (map_HW.astype(float) / map_HW.astype(float).mean()).ravel()
        targets += list((relative > 1.5) * 1.0 - (relative < 0.4) * 1.0)
    rows_PC, targets_P = np.array(rows), np.array(targets)
    counts_C = np.array([FINE] * FINE + [DEEP] * DEEP)
    mean_C, scale_C = rows_PC.mean(0), 1 / (rows_PC.std(0) + 1e-3) / np.sqrt(counts_C)
    design = np.concatenate([(rows_PC - mean_C) * scale_C, np.ones((len(rows_PC), 1))], 1)[targets_P != 0]
    # The penalty as rows of the least squares problem, which another solver solves.
    penalty = np.sqrt(len(rows_PC) * np.array([0.01] * 8 + [1e-6]))
    weights = np.linalg.lstsq(
        np.concatenate([design, np.diag(penalty)]),
        np.concatenate([targets_P[targets_P != 0], np.zeros(9)]),
    )[0]
    expected = np.append(weights[:-1] * scale_C, weights[-1] - weights[:-1] @ (mean_C * scale_C))
    np.testing.assert_allclose(numbers(total(SUMS)), expected, rtol=1e-8, atol=1e-10)


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(len(SUMS))), st.lists(st.integers(0, len(SUMS)), max_size=6))
def test_any_split_over_shards_gives_the_same_head(order: list[int], cuts: list[int]) -> None:
    bounds = [0, *sorted(cuts), len(order)]
    shards = [total([SUMS[n] for n in order[a:b]]) for a, b in pairwise(bounds)]
    merged, once = total(shards[::-1]), total(SUMS)
    np.testing.assert_allclose(numbers(merged), numbers(once), rtol=0, atol=1e-10)
    assert (merged.images, merged.positions) == (once.images, once.positions) == (120, 120 * H * W)
    assert merged.class_counts == once.class_counts == {f"class {n}": 3 for n in sorted(range(40), key=str)}


def test_fitted_twice_is_equal_bit_for_bit() -> None:
    again = total([ForegroundSums.of_image(*maps, ["cat"]) for maps in IMAGES])
    assert fit_head(again).fingerprint == fit_head(total(SUMS)).fingerprint


def test_sums_of_an_image_by_hand() -> None:
    fine_CHW = np.array([[[1, 2, 3, 4]]], np.float32)
    map_HW = np.array([[2, 1, 0.2, 0.8]], np.float32)  # the mean is 1: +1, left out, -1, left out
    sums = ForegroundSums.of_image(fine_CHW, None, map_HW, ["cat", "dog"])
    assert (sums.fine, sums.deep, sums.positions, sums.images) == (1, 0, 4, 1)
    assert (sums.sum_C.tolist(), sums.squares_C.tolist()) == ([10], [30])
    assert sums.gram_DD.tolist() == [[1 + 9, 1 + 3], [4, 2]]
    assert sums.moments_D.tolist() == [1 - 3, 0]
    assert sums.class_counts == {"cat": 1, "dog": 1}


def test_a_network_without_a_deep_map() -> None:
    parts = [ForegroundSums.of_image(*image(n, deep=False), ["cat"]) for n in range(MIN_FOREGROUND_IMAGES)]
    head = fit_head(sum(parts, ForegroundSums.zero(FINE, 0)))
    assert (head.fine_C.shape, head.deep_C.shape) == ((FINE,), (0,))


def test_a_constant_channel_gets_no_weight() -> None:
    parts = []
    for fine_CHW, deep_CHW, map_HW in IMAGES:
        fine_CHW = np.concatenate([fine_CHW[:-1], np.full((1, H, W), 6, np.float32)])
        parts.append(ForegroundSums.of_image(fine_CHW, deep_CHW, map_HW, ["cat"]))
    head = fit_head(total(parts))
    assert np.abs(head.fine_C[-1]) < 1e-6
    assert np.isfinite(head.bias)


def test_few_images_are_refused() -> None:
    with pytest.raises(UsageError, match=r"^99 images could be used, .* at least 100, of many classes$"):
        fit_head(total(SUMS[: MIN_FOREGROUND_IMAGES - 1]))


@pytest.mark.parametrize(
    ("counts", "effective"), [([1] * 100, 100), ([100, 1], 1.02), ([2] * MANY_CLASSES, MANY_CLASSES), ([], 0)]
)
def test_many_classes_are_many_that_are_about_equally_frequent(counts: list[int], effective: float) -> None:
    assert effective_classes(counts) == pytest.approx(effective, abs=0.01)
