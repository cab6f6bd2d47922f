"""report.html and report.json of a load test."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from redline.bench.results import Report, SearchReport
from redline.bench.verdict import words_rate
from redline.page import AMBER, BLUE, GRAY, RED, Section, drawing, figure_svg, red_line, render

_COLORS = (BLUE, AMBER)
_NINES = (0.5, 0.9, 0.95, 0.99, 0.995, 0.999, 0.9995)


def words_ms(value: float) -> str:
    return (
        f"{value:.3g} ms" if math.isfinite(value) and value < 1000 else f"{value:,.0f} ms" if value < math.inf else "∞"
    )


def figures_of(report: Report) -> list[tuple[str, object]]:
    return [
        ("p99 latency", words_ms(report.p99_ms)),
        ("red line", words_ms(report.sla_p99_ms)),
        ("rate", words_rate(report.rate_rps)),
        ("p50", words_ms(report.p50_ms)),
        ("p95", words_ms(report.p95_ms)),
        ("samples", f"{report.samples:,}"),
        ("errors", f"{sum(report.errors.values()):,}"),
        ("lateness p99", words_ms(report.late_p99_ms)),
    ]


def _percentiles(reports: Sequence[Report]) -> Section:
    """The far tail gets as much room as the middle: the axis is the number of nines."""
    with drawing() as (fig, ax):
        for report, color in zip(reports, _COLORS, strict=False):
            points = [(-math.log10(1 - q), ms) for q, ms in report.curve if math.isfinite(ms)]
            if points:
                ax.plot(
                    *zip(*points, strict=True), color=color, label=report.model if len(reports) == 1 else report.url
                )
        line = reports[0].sla_p99_ms
        red_line(ax, line, f"red line {line:g} ms")
        ax.axvline(2, color=GRAY, linewidth=1, linestyle=(0, (3, 3)))
        ax.set_xticks([-math.log10(1 - q) for q in _NINES], [f"p{100 * q:g}" for q in _NINES])
        ax.set(xlim=(0, 3.4), ylim=(0, None), ylabel="latency (ms)")
        if len(reports) > 1:
            ax.legend(loc="upper left", bbox_to_anchor=(0.0, 0.85))
        svg = figure_svg(fig, "latency by percentile")
    r = reports[0]
    bounds = f"[{r.p99_low_ms:.3g}, {r.p99_high_ms:.3g}] ms"
    return Section(
        "Latency by percentile",
        f"From the scheduled time; the p99 must stay under the red line. Interval of the p99, each side at "
        f"{r.confidence:.0%} confidence: {bounds}.",
        svg,
    )


def _side_by_side(reports: Sequence[Report]) -> Section:
    columns = ("server", "verdict", *(label for label, _ in figures_of(reports[0])))
    rows = [(r.url, r.status, *(value for _, value in figures_of(r))) for r in reports]
    return Section("Side by side", "Loaded in turns, on the same schedule.", None, columns, rows)


def _over_time(report: Report) -> Section:
    rows = [(t, p50, worst) for t, p50, worst, _ in report.timeline]
    with drawing() as (fig, ax):
        if rows:
            times, p50, worst = zip(*rows, strict=True)
            shown = [w if math.isfinite(w) else report.sla_p99_ms * 2 for w in worst]
            ax.fill_between(times, p50, shown, color=BLUE, alpha=0.2, linewidth=0, label="p50 to slowest")
            ax.plot(times, p50, color=BLUE, label="p50")
            missed = [t for t, _, w in rows if not math.isfinite(w)]
            if missed:
                at = [report.sla_p99_ms * 2] * len(missed)
                ax.plot(missed, at, "x", color=RED, label="a request failed")
        ax.axhline(report.sla_p99_ms, color=RED, linewidth=1.5)
        ax.set(ylim=(0, None), xlabel="seconds since the end of the warm-up", ylabel="latency (ms)")
        ax.margins(x=0.01, y=0.1)
        ax.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=3, borderaxespad=0.2)
        svg = figure_svg(fig, "latency over time")
    return Section(
        "Latency over time",
        f"What drifts or stalls shows here; each slice of time has its p50 and slowest. {report.url}",
        svg,
    )


def _lateness(report: Report) -> Section:
    limit = 0.05 * report.sla_p99_ms
    with drawing(height=2.2) as (fig, ax):
        ax.plot([row[0] for row in report.timeline], [row[3] for row in report.timeline], color=GRAY)
        ax.axhline(limit, color=RED, linewidth=1.2, linestyle=(0, (4, 3)))
        ax.set(ylim=(0, None), xlabel="seconds since the end of the warm-up", ylabel="latest send (ms)")
        ax.margins(x=0.01)
        svg = figure_svg(fig, "lateness of the generator")
    text = f"How late the generator itself was: p99 {report.late_p99_ms:.2f} ms; past {limit:g} ms the run is invalid."
    return Section("The generator's lateness", text, svg)


def _search(searches: Sequence[SearchReport]) -> Section:
    with drawing() as (fig, ax):
        line = searches[0].sla_p99_ms
        for search, color in zip(searches, _COLORS, strict=False):
            tried = sorted(search.trials, key=lambda t: float(t["rate_rps"]))
            place = [(t["rate_rps"], min(t["p99_ms"], 3 * line)) for t in tried]
            ax.plot(*zip(*place, strict=True), color=color, alpha=0.3, label=search.url)
            for trial, (rate, p99) in zip(tried, place, strict=True):
                face = color if trial["status"] == "held" else "none"
                ax.plot(rate, p99, "D" if trial["confirming"] else "o", color=color, markerfacecolor=face)
        ax.axhline(line, color=RED, linewidth=1.5)
        ax.set(xlabel="requests per second", ylabel="p99 (ms)", xlim=(0, None), ylim=(0, 3.15 * line))
        if len(searches) > 1:
            ax.legend(loc="upper left")
        svg = figure_svg(fig, "p99 against rate")
    rows = [
        (words_rate(t["rate_rps"]), t["status"], words_ms(t["p99_ms"]), _mode(t), t["why"], search.url)
        for search in searches
        for t in search.trials
    ]
    columns = ["rate", "verdict", "p99", "run", "why", *(["server"] if len(searches) > 1 else [])]
    top = f"{3 * line:g} ms"
    text = f"Filled: held. Diamonds: confirming runs; only they count. Readings over {top} are drawn at {top}."
    return Section("p99 against rate", text, svg, columns, [row[: len(columns)] for row in rows])


def _mode(trial: dict[str, Any]) -> str:
    return "confirming" if trial["confirming"] else "short"


def conditions_section(conditions: dict[str, Any], more: Sequence[tuple[str, object]] = ()) -> Section:
    rows = [
        (k, ", ".join(f"{n} {v}" for n, v in w.items()) if isinstance(w, dict) else w) for k, w in conditions.items()
    ]
    return Section("Conditions", "No figure means anything without them.", rows=[*more, *rows])


def _how(report: Report) -> list[tuple[str, object]]:
    errors = ", ".join(f"{kind}: {n:,}" for kind, n in sorted(report.errors.items())) or "none"
    return [
        ("url", report.url),
        ("model", report.model),
        ("protocol", report.protocol),
        ("arrivals", f"{report.arrivals}, seed {report.seed}"),
        ("duration", f"{report.duration_s:g} s after {report.warmup_s:g} s of warm-up"),
        ("attempts", report.attempts),
        ("answers checked", "against golden answers" if report.checked else "well-formed only"),
        ("errors", errors),
        ("neighbors", f"other processes used {report.neighbors:.1%} of the server's cores"),
    ]


def sections_of(reports: Sequence[Report], searches: Sequence[SearchReport] = ()) -> list[Section]:
    """Plots and tables of a load test, for this room's page and others'. reports: one, or the two compared."""
    sections = [_search([s for s in searches if s.trials])] if any(s.trials for s in searches) else []
    if len(reports) > 1:
        sections.append(_side_by_side(reports))
    if reports and reports[0].samples:
        sections += [_percentiles(reports), _over_time(reports[0]), _lateness(reports[0])]
    if reports:
        return [*sections, conditions_section(reports[0].conditions, _how(reports[0]))]
    return [*sections, *(conditions_section(s.conditions) for s in searches[:1])]


def write(folder: Path, reports: Sequence[Report], searches: Sequence[SearchReport], extra: dict[str, Any]) -> Path:
    """Write report.html and report.json into folder; extra: what a comparison adds."""
    first = reports[0] if reports else None
    if searches:
        search = searches[0]
        verdict, status = search.verdict, search.status
        summary: list[tuple[str, object]] = [("highest rate that holds", f"{search.rate_rps:.0f}/s")]
        summary += figures_of(first)[:2] if first else [("red line", words_ms(search.sla_p99_ms))]
        title = search.model
    elif first:
        verdict, status, summary, title = first.verdict, first.status, figures_of(first), first.model
    else:
        raise ValueError("nothing to report")
    folder.mkdir(parents=True, exist_ok=True)
    table = {"reports": [r.as_dict() for r in reports], "searches": [s.as_dict() for s in searches]} | extra
    (folder / "report.json").write_text(json.dumps(table, indent=2, allow_nan=False) + "\n")
    page = folder / "report.html"
    page.write_text(render(f"{title} under load", verdict, status, summary, sections_of(reports, searches)))
    return page
