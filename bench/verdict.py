"""Held, broken or invalid: what a run proves about the red line."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from redline.bench.load import Run
from redline.bench.stats import Latencies, quantile_interval_ms, quantile_ms, samples_needed
from redline.verdict import Verdict

HELD, BROKEN, INVALID = "held", "broken", "invalid"
EXIT_CODES = {HELD: 0, BROKEN: 1, INVALID: 4}


@dataclass(frozen=True, slots=True, kw_only=True)
class RedLine:
    p99_ms: float
    quantile: float = 0.99
    confidence: float = 0.99  # of each bound: 459 samples at least
    max_late: float = 0.05  # lateness p99, as a share of p99_ms
    max_neighbors: float = 0.05  # of the server's cores, used by other processes
    max_drift: float = 0.1  # gap between the halves' intervals, as a share of p99_ms


@dataclass(frozen=True, slots=True)
class Finding:
    status: str
    why: str

    @property
    def verdict(self) -> Verdict:
        return Verdict(self.status == HELD, self.why)


def words_rate(rate_rps: float) -> str:
    return f"{rate_rps:,.0f}/s" if rate_rps >= 100 else f"{rate_rps:.3g}/s"


def late_p99_ms(run: Run) -> float:
    return quantile_ms(run.late_ns, 0.99)


def _drift_ms(latency_ns: Latencies, line: RedLine) -> float:
    """How far apart the intervals of the two halves' quantiles are; 0 when they overlap."""
    (low_a, high_a), (low_b, high_b) = (
        quantile_interval_ms(half, line.quantile, line.confidence) for half in np.array_split(latency_ns, 2)
    )
    return max(low_a - high_b, low_b - high_a, 0.0)


def _excuse(finding: Finding, run: Run, line: RedLine) -> Finding:
    """A server that broke the line while others used its cores was not measured; one that held it was."""
    if finding.status != BROKEN or run.neighbors <= line.max_neighbors:
        return finding
    return Finding(INVALID, f"other processes used {run.neighbors:.0%} of the server's cores: {finding.why}")


def judge(run: Run, line: RedLine) -> Finding:
    """What the run proves.

    A late generator proves nothing, unless the server is over the line even with the worst lateness taken off: sending
    at most L later delays an answer by at most L. A lower bound over the line proves "broken" with any number of
    samples, and before drift is asked: an overloaded server drifts too. "Held" needs the samples and the upper bound.
    """
    return _excuse(_judge(run, line), run, line)


def _judge(run: Run, line: RedLine) -> Finding:
    n, errors = len(run.latency_ns), sum(run.errors.values())
    late_ms, limit_ms = late_p99_ms(run), line.max_late * line.p99_ms
    p99 = quantile_ms(run.latency_ns, line.quantile)
    low, high = quantile_interval_ms(run.latency_ns, line.quantile, line.confidence)
    counted = f"at {words_rate(run.rate_rps)} (N {n:,}, {errors:,} error{'' if errors == 1 else 's'})"
    reading = f"p99 {p99:.1f} ms [{low:.1f}, {high:.1f}]"
    late_by_ms = float(run.late_ns.max(initial=0) / 1e6) if late_ms > limit_ms and n else 0.0
    if late_by_ms and low - late_by_ms <= line.p99_ms:
        return Finding(INVALID, f"the generator was late: lateness p99 {late_ms:.2f} ms > {limit_ms:.2f} ms {counted}")
    if low > line.p99_ms:
        return Finding(BROKEN, f"{reading} > {line.p99_ms:g} ms {counted}")
    if n < (needed := samples_needed(line.quantile, line.confidence)):
        return Finding(INVALID, f"too few samples: {n:,} of at least {needed:,} for a p99; run longer {counted}")
    if (drift := _drift_ms(run.latency_ns, line)) > line.max_drift * line.p99_ms:
        return Finding(INVALID, f"the run drifts: the p99 of its halves are at least {drift:.1f} ms apart {counted}")
    if p99 > line.p99_ms:
        return Finding(BROKEN, f"{reading} > {line.p99_ms:g} ms {counted}")
    if high > line.p99_ms:
        return Finding(INVALID, f"undecided: {reading} straddles {line.p99_ms:g} ms; run longer {counted}")
    return Finding(HELD, f"{reading} <= {line.p99_ms:g} ms {counted}")


def glance(run: Run, line: RedLine) -> Finding:
    """A search's short trial: which side of the line the reading is on, without the proof."""
    p99, late_ms = quantile_ms(run.latency_ns, line.quantile), late_p99_ms(run)
    late_by_ms = float(run.late_ns.max(initial=0) / 1e6)
    if late_ms > line.max_late * line.p99_ms and p99 - late_by_ms <= line.p99_ms:
        return Finding(INVALID, f"the generator was late: lateness p99 {late_ms:.2f} ms")
    ok = p99 <= line.p99_ms
    failed = ", ".join(f"{n:,} {kind}" for kind, n in sorted(run.errors.items()))
    why = f"p99 {p99:.1f} ms {'<=' if ok else '>'} {line.p99_ms:g} ms{f' ({failed})' if failed else ''}"
    return _excuse(Finding(HELD if ok else BROKEN, why), run, line)


def until_valid(
    attempt: Callable[[int], list[Run]], line: RedLine, attempts: int, judge: Callable[[Run, RedLine], Finding] = judge
) -> tuple[list[Run], list[Finding], int]:
    """The one place where an invalid run is repeated: each attempt measures every subject anew."""
    number = 0
    while True:
        runs = attempt(number)
        number += 1
        findings = [judge(run, line) for run in runs]
        short = any(len(run.latency_ns) < samples_needed(line.quantile, line.confidence) for run in runs)
        if short or number >= attempts or not any(f.status == INVALID for f in findings):
            return runs, findings, number
