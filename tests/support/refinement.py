"""Refined maps in plain NumPy and float64, for one map at a time, and random features and heads."""

import cv2
import numpy as np

from camworker.refinement import ForegroundHead, Refinement


def reference_map(
    cam_hw: np.ndarray,
    fine_CHW: np.ndarray,
    deep_CHW: np.ndarray | None,
    refinement: Refinement,
    head: ForegroundHead | None,
) -> np.ndarray:
    """Return the refined map M, float64 [H, W], by the formulas in the order in which they are written."""
    channels, height, width = fine_CHW.shape
    positive_hw = np.maximum(cam_hw.astype(np.float64), 0)
    if not positive_hw.max() > 0:
        return np.zeros((height, width))
    u_P = _upsampled(positive_hw / positive_hw.max(), height, width).ravel()
    factor_P, q_P = u_P**refinement.cam_exponent, u_P
    if refinement.kind == "foreground":
        probability_P = reference_probability(fine_CHW, deep_CHW, head).ravel()
        q_P = factor_P * probability_P
        q_P = q_P / q_P.max()
        factor_P = factor_P * probability_P**refinement.head_exponent
    features_PC = fine_CHW.astype(np.float64).reshape(channels, -1).T
    standard_PC = (features_PC - features_PC.mean(0)) / (features_PC.std(0) + 1e-3)
    x_PC = np.hstack([standard_PC / np.sqrt(channels), np.ones((height * width, 1))])
    penalty = np.diag([0.01] * channels + [1e-6])
    count = height * width
    weights = np.linalg.inv(x_PC.T @ x_PC / count + penalty) @ (x_PC.T @ (2 * q_P - 1) / count)
    ridge_P = 1 / (1 + np.exp(-refinement.slope * (x_PC @ weights)))
    return (ridge_P * factor_P).reshape(height, width)


def reference_probability(
    fine_CHW: np.ndarray, deep_CHW: np.ndarray | None, head: ForegroundHead
) -> np.ndarray:
    """Return the probability of the foreground, float64 [H, W]."""
    z_HW = np.tensordot(head.fine_C, fine_CHW.astype(np.float64), 1) + head.bias
    if deep_CHW is not None and len(head.deep_C):
        deep_hw = np.tensordot(head.deep_C, deep_CHW.astype(np.float64), 1)
        z_HW = z_HW + _upsampled(deep_hw, *z_HW.shape)
    return 1 / (1 + np.exp(-4 * z_HW))


def random_features(
    rng: np.random.Generator, batch: int, channels: int, grid: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Return fine and deep features of a batch, of unequal means and scales; some channels are constant."""
    height, width = grid
    fine_BCHW = rng.normal(size=(batch, channels, height, width)) * rng.uniform(0, 3, (1, channels, 1, 1))
    fine_BCHW += rng.normal(size=(1, channels, 1, 1))
    fine_BCHW[:, rng.random(channels) < 0.1] = 0.7
    deep_BCHW = rng.normal(size=(batch, 2 * channels, (height + 1) // 2, (width + 1) // 2))
    return fine_BCHW.astype(np.float32), deep_BCHW.astype(np.float32)


def random_head(rng: np.random.Generator, fine_channels: int, deep_channels: int) -> ForegroundHead:
    """Return a head whose scores are about 1 in magnitude."""
    fine_C = rng.normal(size=fine_channels) / (2 * np.sqrt(fine_channels))
    return ForegroundHead(fine_C, rng.normal(size=deep_channels) / np.sqrt(deep_channels), 0.1)


def _upsampled(map_hw: np.ndarray, height: int, width: int) -> np.ndarray:
    return cv2.resize(map_hw, (width, height), interpolation=cv2.INTER_LINEAR)
