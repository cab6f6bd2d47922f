"""`redline bench` of a language model: TTFT and ITL instead of one latency."""

import argparse
import json
from contextlib import ExitStack
from pathlib import Path

from redline import artifact
from redline.artifact import Artifact
from redline.bench.tokens import TokenReport, measure, placed, serving, sla_of
from redline.errors import UsageError
from redline.units import duration_ns


def described(args: argparse.Namespace) -> Artifact | None:
    """The LLM artifact that is loaded, or (--requests) that says how to load a URL; None: no language model."""
    named = args.requests or (None if "://" in args.target else Path(args.target))
    found = artifact.load(named) if named and named.suffix != ".npz" else None
    if found and found.manifest.kind == "llm":
        return found
    if args.ttft or args.itl:
        raise UsageError("--ttft, --itl: a language model's; give its artifact (beside a URL: --requests ARTIFACT)")
    return None


def run(args: argparse.Namespace, found: Artifact) -> int:
    if args.search or args.compare or args.p99:
        raise UsageError("a language model has --ttft, --itl, --rate and --duration; no --p99, --search, --compare")
    table = found.manifest.sla | ({"rate_rps": args.rate} if args.rate is not None else {})
    asked = {"ttft_ms": args.ttft, "itl_ms": args.itl}
    sla = sla_of(table | {key: duration_ns(text) / 1e6 for key, text in asked.items() if text})
    duration_s = duration_ns(args.duration) / 1e9 if args.duration else sla.seconds_needed()
    here, placement = placed()
    cpus: set[int] | None = here
    with ExitStack() as stack:
        if "://" in args.target:
            url, cpus, placement = args.target.rstrip("/"), None, "server placed by its owner"
        else:
            url = stack.enter_context(serving(found))
        name = args.model or found.manifest.name
        report = measure(url, name, found.model, sla, duration_s=duration_s, placement=placement, cpus=cpus)
    if args.json:
        print(json.dumps({"reports": [report.as_dict()]}, indent=2, allow_nan=False))
    else:
        print_table([report])
        print(f"{report.status}: {report.why}")
    return report.exit_code


def print_table(reports: list[TokenReport]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    times = ("TTFT p50", "TTFT p99", "ITL p50", "ITL p99")
    for name in ("server", "verdict", "rate", *times, "tok/s", "N", "errors"):
        table.add_column(name, justify="left" if name in ("server", "verdict") else "right", no_wrap=name != "errors")
    for r in reports:
        errors = ", ".join(f"{n:,} {kind}" for kind, n in sorted(r.errors.items())) or "0"
        figures = (f"{ms:,.0f} ms" for ms in (r.ttft_ms["p50"], r.ttft_ms["p99"], r.itl_ms["p50"], r.itl_ms["p99"]))
        cells = (r.url.partition("//")[2], r.status, f"{r.sla['rate_rps']:g}/s", *figures)
        table.add_row(*cells, f"{r.tokens_per_s:.0f}", f"{r.samples:,}", errors)
    console = Console()
    (console if console.is_terminal else Console(width=110)).print(table)
