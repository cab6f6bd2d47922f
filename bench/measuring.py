"""Put a server under load from this process: one rate, two servers side by side, or the highest rate that holds."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np

from redline import machine
from redline.bench.arrivals import schedule
from redline.bench.connections import HttpPool
from redline.bench.grpc_wire import GrpcWire
from redline.bench.load import Run, fire, joined
from redline.bench.neighbors import Neighbors
from redline.bench.results import Report, SearchReport, figures
from redline.bench.search import Trial, highest
from redline.bench.stats import quantile_ms, ratio_interval
from redline.bench.timer import TimerClock
from redline.bench.undisturbed import pinned, undisturbed
from redline.bench.verdict import BROKEN, INVALID, Finding, RedLine, glance, until_valid, words_rate
from redline.bench.wire import Reader, differs, grpc_message, http_message, parse_target
from redline.errors import UsageError, missing_extra
from redline.tensors import Arrays

T = TypeVar("T")
_TRIAL_S, _CONFIRM_S = 3.0, 8.0
_FIRST_ANSWER_S = 10.0  # a cold server may take its time once


@dataclass(frozen=True)
class Subject:
    """Whom to ask what. `expected`: golden answers, checked before any time is taken."""

    url: str
    model: str
    requests: Sequence[Arrays]
    expected: Sequence[Arrays] = ()
    tolerance: float = 0.0
    protocol: str = "http-binary"

    def __post_init__(self) -> None:
        if not self.requests or (self.expected and len(self.expected) != len(self.requests)):
            raise UsageError(
                f"wanted requests, each with its answer or none, got {len(self.requests)}, {len(self.expected)}"
            )

    @cached_property
    def messages(self) -> list[bytes]:
        target = parse_target(self.url, self.model, self.protocol)
        if self.protocol == "grpc":
            return [grpc_message(self.model, r) for r in self.requests]
        return [http_message(target, r) for r in self.requests]


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How to ask."""

    arrivals: str = "poisson"
    seed: int = 0
    warmup_s: float = 1.0
    timeout_s: float = 2.0  # a later answer is a miss
    cpus: set[int] | None = None  # the generator's; None leaves it where it is
    server_cpus: set[int] | None = None  # set where the server is a child of this process and has these to itself
    placement: str = "server placed by its owner"


def _wire(subject: Subject, clock: TimerClock, reader: Reader) -> HttpPool | GrpcWire:
    target = parse_target(subject.url, subject.model, subject.protocol)
    if subject.protocol == "grpc":
        return GrpcWire(target.host, target.port, subject.messages, clock, reader.grpc)
    return HttpPool(target.host, target.port, subject.messages, clock, reader.http)


def _in_loop(work: Callable[[TimerClock], Coroutine[Any, Any, T]], load: Load) -> T:
    try:
        import uvloop
    except ImportError as e:
        raise missing_extra("bench", "the load generator") from e

    async def inside() -> T:
        clock = TimerClock(asyncio.get_running_loop())
        try:
            return await work(clock)
        finally:
            clock.close()

    with pinned(load.cpus), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(inside())


async def _ask(wire: HttpPool | GrpcWire, request: int, timeout_s: float) -> str | None:
    """One request; its error, if any."""
    answered: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
    handle = wire.send(request, lambda _, error: None if answered.done() else answered.set_result(error))
    try:
        return await asyncio.wait_for(answered, timeout_s)
    except TimeoutError:
        handle.cancel()
        return f"no answer in {timeout_s:g} s"


def first_answers(subject: Subject, load: Load) -> Finding | None:
    """Ask each distinct request once, compare with the golden answers; a Finding says what is wrong."""

    async def work(clock: TimerClock) -> Finding | None:
        reader = Reader(subject.protocol)
        wire = _wire(subject, clock, reader)
        try:
            for i in range(len(subject.requests)):
                error = await _ask(wire, i, _FIRST_ANSWER_S)
                if error is None and subject.expected:
                    error = differs(reader.last, subject.expected[i], subject.tolerance)
                if error is not None:
                    said = f": {reader.note}" if reader.note else ""
                    return Finding(BROKEN, f"request {i} to {subject.url} before the run: {error}{said}")
        finally:
            await wire.close()
        return None

    return _in_loop(work, load)


def run_once(subject: Subject, load: Load, *, rate_rps: float, duration_s: float, seed: int, calm_ms: float) -> Run:
    """One run, after the backlog of an earlier one is gone: a lone request is answered within calm_ms."""
    warmup_ns = int(load.warmup_s * 1e9)
    due_ns = schedule(rate_rps, load.warmup_s + duration_s, load.arrivals, seed)
    picks = np.random.default_rng(seed).integers(len(subject.requests), size=len(due_ns))

    async def work(clock: TimerClock) -> Run:
        wire = _wire(subject, clock, Reader(subject.protocol))
        try:
            for _ in range(5):
                if await _ask(wire, 0, 1.0) is None and await _ask(wire, 0, calm_ms / 1e3) is None:
                    break
            neighbors = Neighbors(load.server_cpus or ())
            with undisturbed():
                run = await fire(
                    wire, due_ns, picks, clock=clock, timeout_ns=int(load.timeout_s * 1e9), rate_rps=rate_rps,
                    warmup_ns=warmup_ns,
                )  # fmt: skip
            return replace(run, neighbors=neighbors.share())
        finally:
            await wire.close()

    return _in_loop(work, load)


@dataclass(frozen=True, slots=True)
class _Plan:
    rate_rps: float
    duration_s: float  # of all rounds together
    attempts: int
    rounds: int


