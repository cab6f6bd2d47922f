"""When requests are due: decided before the first is sent, so no answer can delay the next question."""

import numpy as np

from redline.bench.stats import Latencies
from redline.errors import UsageError

KINDS = ("poisson", "constant")


def schedule(rate_rps: float, duration_s: float, kind: str = "poisson", seed: int = 0) -> Latencies:
    """Due times in ns from the start, ascending, all before duration_s."""
    if not (0 < rate_rps <= 1e6 and 0 < duration_s <= 86_400):
        raise UsageError(
            f"wanted 0 < rate <= 1,000,000/s and 0 < duration <= 24 h, got {rate_rps}/s for {duration_s} s"
        )
    if kind == "constant":
        due_s = np.arange(max(int(rate_rps * duration_s), 1)) / rate_rps
    elif kind == "poisson":
        rng = np.random.default_rng(seed)
        expected = rate_rps * duration_s
        gaps_s = rng.exponential(1 / rate_rps, size=int(expected + 10 * expected**0.5 + 20))
        due_s = np.cumsum(gaps_s)
    else:
        raise UsageError(f"unknown arrivals {kind!r}; known: {', '.join(KINDS)}")
    return (due_s[due_s < duration_s] * 1e9).astype(np.int64)
