"""The verdicts on one candidate that need no clock: parity, batch invariance, accuracy."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from redline.optimize.build import Source
from redline.runtimes.engines import Engine
from redline.tensors import Arrays, largest_gap
from redline.verdict import Verdict

# Largest |answer - source model's| on real inputs, as a share of the answers' scale. The accuracy gate decides what a
# difference is worth; this catches a candidate that computes something else.
PARITY = {"fp32": 1e-4, "bf16": 0.02, "int8": 0.2}
# Largest difference that a row's answer may show between company and solitude.
INVARIANCE = {"fp32": 1e-5, "bf16": 5e-3, "int8": 5e-3}
_TARGETS, _BATCH = 8, 64  # rows watched; rows in the batch that surrounds them


@dataclass(frozen=True, slots=True)
class Finding:
    """A verdict with the figures it rests on, as the leaderboard keeps it."""

    verdict: Verdict
    figures: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        figures = {name: v if np.isfinite(v) else None for name, v in self.figures.items()}  # JSON has no Infinity
        return {"ok": self.verdict.ok, "why": self.verdict.why, **figures}


def difference(answers: Arrays, reference: Arrays) -> float:
    """Largest |a - b| over all outputs; infinite where shapes differ or a value is not finite."""
    worst = 0.0
    for name, want in reference.items():
        have = answers.get(name)
        if have is None or have.shape != want.shape or not (np.isfinite(have).all() and np.isfinite(want).all()):
            return float("inf")
        worst = max(worst, largest_gap(have, want))
    return worst


def scale(reference: Arrays) -> float:
    """What 1.0 means for these answers: their largest finite magnitude, at least 1."""
    return max([1.0, *(float(np.abs(a[np.isfinite(a)]).max(initial=0)) for a in reference.values())])


def blocks(arrays: Arrays, rows: int) -> Iterator[Arrays]:
    for start in range(0, len(next(iter(arrays.values()))), rows):
        yield {name: a[start : start + rows] for name, a in arrays.items()}


def answers(engine: Engine, arrays: Arrays, rows: int) -> Arrays:
    """The engine's answers, asked in requests of `rows` rows."""
    parts = [engine.infer(block) for block in blocks(arrays, rows)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def parity(
    engine: Engine, precision: str, inputs: Arrays, reference: Arrays, rows: int, *, retrained: bool = False
) -> Finding:
    """The same function as the source model, on real inputs, judged by the worst row.

    A retrained model is another function on purpose: its answers must be finite and of the same shape, and the
    difference is written down; what it is worth, the accuracy gate says.
    """
    have = answers(engine, inputs, rows)
    worst, limit = difference(have, reference), PARITY[precision] * scale(reference)
    mean = (
        float(np.mean([np.abs(have[n].astype(np.float64) - want).mean() for n, want in reference.items()]))
        if np.isfinite(worst)
        else worst
    )
    count = len(next(iter(inputs.values())))
    if retrained and np.isfinite(worst):
        limit = worst
    allowed = "retrained: the gate decides" if retrained else f"allowed {limit:.2g}"
    why = f"worst of {count:,} rows differs by {worst:.2g} ({allowed})"
    return Finding(Verdict(worst <= limit, why), {"worst": worst, "mean": mean, "limit": limit})


def invariance(engine: Engine, precision: str, inputs: Arrays) -> Finding:
    """The same row alone, among other rows, and among outliers (float inputs x 10, x 100)."""
    total = len(next(iter(inputs.values())))
    batch = {name: a[np.arange(_BATCH) % total] for name, a in inputs.items()}
    rows = [engine.infer({name: a[i : i + 1] for name, a in batch.items()}) for i in range(_TARGETS)]
    alone = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    found: dict[str, float] = {}
    for label, factor in (("neighbors", 1), ("outliers_x10", 10), ("outliers_x100", 100)):
        company = engine.infer({name: _outliers(a, factor) for name, a in batch.items()})
        found[label] = difference({name: a[:_TARGETS] for name, a in company.items()}, alone)
    worst, limit = max(found.values()), INVARIANCE[precision] * scale(alone)
    if worst <= limit:
        return Finding(Verdict(True, f"a row's answer moves by at most {worst:.2g}"), found | {"worst": worst})
    label = max(found, key=lambda k: found[k]).replace("_x", " x ")
    return Finding(
        Verdict(False, f"not batchable: {label} move a row's answer by {worst:.2g} (allowed {limit:.0e})"),
        found | {"worst": worst},
    )


def _outliers(array: NDArray[Any], factor: int) -> NDArray[Any]:
    if array.dtype.kind != "f":
        return array
    moved = array.copy()
    moved[_TARGETS:] *= factor
    return moved


def accuracy(source: Source, value: float, baseline: float) -> Finding:
    """The job's own gate, on its own metric."""
    gate, name = source.job.gate, source.job.metric
    drop = baseline - value
    figures = {"value": value, "drop": drop}
    if drop > gate.max_drop:
        return Finding(Verdict(False, f"{name} {value:.4f}: drop {drop:.4f} > {gate.max_drop:g}"), figures)
    if value < gate.floor:
        return Finding(Verdict(False, f"{name} {value:.4f} < floor {gate.floor:g}"), figures)
    return Finding(Verdict(True, f"{name} {value:.4f}, drop {drop:+.4f} <= {gate.max_drop:g}"), figures)