_NONE = np.empty(0, np.int64)
_NOTHING = Run(rate_rps=0.0, due_ns=_NONE, late_ns=_NONE, latency_ns=_NONE, errors={"before the run": 1})


def _describe(subject: Subject, load: Load) -> dict[str, Any]:
    conditions = machine.conditions() | {"placement": load.placement, "timeout_s": load.timeout_s}
    return {"model": subject.model, "url": subject.url, "protocol": subject.protocol, "conditions": conditions}


def _in_turns(subjects: list[Subject], line: RedLine, load: Load, plan: _Plan, number: int) -> list[Run]:
    """A B A B: what drifts, drifts for all; the n-th requests of all are the same and due at the same moment."""
    taken: list[list[Run]] = [[] for _ in subjects]
    for turn in range(plan.rounds):
        for subject, mine in zip(subjects, taken, strict=True):
            seed, part_s = load.seed + 1000 * number + turn, plan.duration_s / plan.rounds
            mine.append(
                run_once(subject, load, rate_rps=plan.rate_rps, duration_s=part_s, seed=seed, calm_ms=line.p99_ms)
            )
    return [joined(mine) for mine in taken]


def _judged(subjects: list[Subject], p99_ms: float, load: Load, plan: _Plan) -> tuple[list[Run], list[Report]]:
    line = RedLine(p99_ms=p99_ms)
    load = replace(load, timeout_s=max(load.timeout_s, 2 * p99_ms / 1e3))  # an answer past the line is worth a figure
    early = [first_answers(subject, load) for subject in subjects]
    if any(early):
        runs, number = [replace(_NOTHING, rate_rps=plan.rate_rps) for _ in subjects], 0
        findings = [e or Finding(INVALID, "not run: the other side does not answer as it should") for e in early]
    else:
        runs, findings, number = until_valid(
            lambda number: _in_turns(subjects, line, load, plan, number), line, plan.attempts
        )
    reports = [
        Report(
            arrivals=load.arrivals,
            seed=load.seed,
            duration_s=plan.duration_s,
            warmup_s=load.warmup_s,
            attempts=number,
            checked=bool(subject.expected),
            **figures(run, finding, line),
            **_describe(subject, load),
        )
        for subject, run, finding in zip(subjects, runs, findings, strict=True)
    ]
    return runs, reports


def measure(
    subject: Subject, *, rate_rps: float, duration_s: float, p99_ms: float, load: Load | None = None, attempts: int = 3
) -> Report:
    """Open-loop load at one rate, judged. A server that is dead or wrong is broken at once."""
    _, (report,) = _judged([subject], p99_ms, load or Load(), _Plan(rate_rps, duration_s, attempts, 1))
    return report


def measure_pair(
    a: Subject, b: Subject, *, rate_rps: float, duration_s: float, p99_ms: float, load: Load | None = None
) -> tuple[Report, Report, tuple[float, float, float] | None]:
    """Both on one schedule, in turns; the last value is median(a) / median(b) of paired requests with its interval."""
    runs, (first, second) = _judged([a, b], p99_ms, load or Load(), _Plan(rate_rps, duration_s, 3, 2))
    return first, second, ratio_interval(runs[0].latency_ns, runs[1].latency_ns) if first.attempts else None


def _silent(_: str) -> None:
    pass


def highest_rate(
    subject: Subject,
    *,
    p99_ms: float,
    start_rps: float = 250.0,
    load: Load | None = None,
    precision: float = 0.05,
    say: Callable[[str], None] = _silent,
) -> SearchReport:
    """The highest rate at which p99 <= p99_ms is proven, to `precision`; `say` hears of every trial."""
    line, load = RedLine(p99_ms=p99_ms), load or Load()
    brief = replace(load, timeout_s=max(10 * p99_ms / 1e3, 0.5))  # an overloaded trial must not leave a long queue
    described = _describe(subject, load)
    if early := first_answers(subject, load):
        return SearchReport(sla_p99_ms=p99_ms, rate_rps=0.0, limit_why=early.why, trials=[], best=None, **described)
    confirmed: list[Report] = []

    def trial(rate_rps: float) -> Trial:
        seconds = min(max(_TRIAL_S, 600 / rate_rps), 20.0)

        def attempt(number: int) -> list[Run]:
            seed = load.seed + number
            return [run_once(subject, brief, rate_rps=rate_rps, duration_s=seconds, seed=seed, calm_ms=p99_ms)]

        (run,), (finding,), _ = until_valid(attempt, line, 3, glance)
        say(f"{words_rate(rate_rps)} {finding.status}: {finding.why}")
        return Trial(rate_rps, finding.status, quantile_ms(run.latency_ns, line.quantile), finding.why)

    def confirm(rate_rps: float) -> Trial:
        seconds = min(max(_CONFIRM_S, 700 / rate_rps), 90.0)
        report = measure(subject, rate_rps=rate_rps, duration_s=seconds, p99_ms=p99_ms, load=load, attempts=2)
        confirmed.append(report)
        say(f"{words_rate(rate_rps)} {report.status}, confirming: {report.why}")
        return Trial(rate_rps, report.status, report.p99_ms, report.why, confirming=True)

    floor_rps = start_rps / 32  # lower ones would take minutes to measure
    found = highest(trial, confirm, start_rps=start_rps, precision=precision, floor_rps=floor_rps)
    limit = f"{found.limit.rate_rps:.0f}/s did not hold: {found.limit.why}" if found.limit else "no limit was reached"
    return SearchReport(
        sla_p99_ms=p99_ms,
        rate_rps=found.rate_rps,
        limit_why=limit,
        trials=[asdict(t) for t in found.trials],
        best=confirmed[-1] if found.rate_rps else None,
        **described,
    )
