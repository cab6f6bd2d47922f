import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from redline.bench.stats import (
    MISS,
    interval_ranks,
    quantile_interval_ms,
    quantile_ms,
    ratio_interval,
    samples_needed,
)


@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=300), st.floats(0.01, 0.99))
def test_nearest_rank_is_the_smallest_value_that_covers_q(values: list[int], q: float) -> None:
    got = quantile_ms(np.array(values, np.int64), q)
    covered = [v for v in sorted(values) if sum(x <= v for x in values) >= q * len(values) - 1e-9]
    assert got == covered[0] / 1e6


@pytest.mark.parametrize(("n", "rank"), [(100, 99), (1000, 990), (101, 100), (1, 1)])
def test_p99_rank_survives_float_noise(n: int, rank: int) -> None:
    assert quantile_ms(np.arange(1, n + 1) * 1_000_000, 0.99) == rank


def test_misses_are_infinitely_late() -> None:
    latency = np.array([1_000_000] * 98 + [MISS] * 2, np.int64)
    assert quantile_ms(latency, 0.99) == math.inf
    assert quantile_ms(latency, 0.98) == 1
    assert quantile_ms(np.empty(0, np.int64), 0.99) == math.inf


@pytest.mark.parametrize(("misses", "n"), [(0, 459), (10, 2010)])
def test_samples_needed_as_published(misses: int, n: int) -> None:
    assert samples_needed(0.99, 0.99, misses) == n


@pytest.mark.parametrize("misses", [0, 1, 3])
def test_samples_needed_is_the_smallest(misses: int) -> None:
    n = samples_needed(0.95, 0.99, misses)
    assert binom.cdf(misses, n, 0.05) <= 0.01 < binom.cdf(misses, n - 1, 0.05)


@given(st.integers(1, 5000), st.sampled_from([0.5, 0.9, 0.99]), st.sampled_from([0.9, 0.95, 0.99]))
def test_ranks_cover_as_promised(n: int, q: float, confidence: float) -> None:
    low, high = interval_ranks(n, q, confidence)
    assert binom.cdf(low - 1, n, q) <= 1 - confidence + 1e-12  # the quantile is below the low rank
    assert binom.cdf(high - 1, n, q) >= confidence - 1e-12  # the quantile is not above the high rank
    assert 0 <= low <= high <= n + 1


def test_the_upper_bound_needs_459_samples() -> None:
    same = np.full(459, 1_000_000)
    assert quantile_interval_ms(same, 0.99)[1] == 1
    assert quantile_interval_ms(same[1:], 0.99)[1] == math.inf
    assert quantile_interval_ms(same[:0], 0.99) == (0, math.inf)


def test_ratio_of_paired_rounds_ignores_what_slows_both() -> None:
    rng = np.random.default_rng(1)
    noise = rng.lognormal(0, 1, 200)  # each round is slowed by its own factor, on both sides
    b = (1e6 * noise).astype(np.int64)
    ratio, low, high = ratio_interval(3 * b, b)
    assert low == pytest.approx(3) == high == ratio
    assert ratio_interval(b, b[::-1].copy(), seed=1) == ratio_interval(b, b[::-1].copy(), seed=1)


@pytest.mark.parametrize(("a", "b"), [([], []), ([1], [1, 2]), ([[1]], [[1]])])
def test_unpaired_rounds_are_refused(a: list[int], b: list[int]) -> None:
    with pytest.raises(ValueError, match="paired rounds"):
        ratio_interval(np.array(a, np.int64), np.array(b, np.int64))
