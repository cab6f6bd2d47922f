import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from virtual import simulate

from redline.bench.arrivals import schedule
from redline.bench.stats import MISS, quantile_ms
from redline.errors import UsageError

_GAPS = st.lists(st.integers(1, 10**8), min_size=1, max_size=60)
_SERVICE = st.lists(st.integers(1, 5 * 10**8), min_size=1, max_size=60)


@given(_GAPS, _SERVICE)
@settings(max_examples=50)
def test_coordinated_omission_is_impossible(gaps: list[int], service: list[int]) -> None:
    """Whatever the server does, each latency is what a queue fed on schedule gives: all that a stall hits pay."""
    due = list(itertools.accumulate(gaps))
    run = simulate(due, service)
    free, want = 0, []
    for i, at in enumerate(due):
        free = max(free, at) + service[i % len(service)]
        want.append(free - at)
    assert run.latency_ns.tolist() == want
    assert not run.late_ns.any()


def test_a_stall_is_seen_whole() -> None:
    """300 ms every 3 s at 1,000/s: a closed loop reports 1 ms, the open loop what users would see."""
    service = [300_000_000] + [100_000] * 2999
    run = simulate(schedule(1000, 12, "constant").tolist(), service)
    assert 250 < quantile_ms(run.latency_ns, 0.99) < 300


def test_errors_and_timeouts_are_misses_and_the_warm_up_is_apart() -> None:
    due = [i * 10_000_000 for i in range(100)]
    run = simulate(due, [1_000_000], fault=lambda i: "HTTP 500" if i % 10 == 0 else None, warmup_ns=500_000_000)
    assert run.errors == {"HTTP 500": 5}
    assert (run.latency_ns == MISS).sum() == 5
    assert len(run.latency_ns) == 50
    assert run.due_ns[0] == 0
    slow = simulate(due, [2_000_000_000], timeout_ns=1_000_000_000)
    assert slow.errors == {"timeout": 100}


@given(st.floats(1, 2000), st.floats(0.1, 5), st.integers(0, 9))
def test_schedules_are_ascending_repeatable_and_inside(rate: float, seconds: float, seed: int) -> None:
    due = schedule(rate, seconds, "poisson", seed)
    assert (np.diff(due) >= 0).all()
    assert not len(due) or due[-1] < seconds * 1e9
    assert (due == schedule(rate, seconds, "poisson", seed)).all()
    assert len(schedule(rate, seconds, "constant")) == max(int(rate * seconds), 1)


def test_poisson_keeps_its_rate() -> None:
    gaps = np.diff(schedule(1000, 60, "poisson", 3))
    assert gaps.mean() == pytest.approx(1e6, rel=0.02)
    assert gaps.std() == pytest.approx(1e6, rel=0.03)  # exponential: deviation = mean


@pytest.mark.parametrize(
    ("rate", "seconds", "kind"), [(0, 1, "poisson"), (1, 0, "poisson"), (float("nan"), 1, "poisson"), (1, 1, "x")]
)
def test_impossible_schedules_are_refused(rate: float, seconds: float, kind: str) -> None:
    with pytest.raises(UsageError):
        schedule(rate, seconds, kind)
