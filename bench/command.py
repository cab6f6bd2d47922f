"""`redline bench`: load a server, or an artifact served for the occasion, and say whether the red line held."""

import argparse
import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from redline import artifact
from redline.bench.arrivals import KINDS
from redline.bench.questions import Questions, golden_questions, read_questions
from redline.bench.wire import PROTOCOLS, parse_target
from redline.errors import UsageError
from redline.units import duration_ns

if TYPE_CHECKING:
    from redline.bench.measuring import Load, Subject
    from redline.bench.results import Report, SearchReport

_MS, _S = 1e6, 1e9


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("target", metavar="URL|ARTIFACT", help="http://host:port, or an artifact folder to serve and load")
    add("--rate", type=float, help="requests per second (default: the artifact's SLA); with --search, where to start")
    add("--duration", help="of the counted part (default: 30s; a language model's: what its p99 needs)")
    add("--p99", help="the red line (default: the artifact's SLA, else 50ms)")
    add("--ttft", help="a language model's red line: time to the first token (default: the artifact's SLA)")
    add("--itl", help="a language model's red line: a request's mean gap between tokens (default: the artifact's SLA)")
    add("--search", action="store_true", help="find the highest rate that holds")
    add("--compare", metavar="URL|ARTIFACT", help="load a second server in turns with the first")
    add("--protocol", choices=PROTOCOLS, default="http-binary", help="default: %(default)s")
    add("--arrivals", choices=KINDS, default="poisson", help="default: %(default)s")
    add("--seed", type=int, default=0)
    add("--requests", type=Path, metavar="ARTIFACT|NPZ", help="what to ask (default: the artifact's golden requests)")
    add("--model", help="the model's name on the server (default: the artifact's)")
    add("--engine", choices=("auto", "embedded", "triton"), default="auto", help="to serve an artifact with")
    add("--report", type=Path, metavar="DIR", help="write report.html and report.json there")
    add("--json", action="store_true", help="print the report as JSON, nothing else")


def _is_url(target: str) -> bool:
    return "://" in target


def _questions(args: argparse.Namespace) -> Questions:
    if args.requests:
        return read_questions(args.requests)
    for target in (args.target, args.compare):
        if target and not _is_url(target):
            return golden_questions(artifact.load(Path(target)))
    raise UsageError(f"what shall {args.target} be asked? Give --requests ARTIFACT (or an .npz of requests)")


def _subject(target: str, asked: Questions, args: argparse.Namespace, cores: set[int], stack: ExitStack) -> "Subject":
    """Serves an artifact until the stack closes; its own answers are golden for itself only."""
    from redline.bench.measuring import Subject
    from redline.bench.serving import serve_artifact

    if _is_url(target):
        url, model = target, args.model or asked.model
        parse_target(url, model, args.protocol)
        return Subject(url, model, asked.requests, asked.expected, asked.tolerance, args.protocol)
    server = stack.enter_context(serve_artifact(Path(target), args.engine, cores))
    url = server.grpc_url if args.protocol == "grpc" else server.http_url
    own = asked if args.requests else golden_questions(artifact.load(Path(target)))
    return Subject(url, server.model, own.requests, own.expected, own.tolerance, args.protocol)


def _table(reports: list["Report"]) -> None:
    from rich.console import Console
    from rich.table import Table

    from redline.bench.verdict import words_rate

    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("server", "verdict", "rate", "p50 ms", "p95 ms", "p99 ms", "N", "errors", "late ms"):
        table.add_column(name, justify="left" if name in ("server", "verdict") else "right", no_wrap=name != "errors")
    for r in reports:
        errors = ", ".join(f"{n:,} {kind}" for kind, n in sorted(r.errors.items())) or "0"
        cells = (r.url.partition("//")[2], r.status, words_rate(r.rate_rps), f"{r.p50_ms:.1f}", f"{r.p95_ms:.1f}")
        table.add_row(*cells, f"{r.p99_ms:.1f}", f"{r.samples:,}", errors, f"{r.late_p99_ms:.2f}")
    Console().print(table)


