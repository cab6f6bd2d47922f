"""The open-loop generator: sends each request when it is due, whatever became of the ones before."""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from redline.bench.stats import MISS, Latencies

Done = Callable[[int, str | None], None]  # (when the answer was complete, in ns; what was wrong with it)
_LEAD_NS = 5_000_000


class Clock(Protocol):
    """`timer.TimerClock`, or a virtual one in tests."""

    def now_ns(self) -> int: ...

    def call_at(self, when_ns: int, callback: Callable[[], None]) -> None: ...


class Handle(Protocol):
    def cancel(self) -> object: ...


class Wire(Protocol):
    """Carries prepared request number `request`; `done` is called once, never from inside `send`, unless cancelled."""

    def send(self, request: int, done: Done) -> Handle: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What one run saw, one entry a counted request; the warm-up is already cut off."""

    rate_rps: float
    due_ns: Latencies  # from the end of the warm-up
    late_ns: Latencies  # the generator's own fault: handed to the wire - due
    latency_ns: Latencies  # answer complete - due; MISS where it failed
    errors: dict[str, int]
    neighbors: float = 0.0  # share of the server's cores that other processes used, where that can be told


class _Volley:
    """One schedule under way."""

    def __init__(self, wire: Wire, due_ns: Latencies, picks: NDArray[np.intp], clock: Clock, timeout_ns: int) -> None:
        self._wire, self._clock, self._timeout_ns = wire, clock, timeout_ns
        self._due: list[int] = due_ns.tolist()
        self._picks: list[int] = picks.tolist()
        self._next = 0
        self._start = clock.now_ns() + _LEAD_NS
        self._pending: dict[int, Handle] = {}  # in order of sending, so the oldest come first
        self.late_ns = np.zeros(len(due_ns), np.int64)
        self.latency_ns = np.full(len(due_ns), MISS, np.int64)
        self.errors: dict[int, str] = {}
        self.over = asyncio.Event()
        clock.call_at(self._start + (self._due[0] if self._due else 0), self._send_due)
        clock.call_at(self._start + timeout_ns // 8, self._sweep)

    def _send_due(self) -> None:
        clock, due, start = self._clock, self._due, self._start
        while (i := self._next) < len(due):
            if due[i] + start > clock.now_ns():
                clock.call_at(due[i] + start, self._send_due)
                return
            self._next += 1
            self._pending[i] = self._wire.send(self._picks[i], partial(self._finish, i))
            self.late_ns[i] = clock.now_ns() - start - due[i]
        self._check_over()

    def _finish(self, i: int, at_ns: int, error: str | None) -> None:
        if self._pending.pop(i, None) is None:
            return  # already given up on
        latency_ns = at_ns - self._start - self._due[i]
        if error is None and latency_ns > self._timeout_ns:
            error = "timeout"
        if error is None:
            self.latency_ns[i] = latency_ns
        else:
            self.errors[i] = error
        self._check_over()

    def _sweep(self) -> None:
        now_ns = self._clock.now_ns() - self._start
        while self._pending and self._due[first := next(iter(self._pending))] + self._timeout_ns <= now_ns:
            self._pending.pop(first).cancel()
            self.errors[first] = "timeout"
        self._check_over()
        if not self.over.is_set():
            self._clock.call_at(now_ns + self._start + self._timeout_ns // 8, self._sweep)

    def _check_over(self) -> None:
        if self._next == len(self._due) and not self._pending:
            self.over.set()


async def fire(
    wire: Wire,
    due_ns: Latencies,
    picks: NDArray[np.intp],
    *,
    clock: Clock,
    timeout_ns: int,
    rate_rps: float,
    warmup_ns: int = 0,
) -> Run:
    """Send picks[i] at due_ns[i]; wait for every answer or its timeout. What was due before warmup_ns isn't counted."""
    volley = _Volley(wire, due_ns, picks, clock, timeout_ns)
    await volley.over.wait()
    counted = due_ns >= warmup_ns
    return Run(
        rate_rps=rate_rps,
        due_ns=due_ns[counted] - warmup_ns,
        late_ns=volley.late_ns[counted],
        latency_ns=volley.latency_ns[counted],
        errors=dict(Counter(error for i, error in sorted(volley.errors.items()) if counted[i])),
    )


def joined(runs: Sequence[Run]) -> Run:
    """Rounds of one subject as one run, one after the other."""
    starts = np.cumsum([0, *(int(r.due_ns[-1]) + 1 if len(r.due_ns) else 0 for r in runs[:-1])])
    errors: dict[str, int] = {}
    for run in runs:
        errors = {kind: errors.get(kind, 0) + run.errors.get(kind, 0) for kind in errors | run.errors}
    return Run(
        rate_rps=runs[0].rate_rps,
        due_ns=np.concatenate([r.due_ns + start for r, start in zip(runs, starts, strict=True)]),
        late_ns=np.concatenate([r.late_ns for r in runs]),
        latency_ns=np.concatenate([r.latency_ns for r in runs]),
        errors=errors,
        neighbors=max(run.neighbors for run in runs),
    )
