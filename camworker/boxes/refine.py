"""Refined maps: class activation maps sharpened by earlier features of the same forward pass.

A class activation map knows what the object is, but its cells are coarse. The features at stride 8 have four
times the resolution. So the map is regressed on these features within the one image, and the regression is
read at their resolution. The formulas: camworker/README.md, Refined maps.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from camworker.refinement import ForegroundHead, Refinement

HEAD_SLOPE: Final = 4.0  # of the sigmoid that makes a probability of the foreground head's score

_DECODED: Final = (np.arange(256) / 255).astype(np.float32) ** 2


def refined_maps(
    cams_Mhw: NDArray[np.floating],
    images_M: NDArray[np.int64],
    fine_BCHW: NDArray[np.float32],
    deep_BCHW: NDArray[np.float32] | None,
    refinement: Refinement,
    head: ForegroundHead | None,
) -> NDArray[np.uint8]:
    """Return refined maps as they are stored: round(255 sqrt(M / max M)), and 0 where there is none.

    The arguments are those of `refined_values`. `decode_refined` gives the maps from which boxes are made.

    Returns:
        uint8 [M, H8, W8].
    """
    return encode_refined(refined_values(cams_Mhw, images_M, fine_BCHW, deep_BCHW, refinement, head))


def refined_values(
    cams_Mhw: NDArray[np.floating],
    images_M: NDArray[np.int64],
    fine_BCHW: NDArray[np.float32],
    deep_BCHW: NDArray[np.float32] | None,
    refinement: Refinement,
    head: ForegroundHead | None,
) -> NDArray[np.float32]:
    """Return the refined maps M of class activation maps, before they are rounded.

    With U the positive part of a map, divided by its maximum and upsampled to the fine grid (bilinear,
    half-pixel centres), L the probability of the foreground, e and f the exponents and k the slope of the
    refinement:

    - ridge: M = Ridge(U; k) U^e
    - foreground: M = Ridge(q; k) U^e L^f with q = U^e L, divided by its maximum

    Ridge(q; k) = sigmoid(k X w), where X w is the ridge regression of 2q - 1 on the standardized features of
    the image, see `refine_kernels.ridge_scores`. It has one Gram matrix and one Cholesky factor for all maps
    of an image.

    Args:
        cams_Mhw: Class activation maps of M labels, [M, h, w].
        images_M: The index of each map's image, in any order, [M].
        fine_BCHW: Features of the images at stride 8, [B, C8, H8, W8].
        deep_BCHW: Features of the images at stride 16, [B, C16, H16, W16]; only a head with weights for them
            uses them.
        refinement: The kind and its constants.
        head: The foreground head, which only "foreground" uses.

    Returns:
        float32 [M, H8, W8], in 0..1. All zeros if a map has no positive value, or one that is not finite.

    Raises:
        ValueError: The head is missing or is for another number of channels.
    """
    # Importing Numba takes a third of a second, which decoding does not need.
    from camworker.boxes.refine_kernels import ridge_scores, upsample_maps

    batch, channels, height, width = fine_BCHW.shape
    fine_BCP = np.ascontiguousarray(fine_BCHW, np.float32).reshape(batch, channels, height * width)
    cams_Mhw = np.asarray(cams_Mhw, np.float32)
    peaks_M = cams_Mhw.max((1, 2), initial=0)
    usable_M = (peaks_M > 0) & np.isfinite(cams_Mhw).all((1, 2))
    u_Mhw = np.zeros(cams_Mhw.shape, np.float32)
    np.maximum(cams_Mhw, 0, out=u_Mhw, where=usable_M[:, None, None])
    u_Mhw /= np.where(usable_M, peaks_M, 1)[:, None, None]
    u_MHW = np.empty((len(cams_Mhw), height, width), np.float32)
    upsample_maps(u_Mhw, u_MHW)
    u_MP = u_MHW.reshape(len(cams_Mhw), height * width)

    factor_MP = q_MP = _power(u_MP, refinement.cam_exponent)
    if refinement.kind == "ridge":
        q_MP = u_MP
    else:
        probability_BP = foreground_probability(fine_BCHW, deep_BCHW, head).reshape(batch, height * width)
        q_MP = factor_MP * probability_BP[images_M]
        q_MP /= np.maximum(q_MP.max(1, keepdims=True, initial=0), np.finfo(np.float32).tiny)
        factor_MP *= _power(probability_BP, refinement.head_exponent)[images_M]
    order_M = np.argsort(images_M, kind="stable")
    starts_B = np.searchsorted(images_M[order_M], np.arange(batch + 1))
    scores_MP = np.empty_like(q_MP)
    ridge_scores(fine_BCP, q_MP, order_M, starts_B, scores_MP)
    factor_MP *= _sigmoid(scores_MP, refinement.slope)
    return factor_MP.reshape(len(cams_Mhw), height, width)


def foreground_probability(
    fine_BCHW: NDArray[np.float32], deep_BCHW: NDArray[np.float32] | None, head: ForegroundHead | None
) -> NDArray[np.float32]:
    """Return L = sigmoid(4 z) of each position of the fine grid, z being the score of the foreground head.

    Args:
        fine_BCHW: Features at stride 8, [B, C8, H8, W8].
        deep_BCHW: Features at stride 16, [B, C16, H16, W16].
        head: The head.

    Returns:
        float32 [B, H8, W8], in 0..1.

    Raises:
        ValueError: The head is missing or is for another number of channels.
    """
    from camworker.boxes.refine_kernels import upsample_maps

    head = check_head(head, fine_BCHW.shape[1], 0 if deep_BCHW is None else deep_BCHW.shape[1])
    z_BHW = _weighted_sum(fine_BCHW, head.fine_C)
    if deep_BCHW is not None and len(head.deep_C):
        deep_BHW = np.empty_like(z_BHW)
        upsample_maps(_weighted_sum(deep_BCHW, head.deep_C), deep_BHW)
        z_BHW += deep_BHW
    return _sigmoid(z_BHW + np.float32(head.bias), HEAD_SLOPE)


def check_head(head: ForegroundHead | None, fine_channels: int, deep_channels: int) -> ForegroundHead:
    """Return the head if it fits features of these numbers of channels.

    Raises:
        ValueError: It is missing or is for other numbers of channels.
    """
    if head is None:
        raise ValueError("a foreground refinement needs a head")
    if len(head.fine_C) != fine_channels or len(head.deep_C) not in (0, deep_channels):
        raise ValueError(
            f"the head is for {len(head.fine_C)} and {len(head.deep_C)} channels, not for {fine_channels} "
            f"and {deep_channels}"
        )
    return head


def encode_refined(maps_MHW: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return maps as they are stored: round(255 sqrt(M / max M)); all zeros for a map without a maximum."""
    peaks_M = maps_MHW.max((1, 2), keepdims=True, initial=0)
    roots_MHW = np.sqrt(maps_MHW / np.where(peaks_M > 0, peaks_M, 1))
    rounded_MHW: NDArray[np.uint8] = np.rint(255 * roots_MHW).astype(np.uint8)
    return rounded_MHW


