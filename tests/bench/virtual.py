"""A loop whose time jumps to the next timer, and a server that exists only there."""

import asyncio
from collections.abc import Callable, Sequence

import numpy as np

from redline.bench.load import Done, Run, fire


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._virtual_s = 0.0
        super().__init__()

    def time(self) -> float:
        return self._virtual_s

    def _run_once(self) -> None:
        if not self._ready and self._scheduled:
            self._virtual_s = max(self._virtual_s, self._scheduled[0]._when)
        super()._run_once()


class VirtualClock:
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def now_ns(self) -> int:
        return round(self._loop.time() * 1e9)

    def call_at(self, when_ns: int, callback: Callable[[], None]) -> None:
        self._loop.call_at(when_ns / 1e9, callback)


class OneByOne:
    """Answers in order, one at a time; service_ns[i % n] for the i-th request; `fault(i)` says what goes wrong."""

    def __init__(self, clock: VirtualClock, service_ns: Sequence[int], fault: Callable[[int], str | None]) -> None:
        self._clock, self._service_ns, self._fault = clock, service_ns, fault
        self._count, self._free_ns = 0, 0
        self.picks: list[int] = []

    def send(self, request: int, done: Done) -> "OneByOne":
        i, self._count = self._count, self._count + 1
        self.picks.append(request)
        self._free_ns = max(self._free_ns, self._clock.now_ns()) + self._service_ns[i % len(self._service_ns)]
        end_ns = self._free_ns
        self._clock.call_at(end_ns, lambda: done(end_ns, self._fault(i)))
        return self

    def cancel(self) -> None:
        pass


def simulate(
    due_ns: Sequence[int],
    service_ns: Sequence[int],
    *,
    fault: Callable[[int], str | None] = lambda _: None,
    timeout_ns: int = 10**12,
    warmup_ns: int = 0,
) -> Run:
    due = np.asarray(due_ns, np.int64)

    async def inside() -> Run:
        clock = VirtualClock(asyncio.get_running_loop())
        wire = OneByOne(clock, service_ns, fault)
        picks = np.zeros(len(due), np.intp)
        return await fire(wire, due, picks, clock=clock, timeout_ns=timeout_ns, rate_rps=1, warmup_ns=warmup_ns)

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(inside())


def make_run(latency_ms: Sequence[float], late_ms: Sequence[float] | float = 0.0, rate_rps: float = 100.0) -> Run:
    from redline.bench.stats import MISS

    latency = np.asarray([MISS if np.isinf(v) else int(v * 1e6) for v in latency_ms], np.int64)
    late = np.broadcast_to(np.asarray(late_ms) * 1e6, latency.shape).astype(np.int64)
    errors = {"HTTP 500": int((latency == MISS).sum())} if (latency == MISS).any() else {}
    return Run(
        rate_rps=rate_rps, due_ns=np.arange(len(latency)) * 10_000_000, late_ns=late, latency_ns=latency, errors=errors
    )