def _search(
    subjects: list["Subject"], p99_ms: float, rate: float | None, load: "Load"
) -> tuple[list["SearchReport"], str]:
    from redline.bench.measuring import highest_rate

    searches = [highest_rate(s, p99_ms=p99_ms, start_rps=rate or 100.0, load=load, say=_say) for s in subjects]
    rates = [s.rate_rps for s in searches]
    return searches, f"{rates[0] / rates[1]:.2f} x the rate" if len(rates) == 2 and rates[1] else ""


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _steady(
    subjects: list["Subject"], p99_ms: float, rate: float, duration_s: float, load: "Load"
) -> tuple[list["Report"], str]:
    from redline.bench.measuring import measure, measure_pair

    if len(subjects) == 1:
        return [measure(subjects[0], rate_rps=rate, duration_s=duration_s, p99_ms=p99_ms, load=load)], ""
    a, b, ratio = measure_pair(*subjects, rate_rps=rate, duration_s=duration_s, p99_ms=p99_ms, load=load)
    if ratio is None:
        return [a, b], ""
    return [a, b], f"{ratio[0]:.2f} x the median latency of the second [{ratio[1]:.2f}, {ratio[2]:.2f}]"


def run(args: argparse.Namespace) -> int:
    from redline.bench import token_command
    from redline.bench.measuring import Load
    from redline.bench.report import write
    from redline.bench.serving import split_cores

    if language_model := token_command.described(args):
        return token_command.run(args, language_model)
    duration_s = duration_ns(args.duration or "30s") / _S
    asked = _questions(args)
    p99_ms = duration_ns(args.p99) / _MS if args.p99 else float(asked.sla.get("p99_ms", 50.0))
    rate = asked.sla.get("rate_rps") if args.rate is None else args.rate
    if not args.search and rate is None:
        raise UsageError("wanted --rate R (requests per second), or --search")
    if p99_ms <= 0 or duration_s <= 0 or (rate is not None and not 0 < rate <= 1e6):
        raise UsageError(f"wanted --rate, --duration and --p99 above 0, got {rate}, {args.duration}, {args.p99}")
    if args.seed < 0:
        raise UsageError(f"wanted --seed 0 or more, got {args.seed}")
    _make_folder(args.report)
    server_cores, generator_core, placement = split_cores()
    local = not all(_is_url(t) for t in (args.target, args.compare) if t)
    cpus, placement = (generator_core, placement) if local else (None, "server placed by its owner")
    ours = not any(_is_url(t) for t in (args.target, args.compare) if t)
    watched = server_cores - generator_core if ours else None
    load = Load(arrivals=args.arrivals, seed=args.seed, cpus=cpus, server_cpus=watched, placement=placement)
    reports: list[Report] = []
    searches: list[SearchReport] = []
    with ExitStack() as stack:
        targets = [args.target, *([args.compare] if args.compare else [])]
        subjects = [_subject(t, asked, args, server_cores, stack) for t in targets]
        if args.search:
            searches, ratio = _search(subjects, p99_ms, rate, load)
            reports = [s.best for s in searches if s.best]
        else:
            reports, ratio = _steady(subjects, p99_ms, float(rate or 0), duration_s, load)
    extra = {"compared": ratio} if ratio else {}
    page = write(args.report, reports, searches, extra) if args.report else None
    if args.json:
        table = {"reports": [r.as_dict() for r in reports], "searches": [s.as_dict() for s in searches]} | extra
        print(json.dumps(table, indent=2, allow_nan=False))
    else:
        _tell(reports, searches, ratio, page)
    return searches[0].exit_code if searches else reports[0].exit_code


def _make_folder(folder: Path | None) -> None:
    """Before the measurement, so that a bad name doesn't cost one."""
    try:
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UsageError(f"--report {folder}: {e.strerror}; name a folder") from e


def _tell(reports: list["Report"], searches: list["SearchReport"], ratio: str, page: Path | None) -> None:
    if reports:
        _table(reports)
    for search in searches:
        print(f"{search.url}: {search.verdict.why}")
    if ratio:
        print(f"the first has {ratio}")
    if reports and not searches:
        print(f"{reports[0].status}: {reports[0].why}")
    if page:
        print(f"report: {page}")
