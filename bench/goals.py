"""Is every goal of goals.toml reached? `python -m redline.bench.goals ARTIFACT --baseline DIR`."""

import argparse
import json
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from redline import artifact, machine
from redline.bench.measuring import Load, Subject, highest_rate, measure
from redline.bench.questions import asking
from redline.bench.results import SearchReport
from redline.bench.serving import free_ports, served, split_cores
from redline.errors import RedlineError, UsageError

_GOALS = Path(__file__).with_name("goals.toml")
_PEER = Path(__file__).parent / "peers" / "kserve_eager.py"
_HELD, _MISSED, _NO_RESULT = "held", "missed", "no result"
_EXIT = {_HELD: 0, _NO_RESULT: 4, _MISSED: 1}
_WIDE = 0.05
_GENERATOR_MS = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    name: str
    metric: str
    comparison: str  # ">=" or "<="
    value: float
    why: str
    isa: str = "portable"  # the least that it is meant for: on a weaker CPU there is no result
    suite: str = "road"  # who measures it: this module; "kernels", "recommender": kernels' bench and bench_recommender

    def reached_by(self, value: float) -> bool:
        return value >= self.value if self.comparison == ">=" else value <= self.value


@dataclass(frozen=True, slots=True)
class Figure:
    value: float
    low: float
    high: float

    @property
    def is_wide(self) -> bool:
        return max(self.high - self.value, self.value - self.low) > _WIDE * abs(self.value)


def read_goals(path: Path = _GOALS, *, suite: str = "road") -> list[Goal]:
    try:
        goals = [Goal(**row) for row in tomllib.loads(path.read_text())["goal"]]
    except (TypeError, KeyError, tomllib.TOMLDecodeError) as e:
        raise UsageError(f"{path}: wanted [[goal]] tables with name, metric, comparison, value, why: {e}") from e
    if wrong := [g.name for g in goals if g.comparison not in (">=", "<=")]:
        raise UsageError(f"{path}: comparison is '>=' or '<=', see {wrong}")
    return [g for g in goals if g.suite == suite]


def judge_goal(goal: Goal, figure: Figure | None) -> str:
    """Held when the whole interval is on the right side, or it is narrow and not wholly on the wrong one.

    Missed only when the whole of a narrow interval is on the wrong side; any other wide one says nothing.
    """
    if figure is None or machine.weaker(machine.isa(), goal.isa):
        return _NO_RESULT
    ends = [goal.reached_by(figure.low), goal.reached_by(figure.high)]
    if all(ends):
        return _HELD
    if figure.is_wide:
        return _NO_RESULT
    return _HELD if any(ends) else _MISSED


def figures_of_evidence(found: artifact.Artifact) -> dict[str, Figure]:
    """What the artifact's own leaderboard and manifest say."""
    figures = {}
    for rows, s in (found.evidence("leaderboard") or {}).get("speedup", {}).items():
        figures[f"speedup_{rows}"] = Figure(s["ratio"], s["low"], s["high"])
    test = found.manifest.metric.get("test")
    if test and test.get("source") is not None and test.get("candidate") is not None:
        before, drop = test["source"], test["source"] - test["candidate"]
        figures |= {"auc_before": Figure(before, before, before), "auc_drop": Figure(drop, drop, drop)}
    return figures


def _bounds(search: SearchReport) -> tuple[float, float]:
    """(held, did not hold): the highest rate is between them."""
    above = [t["rate_rps"] for t in search.trials if t["status"] != "held" and t["rate_rps"] > search.rate_rps]
    return search.rate_rps, min(above, default=search.rate_rps)


def ratio_of(a: SearchReport, b: SearchReport) -> Figure | None:
    (low_a, high_a), (low_b, high_b) = _bounds(a), _bounds(b)
    return Figure(low_a / low_b, low_a / high_b, high_a / low_b) if low_a and low_b else None


