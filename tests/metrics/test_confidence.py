"""Tests of intervals: Wilson against scipy, Poisson weights against their distribution and generator."""

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, chisquare, poisson

from camworker.metrics.confidence import REPLICATES, percentile_interval, poisson_weights, uniforms, wilson
from camworker.metrics.ground_truth.truth import hash_ids

HASHES = np.random.default_rng(0).integers(0, 2**64, 2000, np.uint64)


@given(st.integers(1, 10**6).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_equals_scipy(counts: tuple[int, int]) -> None:
    expected = binomtest(*counts).proportion_ci(0.95, method="wilson")
    assert wilson(*counts) == pytest.approx([expected.low, expected.high], abs=1e-12)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        # Newcombe 1998, table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29.
        ((81, 263), [0.2553, 0.3662]),
        ((15, 148), [0.0624, 0.1605]),
        ((0, 20), [0.0000, 0.1611]),
        ((1, 29), [0.0061, 0.1718]),
    ],
)
def test_wilson_equals_published_values(counts: tuple[int, int], expected: list[float]) -> None:
    assert wilson(*counts) == pytest.approx(expected, abs=5e-5)


def test_wilson_stays_within_0_and_1() -> None:
    for trials in (1, 3, 10, 50_000):
        low, high = wilson(0, trials)[0], wilson(trials, trials)[1]
        assert 0 <= low < 1e-12
        assert 1 - 1e-12 < high <= 1


def test_percentiles_ignore_replicates_without_a_value() -> None:
    # 41 values a fortieth apart: their 2.5% and 97.5% quantiles are the second and the last but one.
    drawn = np.arange(41) / 40
    assert percentile_interval(drawn) == (0.025, 0.975)
    holes = np.full(100, np.nan)
    holes[7:48] = drawn[::-1]
    assert percentile_interval(holes) == (0.025, 0.975)
    assert percentile_interval(np.array([np.nan, 0.5])) == (0.5, 0.5)
    assert percentile_interval(np.full(3, np.nan)) is None


def test_uniforms_are_splitmix64() -> None:
    # The first outputs of the generator seeded with 1234567, as they are published.
    outputs = [
        *(6457827717110365317, 3203168211198807973, 9817491932198370423),
        *(4593380528125082431, 16408922859458223821),
    ]
    drawn = uniforms(np.array([1234567], np.uint64), np.arange(1, 6, dtype=np.uint64))
    assert drawn.tolist() == [(output >> 11) / 2**53 for output in outputs]


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**41))
def test_uniforms_wrap_as_64_bits_do(hashed: int, stream: int) -> None:
    x = (hashed + stream * 0x9E3779B97F4A7C15) % 2**64
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    x ^= x >> 31
    (drawn,) = uniforms(np.array([hashed], np.uint64), np.uint64(stream))
    assert drawn == (x >> 11) / 2**53
    assert 0 <= drawn < 1


def test_weights_are_poisson() -> None:
    weights_NR = poisson_weights(HASHES)
    assert weights_NR.shape == (len(HASHES), REPLICATES)
    assert weights_NR.min() == 0
    counts = np.bincount(weights_NR.ravel(), minlength=7)
    expected = poisson(1).pmf(range(6)) * weights_NR.size
    rest = weights_NR.size - expected.sum()
    assert chisquare([*counts[:6], counts[6:].sum()], [*expected, rest]).pvalue > 1e-3


def test_weights_of_replicates_and_of_images_are_independent() -> None:
    weights_NR = poisson_weights(HASHES).astype(float)
    # Means of rows and columns stay within five standard errors, correlations likewise.
    assert abs(weights_NR.mean(0) - 1).max() < 5 / math.sqrt(len(HASHES))
    assert abs(weights_NR.mean(1) - 1).max() < 5 / math.sqrt(REPLICATES)
    between_replicates = np.corrcoef(weights_NR.T)[np.triu_indices(REPLICATES, 1)]
    assert abs(between_replicates).max() < 5 / math.sqrt(len(HASHES))
    between_images = np.corrcoef(weights_NR[:100])[np.triu_indices(100, 1)]
    assert abs(between_images).max() < 5 / math.sqrt(REPLICATES)


def test_consecutive_ids_draw_independently() -> None:
    ids = [f"ILSVRC2012_val_{n:08d}.JPEG" for n in range(1, 1001)]
    weights_NR = poisson_weights(hash_ids(pa.array(ids))).astype(float)
    assert abs(np.corrcoef(weights_NR[:-1, 0], weights_NR[1:, 0])[0, 1]) < 5 / math.sqrt(1000)
    assert abs(weights_NR.mean() - 1) < 5 / math.sqrt(weights_NR.size)


def test_the_weights_of_an_image_do_not_depend_on_other_images() -> None:
    weights_NR = poisson_weights(HASHES)
    order = np.random.default_rng(1).permutation(len(HASHES))
    assert (poisson_weights(HASHES[order]) == weights_NR[order]).all()
    assert (poisson_weights(HASHES[5:6]) == weights_NR[5:6]).all()
    assert poisson_weights(HASHES[:0]).shape == (0, REPLICATES)


def test_a_weight_is_the_quantile_of_its_uniform() -> None:
    streams = np.arange(1, REPLICATES + 1, dtype=np.uint64)
    expected = poisson(1).ppf(uniforms(HASHES[:50, None], streams))
    assert (poisson_weights(HASHES[:50]) == expected).all()


def test_another_seed_gives_other_weights() -> None:
    first, second = (poisson_weights(HASHES, seed).astype(float) for seed in (0, 1))
    both = np.corrcoef(np.concatenate([first, second], axis=1).T)
    assert abs(both[np.triu_indices(len(both), 1)]).max() < 6 / math.sqrt(len(HASHES))
