"""Quantiles of latencies with exact intervals, how many samples a quantile needs, and ratios of paired rounds."""

import math
from functools import cache

import numpy as np
from numpy.typing import NDArray

MISS = np.iinfo(np.int64).max  # the latency of a request that failed: later than any red line
Latencies = NDArray[np.int64]


def to_ms(ns: int) -> float:
    return math.inf if ns == MISS else ns / 1e6


def quantile_ms(latency_ns: Latencies, q: float) -> float:
    """Nearest-rank quantile. latency_ns: [N], one per request; infinite where it falls on a miss."""
    if not 0 < q < 1:
        raise ValueError(f"wanted a quantile in (0, 1), got {q}")
    if not len(latency_ns):
        return math.inf
    rank = max(math.ceil(q * len(latency_ns) - 1e-9), 1)  # 0.99 * 100 is 99.00000000000001
    return to_ms(int(np.partition(latency_ns, rank - 1)[rank - 1]))


@cache
def interval_ranks(n: int, q: float, confidence: float) -> tuple[int, int]:
    """Ranks (from 1) whose order statistics bound the q-quantile, each side at `confidence`; no distribution assumed.

    The number of samples below the true quantile is binomial(n, q). Rank 0 is minus infinity, rank n + 1 infinity.
    """
    from scipy.stats import binom

    low = int(binom.ppf(1 - confidence, n, q))  # the quantile is below this rank with P <= 1 - confidence
    high = int(binom.ppf(confidence, n, q)) + 1
    return low, high


def quantile_interval_ms(latency_ns: Latencies, q: float, confidence: float = 0.99) -> tuple[float, float]:
    """Exact (Clopper-Pearson) bounds of the q-quantile; 0 or infinity where the samples are too few to bound it."""
    n = len(latency_ns)
    if not n:
        return 0.0, math.inf
    low, high = interval_ranks(n, q, confidence)
    ordered = np.sort(latency_ns)
    return (to_ms(int(ordered[low - 1])) if low else 0.0), (to_ms(int(ordered[high - 1])) if high <= n else math.inf)


def samples_needed(q: float, confidence: float = 0.99, misses: int = 0) -> int:
    """Smallest N that proves the q-quantile below the red line when `misses` of N are above it: 459 for p99 at 99 %."""
    if not misses:
        return math.ceil(math.log(1 - confidence) / math.log(q) - 1e-9)
    from scipy.stats import binom

    low, high = misses, 2 * misses + 1
    while binom.cdf(misses, high, 1 - q) > 1 - confidence:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if binom.cdf(misses, middle, 1 - q) <= 1 - confidence else (middle, high)
    return high


def ratio_interval(
    a_ns: Latencies, b_ns: Latencies, confidence: float = 0.95, *, seed: int = 0, resamples: int = 2000
) -> tuple[float, float, float]:
    """median(a) / median(b) with its interval; a_ns, b_ns: [rounds], paired: round i of both ran side by side.

    A bootstrap over pairs, so what slowed a whole round slows both sides of it; seeded, so repeatable.
    """
    if a_ns.shape != b_ns.shape or a_ns.ndim != 1 or not len(a_ns):
        raise ValueError(f"wanted paired rounds, got shapes {a_ns.shape} and {b_ns.shape}")
    rng = np.random.default_rng(seed)
    a, b = a_ns.astype(np.float64), b_ns.astype(np.float64)
    ratios = np.empty(resamples)
    for i in range(resamples):  # one at a time: 2,000 x rounds at once would be gigabytes for a long run
        pick = rng.integers(len(a), size=len(a))
        ratios[i] = np.median(a[pick]) / np.median(b[pick])
    low, high = np.quantile(ratios, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(np.median(a) / np.median(b)), float(low), float(high)
