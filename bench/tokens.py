"""The token SLA: guidellm loads and measures in its own environment; here its figures are put right and judged.

guidellm counts the time to the first token (TTFT) from the send; an open loop counts from the schedule, so each
request's dispatch delay is added. The inter-token latency (ITL) of a request is its mean gap between tokens. Every
error and every answer with fewer tokens than asked is a miss of both.
"""

import json
import math
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from redline import artifact, machine
from redline.bench.load import Run
from redline.bench.neighbors import Neighbors
from redline.bench.results import _finite, timeline
from redline.bench.serving import free_ports, served
from redline.bench.stats import MISS, quantile_interval_ms, quantile_ms, samples_needed
from redline.bench.undisturbed import pinned
from redline.bench.verdict import BROKEN, EXIT_CODES, HELD, INVALID, Finding, RedLine, judge
from redline.errors import MeasurementError, UsageError
from redline.runtimes import llm_env
from redline.units import duration_ns
from redline.verdict import Verdict

_START_S = 120.0  # guidellm's own, and the last answers
# Of several guidellm workers each draws the same gaps from the same seed, so every gap comes once per worker: bursts of
# ten, not Poisson (seen in 0.8.1). One worker draws each gap once.
_ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "GUIDELLM__MAX_WORKER_PROCESSES": "1"}
_COLD_S = 400.0  # until a server is ready: vLLM's first start on a machine compiles


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSLA:
    """p99 of the time to the first token and of a request's mean gap between tokens, open loop at this rate."""

    ttft: str = "2s"
    itl: str = "60ms"
    rate: float = 3.0  # requests/s
    prompt_tokens: int = 64
    output_tokens: int = 24

    def __post_init__(self) -> None:
        if min(self.ttft_ms, self.itl_ms, self.prompt_tokens - 1, self.output_tokens - 1) <= 0 or not (
            0 < self.rate <= 1e4
        ):
            raise UsageError(f"TokenSLA: wanted times and a rate above zero, and two tokens or more, got {self}")

    @property
    def ttft_ms(self) -> float:
        return duration_ns(self.ttft) / 1e6

    @property
    def itl_ms(self) -> float:
        return duration_ns(self.itl) / 1e6

    @property
    def words(self) -> str:
        tokens = f"{self.prompt_tokens} + {self.output_tokens} tokens"
        return f"p99 TTFT <= {self.ttft_ms:g} ms, ITL <= {self.itl_ms:g} ms at {self.rate:g}/s of {tokens}"

    @property
    def table(self) -> dict[str, Any]:
        """As a manifest has it."""
        times = {"ttft_ms": self.ttft_ms, "itl_ms": self.itl_ms, "rate_rps": self.rate}
        return times | {"prompt_tokens": self.prompt_tokens, "output_tokens": self.output_tokens}

    def seconds_needed(self) -> float:
        """How long a run must be for its p99 to be provable, with a twentieth more."""
        return 1.05 * samples_needed(0.99) / self.rate


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenReport:
    model: str
    url: str
    sla: dict[str, Any]
    status: str
    why: str
    attempts: int
    samples: int
    errors: dict[str, int]
    ttft_ms: dict[str, float]  # p50, p99, low, high: from the schedule
    itl_ms: dict[str, float]
    late_p99_ms: float
    neighbors: float  # share of vLLM's cores that other processes used; 0 where that can't be told
    tokens_per_s: float  # of output
    timeline: list[tuple[float, float, float, float]]  # of TTFT
    conditions: dict[str, Any]

    @property
    def verdict(self) -> Verdict:
        return Verdict(self.status == HELD, self.why)

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.status]

    def as_dict(self) -> dict[str, Any]:
        return {k: _finite(v) for k, v in asdict(self).items()}


@dataclass(frozen=True, slots=True)
class Tokens:
    """What guidellm saw: two views of one run, on one schedule."""

    ttft: Run
    itl: Run
    tokens_per_s: float


