"""report.html: the leaderboard and the load test on one self-contained page."""

import math
from typing import Any

from markupsafe import Markup

from redline import page
from redline.bench.report import conditions_section
from redline.page import AMBER, BLUE, GRAY, GREEN, Section, drawing, figure_svg, red_line
from redline.verdict import Verdict

_COLORS = (BLUE, AMBER, GREEN, "#8b5cf6", "#14b8a6", "#db2777", "#a16207")
_MARKERS = ("o", "s", "^", "D")  # where the colors start anew
_NINES = (0.5, 0.9, 0.95, 0.99, 0.995, 0.999)


def render(board: dict[str, Any], sla: dict[str, Any] | None) -> str:
    """board, sla: evidence/leaderboard.json and evidence/sla.json."""
    sections = [_leaderboard(board)]
    if board["baseline"]["latency_ms"]:
        sections += [_accuracy_against_latency(board), _latency_by_rows(board)]
    if board.get("hand_tuning"):
        sections.append(_hand_tuning(board["hand_tuning"]))
    if sla:
        sections += [_under_load(sla), _rates(sla)]
    sections += [_verdicts(board), conditions_section(board["conditions"], [("clock", board["clock"])])]
    if board["winner"] is None:
        miss = board["nearest_miss"]
        why = f"nearest miss {miss['name']}: {miss['why']}" if miss else "no candidate could be built"
        return page.render(board["job"], Verdict(False, why), "rejected", _summary(board, sla), sections)
    why = board["clock"] if not board["speedup"] else "no load test was asked for"
    verdict = sla["verdict"] if sla else {"status": "unproven", "why": why}
    said = Verdict(verdict["status"] == "held", verdict["why"])
    return page.render(board["job"], said, verdict["status"], _summary(board, sla), sections)


def _summary(board: dict[str, Any], sla: dict[str, Any] | None) -> list[tuple[str, object]]:
    if board["winner"] is None:
        return [("candidates", len(board["candidates"])), ("largest drop allowed", board["gate"]["max_drop"])]
    rows, test = str(board["rows"][-1]), board["test"]
    speed = board["speedup"].get(rows)
    ratio = f"{speed['ratio']:.2f} [{speed['low']:.2f}, {speed['high']:.2f}]" if speed else "not measured"
    figures: list[tuple[str, object]] = [
        ("recipe", board["winner"]),
        (f"x PyTorch eager at {rows} rows", ratio),
        (f"test {board['metric']}", f"{test['source']:.4f} → {test['candidate']:.4f}"),
    ]
    if sla:
        best = sla["engines"][sla["served_by"]]["highest_rate"]
        before = f", was {sla['baseline']['highest_rate']:.0f}/s" if "baseline" in sla else ""
        if automatic := sla.get("automatic"):
            before += f"; best automatic {automatic['highest_rate']:.0f}/s"
        figures.append((f"highest rate, {sla['served_by']}", f"{best:.0f}/s{before}"))
    return figures


def _all(board: dict[str, Any]) -> list[dict[str, Any]]:
    timed = sorted(
        (c for c in board["candidates"] if c["latency_ms"]), key=lambda c: c["latency_ms"][str(board["rows"][-1])]
    )
    return [*timed, board["baseline"], *(c for c in board["candidates"] if not c["latency_ms"])]


def _leaderboard(board: dict[str, Any]) -> Section:
    rows, base = [str(r) for r in board["rows"]], board["baseline"]["latency_ms"]
    lines = []
    for entry in _all(board):
        score = entry["verdicts"].get("accuracy", {})
        times = entry["latency_ms"]
        lines.append((
            entry["name"],
            f"{score['value']:.4f}" if score else "",
            f"{score['drop']:+.4f}" if score else "",
            *(f"{base[r] / times[r]:.2f}" if times else "" for r in rows),
            f"{times[rows[-1]]:.2f}" if times else "",
            f"{entry['rows_per_s_per_core'][rows[-1]]:,}" if times else "",
            f"{entry['size_bytes'] / 2**20:.1f}" if "size_bytes" in entry else "",
            entry["standing"],
        ))  # fmt: skip
    columns = (
        "recipe",
        board["metric"],
        "drop",
        *(f"x{r}" for r in rows),
        f"ms at {rows[-1]}",
        "rows/s a core",
        "MiB",
        "verdict",
    )
    order = "Fastest first" if base else "In the order of the recipes"
    caption = f"{order}. xN: times faster than PyTorch eager at N rows a request; {board['clock']}."
    return Section("Leaderboard", caption, None, columns, lines)


