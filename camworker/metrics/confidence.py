"""Confidence intervals: Wilson's for shares, and a Poisson bootstrap whose replicates merge as sums do."""

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

REPLICATES: Final = 200

_Z: Final = 1.959963984540054  # 97.5% quantile of the normal distribution
# P(Poisson(1) <= k) for k = 0, 1, ...; a draw is the number of these that lie below a uniform number.
_POISSON: Final = np.cumsum([math.exp(-1) / math.factorial(k) for k in range(12)])


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """Return the 95% score interval (low, high) of a share (Wilson, JASA 1927)."""
    share, z2 = successes / trials, _Z**2
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = _Z / (1 + z2 / trials) * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def percentile_interval(replicates_R: NDArray[np.floating]) -> tuple[float, float] | None:
    """Return the middle 95% (low, high) of the replicates that are finite, None if none is."""
    finite = replicates_R[np.isfinite(replicates_R)]
    if not len(finite):
        return None
    low, high = np.quantile(finite, [0.025, 0.975])
    return float(low), float(high)


def poisson_weights(hashes_N: NDArray[np.uint64], seed: int = 0) -> NDArray[np.int8]:
    """Draw the weights of images in the replicates of a Poisson bootstrap (Chamandy et al., 2012).

    A weight depends only on the seed, the replicate and the image id, so an image has the same weights in
    every part and in every recipe.

    Args:
        hashes_N: Hashes of the image ids, [N].
        seed: Seed of the bootstrap.

    Returns:
        Draws of Poisson(1), int8 [N, REPLICATES].
    """
    first = np.uint64(seed * REPLICATES + 1)
    uniform = uniforms(hashes_N[:, None], np.arange(REPLICATES, dtype=np.uint64) + first)
    return np.searchsorted(_POISSON, uniform, side="right").astype(np.int8)


def uniforms(hashes: NDArray[np.uint64], stream: NDArray[np.uint64] | np.uint64) -> NDArray[np.float64]:
    """Return uniform numbers in [0, 1) that depend only on hash and stream.

    They are made with the finalizer of splitmix64 (Steele et al., OOPSLA 2014).

    Args:
        hashes: Hashes, broadcast against `stream`.
        stream: Number of the stream.
    """
    with np.errstate(over="ignore"):
        x = hashes + stream * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
    uniform: NDArray[np.float64] = (x >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return uniform