def read_guidellm(table: Mapping[str, Any], sla: TokenSLA, neighbors: float = 0.0) -> Tokens:
    """From guidellm's JSON. neighbors: share of vLLM's cores that other processes used.

    Raises:
        MeasurementError: it holds no requests, or not what this version of guidellm is known to write.
    """
    try:
        (benchmark,) = table["benchmarks"]
        requests = benchmark["requests"]
        rows = [(r, kind) for kind in ("successful", "errored", "incomplete") for r in requests[kind] or ()]
        rows = [(r, kind) for r, kind in rows if _due_s(r) or kind == "errored"]
        begun_s = min((_due_s(r) for r, _ in rows if _due_s(r)), default=0.0)
        rows.sort(key=lambda row: _due_s(row[0]) or begun_s)
        due_s = np.array([_due_s(r) or begun_s for r, _ in rows], np.float64)
        late_ms = np.array([r["request_dispatch_delay"] or 0.0 for r, _ in rows], np.float64) * 1e3
        wrong = [_wrong(r, kind, sla) for r, kind in rows]
        first, between = (
            np.array([MISS if w else round(r[name] * 1e6) for (r, _), w in zip(rows, wrong, strict=True)], np.int64)
            for name in ("time_to_first_token_ms", "inter_token_latency_ms")
        )
        tokens = sum(r["output_tokens"] or 0 for r, _ in rows)
        ends = [r["info"]["timings"]["request_end"] or 0.0 for r, _ in rows]
    except (KeyError, TypeError, ValueError) as e:
        raise MeasurementError(f"guidellm's report is not as expected: {e!r}") from e
    if not rows:
        raise MeasurementError("guidellm's report holds no requests; is the server up?")
    due, late = _ns((due_s - due_s[0]) * 1e3), _ns(late_ms)
    errors = dict(Counter(w for w in wrong if w))
    first = np.where(first == MISS, MISS, first + late)
    lasted_s = max(max(ends) - float(due_s[0]), 1e-9)
    ttft = Run(
        rate_rps=sla.rate, due_ns=due, late_ns=late, latency_ns=first, errors=errors, neighbors=neighbors
    )  # fmt: skip
    return Tokens(ttft, replace(ttft, late_ns=np.zeros_like(late), latency_ns=between), tokens / lasted_s)


def _due_s(row: Mapping[str, Any]) -> float:
    """0 for a request that was never scheduled: left over at the end, or one that failed before it was sent."""
    return float(row["info"]["timings"]["targeted_start"] or 0.0)


def _wrong(row: Mapping[str, Any], kind: str, sla: TokenSLA) -> str | None:
    if kind != "successful":
        said = str(row["info"].get("error") or "").partition(" for url")[0].partition("\n")[0]
        return f"{kind}: {said[:80]}" if said else kind
    if row["time_to_first_token_ms"] is None or row["inter_token_latency_ms"] is None:
        return "no tokens"
    return "cut short" if row["output_tokens"] < sla.output_tokens else None


