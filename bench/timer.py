"""Wall time for the generator, exact to tens of microseconds: event loops round their own timers to 1 ms.

A kernel timer (timerfd) wakes the loop. Polling would be as exact on a core of one's own, but on a busy machine the
scheduler takes a whole slice (4 ms) from a process that never sleeps, and wakes at once one that mostly does.
"""

import asyncio
import ctypes
import heapq
import itertools
import os
import time
from collections.abc import Callable

from redline.errors import MissingError

_MONOTONIC, _ABSOLUTE = 1, 1  # CLOCK_MONOTONIC (which time.perf_counter_ns reads), TFD_TIMER_ABSTIME


class TimerClock:
    """The `Clock` of a real run; close it when done."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        if not hasattr(self._libc, "timerfd_create"):
            raise MissingError("the load generator needs Linux (timerfd)")
        self._fd = self._libc.timerfd_create(_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise MissingError(f"the load generator can't make a timer: {os.strerror(ctypes.get_errno())}")
        self._due: list[tuple[int, int, Callable[[], None]]] = []  # a heap; the number keeps equal times in order
        self._numbers = itertools.count()
        self._loop = loop
        loop.add_reader(self._fd, self._wake)

    def now_ns(self) -> int:
        return time.perf_counter_ns()

    def call_at(self, when_ns: int, callback: Callable[[], None]) -> None:
        heapq.heappush(self._due, (when_ns, next(self._numbers), callback))
        if self._due[0][2] is callback:
            self._arm()

    def _arm(self) -> None:
        when_ns = max(self._due[0][0], 1)  # 0 would disarm it
        setting = (ctypes.c_long * 4)(0, 0, when_ns // 1_000_000_000, when_ns % 1_000_000_000)
        self._libc.timerfd_settime(self._fd, _ABSOLUTE, ctypes.byref(setting), None)

    def _wake(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:
            return
        now_ns = time.perf_counter_ns()
        while self._due and self._due[0][0] <= now_ns:
            heapq.heappop(self._due)[2]()
        if self._due:
            self._arm()

    def close(self) -> None:
        self._loop.remove_reader(self._fd)
        os.close(self._fd)