@contextmanager
def _noop() -> Iterator[tuple[Subject, Load]]:
    server, generator, placement = split_cores()
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    with served([sys.executable, "-m", "redline.bench.peers.noop", "--port", str(port)], url, cpus=server):
        yield Subject(url, "noop", [{"x": np.zeros((1, 16), np.float32)}]), Load(cpus=generator, placement=placement)


def generator_figures() -> dict[str, Figure]:
    """Lateness at 2,000/s (median of three runs), and the highest rate it keeps up with.

    Against a red line of 20 ms "held" means: lateness p99 <= 1 ms, and the answers are read in time, too.
    """
    with _noop() as (subject, load):
        runs = [
            measure(subject, rate_rps=2000.0, duration_s=3.0, p99_ms=_GENERATOR_MS, load=load, attempts=1)
            for _ in range(3)
        ]
        late = float(np.median([run.late_p99_ms for run in runs]))
        ceiling = highest_rate(subject, p99_ms=_GENERATOR_MS, start_rps=4000.0, load=load, say=_say)
    return {
        "generator_late_ms": Figure(late, late, late),
        "generator_ceiling_rps": Figure(ceiling.rate_rps, *_bounds(ceiling)),
    }


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _search(path: Path, protocol: str, *, peer: bool) -> SearchReport:
    found = artifact.load(path)
    sla = found.manifest.sla
    _say(f"highest rate of {path} over {protocol}{', plain KServe' if peer else ''}")
    command = [sys.executable, str(_PEER)] if peer else None
    with asking(found, protocol=protocol, command=command) as (subject, load):
        return highest_rate(
            subject, p99_ms=sla["p99_ms"], start_rps=sla["rate_rps"], load=load, precision=0.02, say=_say
        )


def served_figures(path: Path, baseline: Path) -> dict[str, Figure]:
    ours = _search(path, "http-binary", peer=False)
    grpc, http = _search(baseline, "grpc", peer=True), _search(baseline, "http-binary", peer=True)
    figures = {"rate_ratio": ratio_of(ours, grpc), "rate_ratio_same_wire": ratio_of(ours, http)}
    for name, search in (("rate_ours", ours), ("rate_kserve_grpc", grpc), ("rate_kserve_http", http)):
        figures[name] = Figure(search.rate_rps, *_bounds(search))
    return {name: figure for name, figure in figures.items() if figure is not None}


def judge_goals(figures: dict[str, Figure], goals: list[Goal]) -> int:
    """Prints every goal as held or missed, and the other figures beside; the exit code."""
    results = [(goal, figures.get(goal.metric)) for goal in goals]
    for goal, figure in results:
        words = f"{figure.value:.4g} [{figure.low:.4g}, {figure.high:.4g}]" if figure else "not measured"
        where = f" on {goal.isa}, here is {machine.isa()}" if machine.weaker(machine.isa(), goal.isa) else ""
        print(f"{judge_goal(goal, figure):9}  {goal.name}: {words}, wanted {goal.comparison} {goal.value:g}{where}")
    for name in sorted(figures.keys() - {g.metric for g in goals}):
        f = figures[name]
        print(f"{'beside':9}  {name}: {f.value:.4g} [{f.low:.4g}, {f.high:.4g}]")
    verdicts = [judge_goal(goal, figure) for goal, figure in results]
    return next((_EXIT[v] for v in (_MISSED, _NO_RESULT) if v in verdicts), 0)


def run(args: argparse.Namespace) -> int:
    figures = figures_of_evidence(artifact.load(args.artifact)) | generator_figures()
    if args.baseline:
        figures |= served_figures(args.artifact, args.baseline)
    if args.json:
        table: dict[str, Any] = {name: asdict(f) for name, f in figures.items()}
        args.json.write_text(json.dumps(table, indent=2) + "\n")
    return judge_goals(figures, read_goals())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--baseline", type=Path, help="an artifact whose engine is torch_eager, for the rate goals")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    try:
        return run(parser.parse_args())
    except RedlineError as e:
        print(f"goals: {e}", file=sys.stderr)
        return e.exit_code


if __name__ == "__main__":
    sys.exit(main())
