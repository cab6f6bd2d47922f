"""What could make the generator late, kept away while it fires: other processes, its own garbage collector."""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def pinned(cpus: set[int] | None) -> Iterator[None]:
    """Keep this thread on `cpus` (None: where it is), and put it back afterwards."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus or before)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def undisturbed() -> Iterator[None]:
    """No garbage collection (tens of milliseconds in a full one), and real-time priority where we may have it.

    The generator sleeps nearly always and must be on time when it wakes, even if another process wants its core:
    without priority its lateness p99 is a scheduler's slice (4 ms) on a busy machine. Only for firing, never for slow
    work: two that compute at this priority take turns of 100 ms.
    """
    policy, priority, was_on = os.sched_getscheduler(0), os.sched_getparam(0), gc.isenabled()
    gc.collect()
    gc.disable()
    with suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, priority)
        if was_on:
            gc.enable()
