"""The search: every recipe built and judged, in the order of design's verdicts; one leaderboard."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from redline import machine
from redline.bench.stats import ratio_interval
from redline.errors import GraphError, JobError, MissingError
from redline.optimize import judge
from redline.optimize.build import Cache, Candidate, Source, arrays_sha256, build
from redline.optimize.judge import Finding
from redline.optimize.latency import Times, measure
from redline.optimize.recipe import BASELINE, Recipe
from redline.runtimes import engines
from redline.runtimes.engines import Engine
from redline.tensors import Arrays
from redline.verdict import Verdict

Step = Callable[[str], AbstractContextManager[Callable[[str], None]]]  # with step("build x") as say: say("cached")


@dataclass
class Entry:
    """One line of the leaderboard; it fills from left to right until a verdict says no."""

    recipe: Recipe
    findings: dict[str, Finding] = field(default_factory=dict)
    candidate: Candidate | None = None
    engine: Engine | None = None
    times: Times = field(default_factory=dict)
    missing: MissingError | None = None  # what this machine lacks to build or load it

    @property
    def alive(self) -> bool:
        """Invariance alone doesn't reject: it says `not batchable`."""
        return all(f.verdict.ok for name, f in self.findings.items() if name != "invariance")

    @property
    def batchable(self) -> bool:
        return "invariance" in self.findings and self.findings["invariance"].verdict.ok

    @property
    def reason(self) -> str:
        bad = [f.verdict.why for f in self.findings.values() if not f.verdict.ok]
        return "; ".join(bad)

    def median_ms(self, rows: int) -> float:
        return float(np.median(self.times[rows])) / 1e6

    def to_json(self) -> dict[str, Any]:
        table = self.recipe.to_json() | {
            "precision": self.recipe.precision,
            "alive": self.alive,
            "batchable": self.batchable,
            "verdicts": {name: f.to_json() for name, f in self.findings.items()},
            "notes": list(self.candidate.notes) if self.candidate else [],
            "latency_ms": {str(rows): self.median_ms(rows) for rows in self.times},
            "rows_per_s_per_core": {str(rows): round(rows / self.median_ms(rows) * 1e3) for rows in self.times},
        }
        if self.candidate and self.recipe is not BASELINE:
            table["size_bytes"] = sum(p.stat().st_size for p in self.candidate.model.parent.iterdir())
        return table


@dataclass
class Board:
    """Every entry, the baseline first, and what the survivors measured against it."""

    source: Source
    baseline: Entry
    entries: list[Entry]
    rows: tuple[int, ...]
    target: str = "cpu"

    @property
    def unmeasured(self) -> str:
        """Why nothing was timed; empty where it was."""
        return "" if self.target == "cpu" else f"built, not measured: no {self.target} device here"

    def ranking(self) -> list[Entry]:
        """Survivors, the best first: batchable before not; ties within the interval go to the simpler recipe.

        What was not measured stands in the order of the recipes.
        """
        if self.unmeasured:
            return sorted((e for e in self.entries if e.alive), key=lambda e: not e.batchable)
        at = self.rows[-1]
        left = [e for e in self.entries if e.alive and e.times]
        ranked: list[Entry] = []
        for batchable in (True, False):
            group = [e for e in left if e.batchable is batchable]
            while group:
                fastest = min(group, key=lambda e: e.median_ms(at))
                tied = [e for e in group if e is fastest or ratio_interval(e.times[at], fastest.times[at])[1] <= 1.0]
                best = min(tied, key=lambda e: (len(e.recipe.passes), e.median_ms(at)))
                ranked.append(best)
                group.remove(best)
        return ranked

    def nearest_miss(self) -> Entry | None:
        """Of the rejected, the one that lost least of the metric; else the first that was built at all."""
        judged = [e for e in self.entries if not e.alive and "accuracy" in e.findings]
        if judged:
            return min(judged, key=lambda e: e.findings["accuracy"].figures["drop"])
        return next((e for e in self.entries if not e.alive), None)

    def standing(self, entry: Entry, winner: Entry | None) -> str:
        """One word for what became of an entry."""
        if entry is winner:
            return "chosen"
        if entry is self.baseline:
            return "baseline"
        if not entry.alive:
            return "rejected"
        return "ok" if entry.batchable else "not batchable"

    def speedup(self, entry: Entry) -> dict[str, dict[str, float]]:
        found = {}
        for rows in self.rows if entry.times else ():
            ratio, low, high = ratio_interval(self.baseline.times[rows], entry.times[rows])
            found[str(rows)] = {"ratio": ratio, "low": low, "high": high}
        return found

    def to_json(self, winner: Entry | None) -> dict[str, Any]:
        miss = self.nearest_miss() if winner is None else None
        return {
            "job": self.source.job.name,
            "metric": self.source.job.metric,
            "gate": {k: v for k, v in asdict(self.source.job.gate).items() if math.isfinite(v)},  # JSON has no Infinity
            "rows": list(self.rows),
            "target": self.target,
            "clock": self.unmeasured or "CPU time of one thread, rounds interleaved, medians",
            "conditions": machine.conditions(),
            "baseline": self.baseline.to_json() | {"standing": self.standing(self.baseline, winner)},
            "candidates": [e.to_json() | {"standing": self.standing(e, winner)} for e in self.entries],
            "winner": winner.recipe.name if winner else None,
            "speedup": self.speedup(winner) if winner else {},
            "nearest_miss": {"name": miss.recipe.name, "why": miss.reason} if miss else None,
        }