def _look(i: int, entry: dict[str, Any]) -> dict[str, Any]:
    """The i-th entry's color and marker, the same in every plot."""
    color = GRAY if entry["standing"] == "baseline" else _COLORS[i % len(_COLORS)]
    return {"color": color, "marker": _MARKERS[i // len(_COLORS) % len(_MARKERS)], "label": entry["name"]}


def _accuracy_against_latency(board: dict[str, Any]) -> Section:
    at, name = str(board["rows"][-1]), board["metric"]
    entries = [e for e in _all(board) if e["latency_ms"] and "accuracy" in e["verdicts"]]
    with drawing(height=max(3.6, 0.28 * len(entries))) as (fig, ax):
        for i, entry in enumerate(entries):
            x, y = entry["latency_ms"][at], entry["verdicts"]["accuracy"]["value"]
            look = _look(i, entry)
            look["marker"] = {"chosen": "*", "not batchable": "x"}.get(entry["standing"], look["marker"])
            ax.plot(x, y, **look, markersize=14 if look["marker"] == "*" else 7, linestyle="none")
        base = board["baseline"]["verdicts"]["accuracy"]["value"]
        lowest = max(base - board["gate"]["max_drop"], board["gate"].get("floor", -math.inf))
        red_line(ax, lowest, f"gate {lowest:.4f}")
        ax.set(xlabel=f"ms a request of {at} rows", ylabel=f"{name} on validation", xlim=(0, None))
        ax.margins(y=0.15)
        ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        svg = figure_svg(fig, "accuracy against latency")
    text = "Up and to the left is better; below the red line the gate breaks. Star: chosen. Cross: not batchable."
    return Section("Accuracy against latency", text, svg)


def _latency_by_rows(board: dict[str, Any]) -> Section:
    entries = [e for e in _all(board) if e["latency_ms"]]
    with drawing(height=max(3.6, 0.28 * len(entries))) as (fig, ax):
        for i, entry in enumerate(entries):
            times = [entry["latency_ms"][str(r)] for r in board["rows"]]
            width = 2.6 if entry["standing"] == "chosen" else 1.4
            dash = (0, (4, 3)) if entry["standing"] == "baseline" else "solid"
            ax.plot(board["rows"], times, **_look(i, entry), markersize=4, linestyle=dash, linewidth=width)
        ax.set(xscale="log", yscale="log", xlabel="rows a request", ylabel="ms a request")
        ax.set_xticks(board["rows"], [str(r) for r in board["rows"]])
        ax.yaxis.set_major_formatter("{x:g}")
        ax.minorticks_off()
        ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        svg = figure_svg(fig, "latency by rows")
    return Section("Latency by rows", "Medians, both axes logarithmic; dashed: the unoptimized model.", svg)


def _hand_tuning(parts: list[dict[str, Any]]) -> Section:
    lines = []
    for part in parts:
        for rows, x in part["rows"].items():
            interval = f"{x['ratio']:.2f} [{x['low']:.2f}, {x['high']:.2f}]"
            share = f"{100 * x['peak_share']:.0f} %" if x["peak_share"] is not None else ""
            lines.append(
                (part["operator"], part["node"], rows, f"{x['fused_us']:.1f}", f"{x['plain_us']:.1f}", interval, share)
            )
    text = (
        "Each fused node beside the nodes whose place it took: both in ONNX Runtime, one thread, on what flows there "
        f"when the job's requests are asked; CPU time, medians; {parts[0]['library']}. Peak: what the dot instruction "
        "does on registers alone, the roofline of whatever computes; what waits for memory can't get there."
    )
    columns = ("operator", "node", "rows", "us", "us before", "times faster", "of the peak")
    return Section("What hand tuning gained", text, None, columns, lines)


def _loaded(sla: dict[str, Any]) -> list[tuple[str, dict[str, Any], str]]:
    """(label, what it did under load, color) of every server, the unoptimized model last."""
    colors = {"embedded": BLUE, "triton": AMBER}
    found = [(f"optimized, {name}", engine, colors.get(name, GREEN)) for name, engine in sla["engines"].items()]
    if automatic := sla.get("automatic"):
        found.append((f"best automatic, {automatic['recipe']}", automatic, _COLORS[3]))
    return [*found, ("unoptimized", sla["baseline"], GRAY)] if "baseline" in sla else found


def _under_load(sla: dict[str, Any]) -> Section:
    line, top = sla["sla"]["p99_ms"], 3 * sla["sla"]["p99_ms"]
    with drawing() as (fig, ax):
        for label, found, color in _loaded(sla):
            if curve := found.get("at_rate", {}).get("curve"):
                points = [(-math.log10(1 - q), min(ms, top) if ms is not None else top) for q, ms in curve]
                ax.plot(*zip(*points, strict=True), color=color, label=label)
        red_line(ax, line, f"red line {line:g} ms")
        ax.axvline(2, color=GRAY, linewidth=1, linestyle=(0, (3, 3)))
        ax.set_xticks([-math.log10(1 - q) for q in _NINES], [f"p{100 * q:g}" for q in _NINES])
        ax.set(xlim=(0, 3.1), ylim=(0, None), ylabel="latency (ms)")
        ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        svg = figure_svg(fig, "latency under load")
    rate, rows = sla["sla"]["rate_rps"], sla["sla"]["rows"]
    text = f"{rate:g} requests/s of {rows} rows, open loop: latency counts from the scheduled time; cut at {top:g} ms."
    return Section("Latency under load", text, svg)


def _rates(sla: dict[str, Any]) -> Section:
    line, top = sla["sla"]["p99_ms"], 3 * sla["sla"]["p99_ms"]
    with drawing() as (fig, ax):
        for label, found, color in _loaded(sla):
            tried = sorted(found["trials"], key=lambda t: float(t["rate_rps"]))
            if tried:
                place = [(t["rate_rps"], top if t["p99_ms"] is None else min(t["p99_ms"], top)) for t in tried]
                ax.plot(*zip(*place, strict=True), "o-", markersize=4, color=color, label=label)
            if found["highest_rate"]:
                ax.axvline(found["highest_rate"], color=color, linewidth=1, linestyle=(0, (3, 3)))
        red_line(ax, line, f"red line {line:g} ms")
        ax.set(xlabel="requests per second", ylabel="p99 (ms)", xlim=(0, None), ylim=(0, top * 1.05))
        ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        svg = figure_svg(fig, "p99 against rate")
    rows = [(label, f"{found['highest_rate']:.0f}/s", found["limit_why"]) for label, found, _ in _loaded(sla)]
    text = (
        f"Every rate that was tried; dashed: the highest that was confirmed. Readings over {top:g} ms are drawn there."
    )
    return Section("Highest rate", text, svg, ("server", "holds", "what stopped it"), rows)


def _verdicts(board: dict[str, Any]) -> Section:
    rows: list[tuple[object, ...]] = []
    for entry in _all(board):
        for name, finding in entry["verdicts"].items():
            mark = Markup("<b>{}</b>").format("ok" if finding["ok"] else "no")
            rows.append((entry["name"], name, mark, finding["why"]))
        rows += [(entry["name"], "pass", "", note) for note in entry["notes"]]
    return Section(
        "Every verdict and its reason", "In the order they were asked.", None, ("recipe", "verdict", "", "why"), rows
    )
