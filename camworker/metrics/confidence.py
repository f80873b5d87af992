"""Intervals: Wilson's for plain shares, and a Poisson bootstrap whose replicates merge like any other sum."""

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

REPLICATES: Final = 200

_Z: Final = 1.959963984540054  # 97.5% quantile of the normal distribution
# P(Poisson(1) <= k) for k = 0, 1, ...: a draw is the number of these below a uniform.
_POISSON: Final = np.cumsum([math.exp(-1) / math.factorial(k) for k in range(12)])


def wilson(successes: int, trials: int) -> list[float]:
    """The 95% score interval of a share (Wilson 1927): [low, high]."""
    share, z2 = successes / trials, _Z**2
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = _Z / (1 + z2 / trials) * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials**2))
    return [max(0.0, centre - half), min(1.0, centre + half)]


def percentile_interval(replicates_R: NDArray[np.floating]) -> list[float] | None:
    """The middle 95% of the replicates that have a value: [low, high]; None when none has one."""
    drawn = replicates_R[np.isfinite(replicates_R)]
    return [float(q) for q in np.quantile(drawn, [0.025, 0.975])] if len(drawn) else None


def poisson_weights(hashes_N: NDArray[np.uint64], seed: int = 0) -> NDArray[np.int8]:
    """Poisson(1) draws [N, REPLICATES], a function of (seed, replicate, hash of the image's id) alone.

    An image has the same weights whatever rows it is tallied with, and in every recipe.
    """
    first = np.uint64(seed * REPLICATES + 1)
    uniform = uniforms(hashes_N[:, None], np.arange(REPLICATES, dtype=np.uint64) + first)
    return np.searchsorted(_POISSON, uniform, side="right").astype(np.int8)


def uniforms(hashes: NDArray[np.uint64], stream: NDArray[np.uint64] | np.uint64) -> NDArray[np.float64]:
    """Numbers in [0, 1), a function of hash and stream: splitmix64's finalizer (Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        x = hashes + stream * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
    return (x >> np.uint64(11)).astype(np.float64) * 2.0**-53