def search(source: Source, recipes: tuple[Recipe, ...], cache: Cache, step: Step, target: str = "cpu") -> Board:
    """Build and judge every recipe and the baseline, then time the survivors side by side, if the target is here.

    Raises:
        JobError: the source model itself can't be built, traced or scored.
        UsageError: a recipe names an engine or an option that doesn't exist.
    """
    job = source.job
    with step("source model") as say:
        baseline = Entry(BASELINE, {"build": Finding(Verdict(True, "built"))}, build(BASELINE, source, cache))
        assert baseline.candidate is not None
        baseline.engine = engines.load("torch_eager", baseline.candidate.model, BASELINE.options)
        reference = _reference(baseline.engine, source)
        score = _score(baseline, source, cache, "validation")
        baseline.findings["invariance"] = judge.invariance(baseline.engine, "fp32", source.calibration)
        baseline.findings["accuracy"] = Finding(
            Verdict(True, f"{job.metric} {score:.4f}"), {"value": score, "drop": 0.0}
        )
        say(f"{job.metric} {score:.4f} on validation")
    entries = [_judge(recipe, source, cache, step, reference, score) for recipe in recipes]
    board = Board(source, baseline, entries, rows_measured(job.sla.rows), target)
    if board.unmeasured:
        return board
    with step("latency, interleaved") as say:
        hits = cache.hits
        _time([baseline, *(e for e in entries if e.alive)], board, cache)
        say("cached" if cache.hits > hits else f"{', '.join(map(str, board.rows))} rows")
    return board


def _reference(engine: Engine, source: Source) -> Arrays:
    """What the source model answers to the calibration rows."""
    job = source.job
    try:
        reference = judge.answers(engine, source.calibration, job.sla.rows)
    except Exception as e:
        wanted = f"a tensor for each of {list(job.outputs)}"
        raise JobError(f"job {job.name}: the model gives no {wanted}: {type(e).__name__}: {e}") from e
    if bad := [name for name, answer in reference.items() if not np.isfinite(answer).all()]:
        raise JobError(f"job {job.name}: the model's own answers to the calibration rows are not finite: {bad}")
    return reference


def rows_measured(rows: int) -> tuple[int, ...]:
    """1, a fifth and the whole of a request: 1, 100, 500."""
    return tuple(sorted({1, max(1, rows // 5), rows}))


def _judge(recipe: Recipe, source: Source, cache: Cache, step: Step, reference: Arrays, baseline: float) -> Entry:
    entry, job = Entry(recipe), source.job
    with step(recipe.name) as say:
        try:
            hits = cache.hits
            entry.candidate = build(recipe, source, cache)
            cached = cache.hits - hits == len(recipe.passes)
            entry.engine = _judging_engine(recipe, entry.candidate)
        except (GraphError, MissingError) as e:  # any other is the job's fault, not the candidate's
            entry.findings["build"] = Finding(Verdict(False, str(e)))
            entry.missing = e if isinstance(e, MissingError) else None
            say(f"rejected: {e}")
            return entry
        entry.findings["build"] = Finding(Verdict(True, "cached" if cached else "built"))
        entry.findings["parity"] = judge.parity(
            entry.engine, recipe.precision, source.calibration, reference, job.sla.rows, retrained=recipe.retrained
        )
        entry.findings["invariance"] = judge.invariance(entry.engine, recipe.precision, source.calibration)
        if entry.alive:
            entry.findings["accuracy"] = judge.accuracy(source, _score(entry, source, cache, "validation"), baseline)
        say(("" if entry.alive else "rejected: ") + (entry.reason or entry.findings["accuracy"].verdict.why))
    return entry


def _judging_engine(recipe: Recipe, candidate: Candidate) -> Engine:
    """The recipe's own; for a GPU's plan, which can't run here, ONNX Runtime on the graph that lies beside it."""
    if recipe.target == "cpu":
        return engines.load(recipe.engine, candidate.model, recipe.options)
    return engines.load("onnxruntime", candidate.model.with_name("model.onnx"), {"threads": 1})


def _score(entry: Entry, source: Source, cache: Cache, split: str) -> float:
    assert entry.engine is not None and entry.candidate is not None
    key = {
        "score": entry.candidate.fingerprint,
        "split": split,
        "evaluation": source.evaluation_sha256,
        "isa": machine.isa(),
    }
    return float(cache.value(key, lambda: source.job.score(entry.engine.infer, split)))  # type: ignore[union-attr]


def test_scores(board: Board, winner: Entry, cache: Cache) -> dict[str, dict[str, float]]:
    """The metric before and after; `test` is looked at once, for the winner."""
    return {
        split: {
            "source": _score(board.baseline, board.source, cache, split),
            "candidate": _score(winner, board.source, cache, split),
        }
        for split in ("validation", "test")
    }


def _time(entries: list[Entry], board: Board, cache: Cache) -> None:
    requests = {rows: board.source.job.real_requests(16, rows) for rows in board.rows}
    key = {
        "latency": [e.candidate.fingerprint for e in entries if e.candidate],
        "requests": [arrays_sha256(request) for pool in requests.values() for request in pool],
        "conditions": machine.conditions(),
        "code": machine.code_sha256("optimize/latency.py", "runtimes/engines"),
    }
    running = {e.recipe.name: e.engine for e in entries if e.engine}

    def compute() -> dict[str, dict[str, list[int]]]:
        times = measure(running, requests)
        return {name: {str(rows): ns.tolist() for rows, ns in found.items()} for name, found in times.items()}

    found = cache.value(key, compute)
    for entry in entries:
        entry.times = {int(rows): np.array(ns, np.int64) for rows, ns in found[entry.recipe.name].items()}
