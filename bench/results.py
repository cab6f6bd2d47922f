"""What a load test found, in numbers that a page, a terminal and a JSON file share."""

import math
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from redline.bench.load import Run
from redline.bench.stats import MISS, quantile_interval_ms, quantile_ms
from redline.bench.verdict import BROKEN, EXIT_CODES, HELD, INVALID, Finding, RedLine, late_p99_ms
from redline.verdict import Verdict

_CURVE = (*np.arange(0.01, 0.90, 0.02), *np.arange(0.90, 0.99, 0.005), *np.arange(0.99, 0.9999, 0.0005))
_BINS = 60


def _finite(value: object) -> object:
    """JSON has no infinity: a quantile that fell on a miss becomes null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    return [_finite(v) for v in value] if isinstance(value, list | tuple) else value


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One rate's verdict. Latencies in ms from the scheduled time; math.inf where a quantile fell on a miss."""

    model: str
    url: str
    protocol: str
    arrivals: str
    seed: int
    rate_rps: float
    duration_s: float
    warmup_s: float
    sla_p99_ms: float
    confidence: float
    status: str  # held | broken | invalid
    why: str
    attempts: int
    checked: bool  # the first answers were compared with golden ones
    samples: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    p99_low_ms: float
    p99_high_ms: float
    late_p99_ms: float
    neighbors: float  # share of the server's cores that other processes used; 0 where that can't be told
    errors: dict[str, int]
    curve: list[tuple[float, float]] = field(repr=False)  # (quantile, ms)
    timeline: list[tuple[float, float, float, float]] = field(repr=False)  # (s, p50 ms, slowest ms, latest send ms)
    conditions: dict[str, Any] = field(repr=False)

    @property
    def verdict(self) -> Verdict:
        return Verdict(self.status == HELD, self.why)

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.status]

    def as_dict(self) -> dict[str, Any]:
        return {k: _finite(v) for k, v in asdict(self).items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchReport:
    """The highest rate that held; 0 when none did. limit_why: what stopped it there."""

    model: str
    url: str
    protocol: str
    sla_p99_ms: float
    rate_rps: float
    limit_why: str
    trials: list[dict[str, Any]]  # rate_rps, status, p99_ms, why, confirming; in the order they ran
    best: Report | None  # the run that confirmed rate_rps
    conditions: dict[str, Any] = field(repr=False)

    @property
    def verdict(self) -> Verdict:
        return Verdict(
            self.rate_rps > 0, f"p99 <= {self.sla_p99_ms:g} ms up to {self.rate_rps:.0f}/s; {self.limit_why}"
        )

    @property
    def status(self) -> str:
        if self.rate_rps > 0:
            return HELD
        return INVALID if any(t["status"] == INVALID for t in self.trials) else BROKEN

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.status]

    def as_dict(self) -> dict[str, Any]:
        return {k: _finite(v) for k, v in asdict(self).items()}


def timeline(run: Run) -> list[tuple[float, float, float, float]]:
    """Up to 60 slices of time; a slice with a miss has an infinite slowest."""
    if not len(run.due_ns):
        return []
    end_ns = int(run.due_ns[-1]) + 1
    edges = np.linspace(0, end_ns, min(_BINS, max(len(run.due_ns) // 10, 1)) + 1)
    rows = []
    for start, stop in pairwise(edges):
        here = (run.due_ns >= start) & (run.due_ns < stop)
        if here.any():
            latency = run.latency_ns[here]
            worst = math.inf if latency.max() == MISS else float(latency.max() / 1e6)
            rows.append((float(start / 1e9), quantile_ms(latency, 0.5), worst, float(run.late_ns[here].max() / 1e6)))
    return rows


def figures(run: Run, finding: Finding, line: RedLine) -> dict[str, Any]:
    """The fields of a Report that come from its run."""
    low, high = quantile_interval_ms(run.latency_ns, line.quantile, line.confidence)
    return {
        "rate_rps": run.rate_rps,
        "sla_p99_ms": line.p99_ms,
        "confidence": line.confidence,
        "status": finding.status,
        "why": finding.why,
        "samples": len(run.latency_ns),
        "p50_ms": quantile_ms(run.latency_ns, 0.5),
        "p95_ms": quantile_ms(run.latency_ns, 0.95),
        "p99_ms": quantile_ms(run.latency_ns, line.quantile),
        "p99_low_ms": low,
        "p99_high_ms": high,
        "late_p99_ms": late_p99_ms(run) if len(run.late_ns) else 0.0,
        "neighbors": run.neighbors,
        "errors": run.errors,
        "curve": [(round(float(q), 4), quantile_ms(run.latency_ns, float(q))) for q in _CURVE],
        "timeline": timeline(run),
    }
