"""What a language job found: the leaderboard in the terminal, report.html."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from redline import page
from redline.bench.report import conditions_section
from redline.bench.tokens import TokenReport
from redline.page import BLUE, GRAY, Section, drawing, figure_svg, red_line
from redline.verdict import Verdict


def _rows(board: dict[str, Any]) -> list[tuple[str, ...]]:
    """The fastest first, the rejected last."""
    ranked = sorted(board["candidates"], key=lambda c: (not c["alive"], -c["tokens_per_s"]))
    return [
        (
            c["name"],
            f"{c['perplexity']:.2f}",
            f"{c['rise']:+.2%}",
            f"{c['tokens_per_s']:.0f}",
            f"{c['speedup']['ratio']:.2f} [{c['speedup']['low']:.2f}, {c['speedup']['high']:.2f}]",
            f"{c['size_bytes'] / 2**20:.0f}",
            "chosen" if c["name"] == board["winner"] else "ok" if c["alive"] else "rejected",
        )
        for c in ranked
    ]


_COLUMNS = ("recipe", "perplexity", "rise", "tok/s", "x bf16", "MiB", "verdict")


def print_outcome(board: dict[str, Any], report: TokenReport | None, out: Path, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(board | {"artifact": str(out)}))
        return
    console = Console(highlight=False)
    console = console if console.is_terminal else Console(highlight=False, width=110)
    table = Table(box=None, pad_edge=False, header_style="bold", caption_justify="left")
    table.caption = f"tok/s of output at {board['streams']} streams; {board['clock']}"
    for name in _COLUMNS:
        table.add_column(name, justify="left" if name in ("recipe", "verdict") else "right", no_wrap=True)
    for row in _rows(board):
        table.add_row(*row, style="bold green" if row[0] == board["winner"] else "")
    console.print(table)
    reasons = [f"  {c['name']}: {c['why']}" for c in board["candidates"] if not c["alive"]]
    console.print(escape("\n".join(reasons)), style="yellow", soft_wrap=True)
    test = board["test"]
    lines = [
        ("recipe", board["winner"]),
        ("perplexity", f"{test['source']:.2f} before, {test['candidate']:.2f} after, on test"),
        ("proof", f"{report.status}: {report.why}" if report else "unproven: not asked"),
        ("artifact", f"{out}  (report: {out / 'report.html'})"),
    ]
    for label, text in lines:
        console.print(f"[bold]{label:<14}[/]{escape(text)}", soft_wrap=True)


def render(board: dict[str, Any], report: TokenReport | None) -> str:
    """One self-contained page."""
    winner = next(c for c in board["candidates"] if c["name"] == board["winner"])
    test = board["test"]
    summary: list[tuple[str, object]] = [
        ("recipe", board["winner"]),
        (f"tokens/s at {board['streams']} streams", f"{winner['tokens_per_s']:.0f}"),
        ("test perplexity", f"{test['source']:.2f} → {test['candidate']:.2f}"),
    ]
    caption = f"x bf16: times as fast as the source model, 95 % interval. {board['clock']}."
    sections = [Section("Leaderboard", caption, None, _COLUMNS, _rows(board))]
    if report:
        summary.append(("TTFT p99", f"{report.ttft_ms['p99']:,.0f} ms"))
        sections += [_over_time(report), _figures(report)]
    why = [(c["name"], "ok" if c["alive"] else "no", c["why"]) for c in board["candidates"]]
    sections.append(Section("The gate", "On the validation text.", None, ("recipe", "", "why"), why))
    sections.append(conditions_section(board["conditions"]))
    verdict = report.verdict if report else Verdict(False, "no load test was asked for")
    return page.render(board["job"], verdict, report.status if report else "unproven", summary, sections)


def _over_time(report: TokenReport) -> Section:
    top = 2 * report.sla["ttft_ms"]
    with drawing() as (fig, ax):
        if report.timeline:
            times, p50, worst, _ = zip(*report.timeline, strict=True)
            ax.plot(times, [min(ms, top) for ms in worst], color=GRAY, label="slowest")
            ax.plot(times, [min(ms, top) for ms in p50], color=BLUE, label="p50")
        red_line(ax, report.sla["ttft_ms"], f"TTFT {report.sla['ttft_ms']:g} ms")
        ax.set(xlabel="seconds", ylabel="ms to the first token", ylim=(0, None))
        ax.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, borderaxespad=0.2)
        svg = figure_svg(fig, "time to the first token over time")
    text = f"From the scheduled time, guidellm's dispatch delay added; cut at {top:g} ms."
    return Section("Time to the first token", text, svg)


def _figures(report: TokenReport) -> Section:
    rows = [
        (name, f"{f['p50']:,.1f} ms", f"{f['p99']:,.1f} ms", f"[{f['low']:,.1f}, {f['high']:,.1f}] ms", f"{line:g} ms")
        for name, f, line in (
            ("TTFT", report.ttft_ms, report.sla["ttft_ms"]),
            ("ITL", report.itl_ms, report.sla["itl_ms"]),
        )
    ]
    errors = ", ".join(f"{n} {kind}" for kind, n in report.errors.items()) or "none"
    text = (
        f"N {report.samples:,}, {report.sla['rate_rps']:g}/s (Poisson), {report.sla['prompt_tokens']} tokens of prompt "
        f"and {report.sla['output_tokens']} more; {report.tokens_per_s:.0f} tokens/s; errors: {errors}; "
        f"{report.conditions['placement']}. ITL: each request's mean gap."
    )
    return Section("Under load", text, None, ("", "p50", "p99", "interval of the p99", "red line"), rows)