def decode_refined(maps_u8: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the maps that `encode_refined` rounded, divided by their maxima: (u / 255)^2, float32."""
    return _DECODED[maps_u8]


def _weighted_sum(features_BCHW: NDArray[np.float32], weights_C: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the sum of the channels, each times its weight, [B, H, W]."""
    from camworker.boxes.refine_kernels import add_weighted_channels

    batch, channels, height, width = features_BCHW.shape
    features_BCP = np.ascontiguousarray(features_BCHW, np.float32).reshape(batch, channels, height * width)
    sums_BP = np.zeros((batch, height * width), np.float32)
    add_weighted_channels(features_BCP, weights_C.astype(np.float32), sums_BP)
    return sums_BP.reshape(batch, height, width)


def _sigmoid(x: NDArray[np.float32], slope: float) -> NDArray[np.float32]:
    # Between -80 and 80 the exponential fits into float32, and beyond the result does not change.
    y: NDArray[np.float32] = np.clip(np.float32(-slope) * x, -80, 80)
    np.exp(y, out=y)
    y += 1
    np.reciprocal(y, out=y)
    return y


def _power(x: NDArray[np.float32], exponent: float) -> NDArray[np.float32]:
    """Return x^exponent, by square roots where they give it: these are much faster."""
    if exponent == 0.5:
        return np.sqrt(x)
    return np.sqrt(np.sqrt(x)) if exponent == 0.25 else x ** np.float32(exponent)