def _ns(ms: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.rint(ms * 1e6).astype(np.int64)


def judge_tokens(seen: Tokens, sla: TokenSLA) -> Finding:
    """Broken where either line is, invalid where either can't be told, held where both hold."""
    ttft = judge(seen.ttft, RedLine(p99_ms=sla.ttft_ms))
    itl = judge(seen.itl, RedLine(p99_ms=sla.itl_ms))
    named = [Finding(ttft.status, f"TTFT {ttft.why}"), Finding(itl.status, f"ITL {itl.why}")]
    for status in (BROKEN, INVALID):
        if found := [f.why for f in named if f.status == status]:
            return Finding(status, "; ".join(found))
    return Finding(HELD, "; ".join(f.why for f in named))


def run_guidellm(url: str, model: str, tokenizer: Path, sla: TokenSLA, count: int, cpus: set[int] | None) -> Any:
    """guidellm's report of `count` requests with random text.

    Raises:
        MissingError: its environment is not installed.
        MeasurementError: it failed; the end of what it said.
    """
    python = llm_env.python("guidellm")
    with tempfile.TemporaryDirectory(prefix="redline-guidellm-") as folder:
        out, seconds = Path(folder) / "report.json", count / sla.rate
        command = [
            *(str(python), "-m", "guidellm", "run", "--disable-console"),
            *("--backend", f"kind=openai_http,target={url},model={model}"),
            *("--profile", f"kind=poisson,rate={sla.rate:g}"),
            *("--constraint", f"kind=max_requests,count={count}"),
            *("--tokenizer", f"kind=hf_auto,model={tokenizer.resolve()}"),
            *("--data", f"kind=synthetic_text,prompt_tokens={sla.prompt_tokens},output_tokens={sla.output_tokens}"),
            *("--output", f"kind=json,path={out}"),
        ]
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | _ENVIRONMENT
        try:
            with pinned(cpus):  # the child inherits it
                done = subprocess.run(
                    command, capture_output=True, text=True, check=False, env=environment, cwd=folder,
                    timeout=2 * seconds + _START_S,
                )  # fmt: skip
        except subprocess.TimeoutExpired as e:
            raise MeasurementError(f"guidellm did not end within {2 * seconds + _START_S:.0f} s; is {url} up?") from e
        if done.returncode or not out.exists():
            tail = (done.stderr or done.stdout).strip()[-800:]
            raise MeasurementError(f"guidellm ended with exit code {done.returncode}: {tail}")
        return json.loads(out.read_text())


def measure(
    url: str, model: str, tokenizer: Path, sla: TokenSLA, *, duration_s: float, placement: str,
    cpus: set[int] | None = None, attempts: int = 2,
) -> TokenReport:  # fmt: skip
    """Open-loop load of chat requests at the SLA's rate, judged; an invalid run is repeated.

    cpus: the generator's; set where the server is a child of this process and has the others to itself.
    """
    count = math.ceil(duration_s * sla.rate)
    number = 0
    while True:
        number += 1
        neighbors = Neighbors(set(os.sched_getaffinity(0)) - cpus if cpus else ())
        table = run_guidellm(url, model, tokenizer, sla, count, cpus)
        seen = read_guidellm(table, sla, neighbors.share())
        finding = judge_tokens(seen, sla)
        if finding.status != INVALID or number >= attempts or count < samples_needed(0.99):
            break
    return TokenReport(
        model=model,
        url=url,
        sla=sla.table,
        status=finding.status,
        why=finding.why,
        attempts=number,
        samples=len(seen.ttft.latency_ns),
        errors=seen.ttft.errors,
        ttft_ms=_figures(seen.ttft),
        itl_ms=_figures(seen.itl),
        late_p99_ms=quantile_ms(seen.ttft.late_ns, 0.99),
        neighbors=seen.ttft.neighbors,
        tokens_per_s=seen.tokens_per_s,
        timeline=timeline(seen.ttft),
        conditions=machine.conditions() | {"placement": placement, "generator": llm_env.pins("guidellm")["guidellm"]},
    )


def sla_of(table: Mapping[str, Any]) -> TokenSLA:
    """From a manifest."""
    times = {"ttft": f"{table['ttft_ms']:f}ms", "itl": f"{table['itl_ms']:f}ms", "rate": table["rate_rps"]}
    return TokenSLA(**times, prompt_tokens=table["prompt_tokens"], output_tokens=table["output_tokens"])


def _figures(run: Run) -> dict[str, float]:
    low, high = quantile_interval_ms(run.latency_ns, 0.99)
    p50, p99 = quantile_ms(run.latency_ns, 0.5), quantile_ms(run.latency_ns, 0.99)
    return {"p50": p50, "p99": p99, "low": low, "high": high}


@contextmanager
def serving(found: artifact.Artifact) -> Iterator[str]:
    """The URL of an LLM artifact, served as `redline serve` would: vLLM's threads keep off the generator's core."""
    http, grpc = free_ports(2)
    argv = [sys.executable, "-m", "redline", "serve", str(found.path)]
    url = f"http://127.0.0.1:{http}"
    ready = f"{url}/v2/models/{found.manifest.name}/ready"
    with served([*argv, "--http-port", str(http), "--grpc-port", str(grpc)], ready, timeout_s=_COLD_S):
        yield url


def placed() -> tuple[set[int], str]:
    """(the generator's core, what to say of it)."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) == 1:
        return set(cores), "vLLM, the front and the generator share one core: figures are pessimistic"
    threads = ",".join(map(str, cores[:-1]))
    return {cores[-1]}, f"vLLM's threads on core(s) {threads}, generator on core {cores[-1]}, HTTP on any"
