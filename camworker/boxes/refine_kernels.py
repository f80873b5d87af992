"""The compiled (Numba) kernels of refined maps: the foreground head, the ridge regression, upsampling.

They use no library for linear algebra, whose threads would compete with those of the network, and go image by
image, so that the map of a class does not depend on what else is in the batch. A Gram matrix of 40 channels
at 28x28 positions takes 20 microseconds and its Cholesky factor 5 (tests/benchmarks/refinement.py).
"""

from typing import Any

import numpy as np

from camworker.boxes.numba_jit import jit, jit_sums


@jit
def upsample_maps(maps_Mhw: Any, large_MHW: Any) -> None:
    """Resize float32 maps bilinearly with half-pixel centres into large_MHW."""
    count, h, w = maps_Mhw.shape
    _, height, width = large_MHW.shape
    left_W, right_W, share_W = _neighbours(w, width)
    above_H, below_H, share_H = _neighbours(h, height)
    row_w = np.empty(w, np.float32)
    for m in range(count):
        for y in range(height):
            above_w, below_w = maps_Mhw[m, above_H[y]], maps_Mhw[m, below_H[y]]
            for x in range(w):
                row_w[x] = above_w[x] + share_H[y] * (below_w[x] - above_w[x])
            for x in range(width):
                left, right = row_w[left_W[x]], row_w[right_W[x]]
                large_MHW[m, y, x] = left + share_W[x] * (right - left)


@jit
def _neighbours(cells: int, pixels: int) -> Any:
    """Return for each pixel of a side the two cells to interpolate between, and the share of the second."""
    first, second = np.empty(pixels, np.int64), np.empty(pixels, np.int64)
    share = np.empty(pixels, np.float32)
    for pixel in range(pixels):
        place = max((pixel + 0.5) * cells / pixels - 0.5, 0.0)
        first[pixel] = min(int(place), cells - 1)
        second[pixel] = min(first[pixel] + 1, cells - 1)
        share[pixel] = place - first[pixel]
    return first, second, share


@jit_sums
def add_weighted_channels(features_BCP: Any, weights_C: Any, sums_BP: Any) -> None:
    """Add to sums_BP the channels of features_BCP, each times its weight."""
    batch, channels, positions = features_BCP.shape
    for b in range(batch):
        sums_P = sums_BP[b]
        for c in range(channels):
            weight, feature_P = weights_C[c], features_BCP[b, c]
            for p in range(positions):
                sums_P[p] += weight * feature_P[p]


@jit_sums
def ridge_scores(fine_BCP: Any, q_MP: Any, order_M: Any, starts_B: Any, scores_MP: Any) -> None:
    """Regress maps on the features of their images.

    X are the features of an image, each channel with mean 0 and divided by its standard deviation + 1e-3 and
    by the square root of the number of channels, and a column of ones. With
    w = (X'X/P + diag(0.01, ..., 0.01, 1e-6))^-1 X'(2q - 1)/P the scores of a map are X w. The sums of the
    channels are zero, so the constant is a regression of its own.

    Args:
        fine_BCP: Features, float32.
        q_MP: The maps, float32, in 0..1.
        order_M: Indices of the maps, image after image.
        starts_B: Where in order_M each image begins, and the end, int64 [B + 1].
        scores_MP: Output, float32.
    """
    batch, channels, positions = fine_BCP.shape
    one = np.float32(1)
    count = np.float32(positions)
    centred_CP = np.empty((channels, positions), np.float32)
    gram_CC = np.empty((channels, channels), np.float32)
    scale_C = np.empty(channels, np.float32)
    weights_C = np.empty(channels, np.float32)
    for b in range(batch):
        if starts_B[b] == starts_B[b + 1]:
            continue
        for c in range(channels):
            feature_P, centred_P = fine_BCP[b, c], centred_CP[c]
            total = np.float32(0)
            for p in range(positions):
                total += feature_P[p]
            mean = total / count
            for p in range(positions):
                centred_P[p] = feature_P[p] - mean
        _gram(centred_CP, gram_CC)
        for c in range(channels):
            deviation = np.sqrt(gram_CC[c, c] / count) + np.float32(1e-3)
            scale_C[c] = one / (deviation * np.sqrt(np.float32(channels)))
            for other in range(c + 1):
                gram_CC[c, other] *= scale_C[c] * scale_C[other] / count
            gram_CC[c, c] += np.float32(0.01)
        _cholesky(gram_CC)
        for index in range(starts_B[b], starts_B[b + 1]):
            q_P, scores_P = q_MP[order_M[index]], scores_MP[order_M[index]]
            total = np.float32(0)
            for p in range(positions):
                total += q_P[p]
            mean = total / count
            for c in range(channels):
                centred_P = centred_CP[c]
                total = np.float32(0)
                for p in range(positions):
                    total += centred_P[p] * (q_P[p] - mean)
                weights_C[c] = np.float32(2) * total * scale_C[c] / count
            _solve(gram_CC, weights_C)
            constant = (np.float32(2) * mean - one) / np.float32(1 + 1e-6)
            for p in range(positions):
                scores_P[p] = constant
            for c in range(channels):
                weight, centred_P = weights_C[c] * scale_C[c], centred_CP[c]
                for p in range(positions):
                    scores_P[p] += weight * centred_P[p]


@jit_sums
def _gram(x_CP: Any, gram_CC: Any) -> None:
    """Write the lower triangle of X X' into gram_CC, four sums at a time."""
    channels, positions = x_CP.shape
    for i in range(0, channels, 2):
        # The last of an odd number of channels is its own partner.
        i2 = min(i + 1, channels - 1)
        a_P, b_P = x_CP[i], x_CP[i2]
        for j in range(0, i + 1, 2):
            j2 = min(j + 1, channels - 1)
            c_P, d_P = x_CP[j], x_CP[j2]
            ac = ad = bc = bd = np.float32(0)
            for p in range(positions):
                ac += a_P[p] * c_P[p]
                ad += a_P[p] * d_P[p]
                bc += b_P[p] * c_P[p]
                bd += b_P[p] * d_P[p]
            gram_CC[i, j], gram_CC[i, j2], gram_CC[i2, j], gram_CC[i2, j2] = ac, ad, bc, bd


@jit_sums
def _cholesky(a_CC: Any) -> None:
    """Replace the lower triangle of a positive definite matrix by its Cholesky factor."""
    channels = len(a_CC)
    for j in range(channels):
        row = a_CC[j]
        total = row[j]
        for k in range(j):
            total -= row[k] * row[k]
        row[j] = np.sqrt(total)
        for i in range(j + 1, channels):
            total = a_CC[i, j]
            for k in range(j):
                total -= a_CC[i, k] * row[k]
            a_CC[i, j] = total / row[j]


@jit_sums
def _solve(factor_CC: Any, x_C: Any) -> None:
    """Replace x by the solution of L L' y = x."""
    channels = len(x_C)
    for i in range(channels):
        for k in range(i):
            x_C[i] -= factor_CC[i, k] * x_C[k]
        x_C[i] /= factor_CC[i, i]
    for i in range(channels - 1, -1, -1):
        x_C[i] /= factor_CC[i, i]
        for k in range(i):
            x_C[k] -= factor_CC[i, k] * x_C[i]
