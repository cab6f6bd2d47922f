"""Verdicts, ranking, the cache, and the order in which contenders are proven."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from redline import artifact
from redline.errors import MeasurementError
from redline.optimize import judge, road
from redline.optimize.build import Cache, Candidate, Source
from redline.optimize.job import Gate
from redline.optimize.judge import Finding
from redline.optimize.passes import FuseKernels, MergeEmbeddings
from redline.optimize.prove import Proof
from redline.optimize.recipe import BASELINE, Recipe, choose
from redline.optimize.search import Board, Entry, search
from redline.tensors import Arrays
from redline.verdict import Verdict

INPUTS: Arrays = {
    "ids": np.arange(100, dtype=np.int64)[:, None] % 7,
    "dense": np.random.default_rng(0).standard_normal((100, 2)).astype(np.float32),
}


class Fake:
    """An engine that answers what a function of the inputs says."""

    def __init__(self, function: Callable[[np.ndarray[Any, Any]], Any]) -> None:
        self._function = function

    def infer(self, inputs: Arrays) -> Arrays:
        return {"score": np.asarray(self._function(inputs["dense"]))}


def honest(x: np.ndarray[Any, Any]) -> Any:
    return np.tanh(x.sum(axis=1))


REFERENCE = Fake(honest).infer(INPUTS)


def not_finite(value: float, at: int) -> Callable[[Any], Any]:
    """One bad answer, in the request that holds this row."""
    return lambda x: np.where((x == INPUTS["dense"][at]).all(axis=1), value, honest(x))


@pytest.mark.parametrize(
    ("function", "precision", "worst"),
    [
        (honest, "fp32", 0.0),
        (lambda x: honest(x) + 5e-5, "fp32", 5e-5),
        (lambda x: honest(x) - 2e-4, "fp32", 2e-4),
        (lambda x: honest(x) + 2e-4, "bf16", 2e-4),
        (lambda x: honest(x) + 0.03, "bf16", 0.03),
        (lambda x: honest(x) + 0.03, "int8", 0.03),
        (lambda x: honest(x) + 0.3, "int8", 0.3),
        (not_finite(np.nan, 99), "int8", np.inf),
        (not_finite(-np.inf, 3), "int8", np.inf),
        (lambda x: honest(x)[:, None], "int8", np.inf),
    ],
)
def test_parity_is_judged_by_the_worst_row(function: Any, precision: str, worst: float) -> None:
    found = judge.parity(Fake(function), precision, INPUTS, REFERENCE, 32)
    assert found.figures["worst"] == pytest.approx(worst, rel=1e-3)
    assert found.verdict.ok is (worst <= {"fp32": 1e-4, "bf16": 0.02, "int8": 0.2}[precision])
    assert "worst of 100 rows differs by" in found.verdict.why
    json.dumps(found.to_json(), allow_nan=False)


def test_parity_does_not_trust_a_reference_that_is_not_finite() -> None:
    broken = {"score": np.where(np.arange(100) == 5, np.nan, REFERENCE["score"])}
    assert not judge.parity(Fake(honest), "int8", INPUTS, broken, 32).verdict


def test_infinite_answers_have_no_scale() -> None:
    endless = Fake(lambda x: np.where(x[:, 0] > 0, np.inf, -np.inf))
    assert not judge.parity(endless, "int8", INPUTS, endless.infer(INPUTS), 32).verdict
    assert not judge.invariance(endless, "int8", INPUTS).verdict


def test_answers_may_be_booleans() -> None:
    flags = Fake(lambda x: x[:, 0] > 0)
    assert judge.parity(flags, "fp32", INPUTS, flags.infer(INPUTS), 32).verdict
    assert not judge.parity(Fake(lambda x: x[:, 0] < 0), "fp32", INPUTS, flags.infer(INPUTS), 32).verdict


def test_parity_is_relative_to_large_answers() -> None:
    large = {"score": REFERENCE["score"] * 1000}
    size = float(np.abs(large["score"]).max())
    found = judge.parity(Fake(lambda x: honest(x) * 1000 + 0.05), "fp32", INPUTS, large, 32)
    assert found.verdict
    assert found.figures["limit"] == pytest.approx(1e-4 * size)


def rounded(x: np.ndarray[Any, Any]) -> Any:
    """As dynamic INT8 does: one scale for the whole batch."""
    scale = np.abs(x).max() / 127
    return honest(np.round(x / scale) * scale)


@pytest.mark.parametrize(
    ("function", "precision", "who"),
    [
        (honest, "fp32", None),
        (lambda x: honest(x) + 1e-3 * len(x) / 64, "int8", None),
        (lambda x: honest(x) + 1e-3 * len(x) / 64, "fp32", "neighbors"),
        (lambda x: honest(x - x.mean(axis=0)), "int8", "outliers x 100"),
        (rounded, "int8", "outliers x 100"),
        (lambda x: honest(x) + (np.abs(x).max() > 15), "fp32", "outliers x 10 "),
        (lambda x: honest(x) * (np.nan if len(x) == 1 else 1), "int8", "neighbors"),  # a deviation of one row
        (lambda x: np.where(np.abs(x).max() > 99, np.nan, honest(x)), "int8", "outliers x 100"),
    ],
)
def test_a_row_must_not_depend_on_its_company(function: Any, precision: str, who: str | None) -> None:
    found = judge.invariance(Fake(function), precision, INPUTS)
    assert found.verdict.ok is (who is None), found.verdict.why
    if who is not None:
        assert found.verdict.why.startswith(f"not batchable: {who} ".replace("  ", " "))
        limit = judge.INVARIANCE[precision]
        assert not found.figures["worst"] <= limit
    json.dumps(found.to_json(), allow_nan=False)


@pytest.mark.parametrize("rows", [1, 3, 9])
def test_few_rows_make_no_company_but_are_still_judged(rows: int) -> None:
    few = {name: a[:rows] for name, a in INPUTS.items()}
    assert judge.invariance(Fake(honest), "fp32", few).verdict
    assert not judge.invariance(Fake(rounded), "int8", few).verdict


@pytest.mark.parametrize(
    ("gate", "value", "why"),
    [
        (Gate(max_drop=0.01), 0.795, "auc 0.7950, drop +0.0050 <= 0.01"),
        (Gate(max_drop=0.01), 0.85, "drop -0.0500 <= 0.01"),
        (Gate(max_drop=0.01), 0.78, "auc 0.7800: drop 0.0200 > 0.01"),
        (Gate(max_drop=0.1, floor=0.79), 0.78, "auc 0.7800 < floor 0.79"),
    ],
)
def test_the_gate_decides_on_the_jobs_own_metric(gate: Gate, value: float, why: str, source: Source) -> None:
    found = judge.accuracy(Source(replace(source.job, gate=gate), source.job_file), value, 0.8)
    assert why in found.verdict.why
    assert found.verdict.ok is ("<=" in why)
    assert found.figures == {"value": value, "drop": pytest.approx(0.8 - value)}


YES = Finding(Verdict(True, "yes"))


def entry(name: str, ms: float, *, passes: int = 1, batchable: bool = True, drop: float | None = None) -> Entry:
    """A line of the leaderboard; `drop`: it broke the gate by this much."""
    made = Entry(Recipe(name=name, passes=(MergeEmbeddings(),) * passes, engine="onnxruntime"))
    made.findings = {"build": YES, "parity": YES, "invariance": Finding(Verdict(batchable, "company moves it"))}
    if drop is not None:
        made.findings["accuracy"] = Finding(Verdict(False, f"drop {drop}"), {"value": 0.8 - drop, "drop": drop})
        return made
    made.findings["accuracy"] = Finding(Verdict(True, "kept"), {"value": 0.8, "drop": 0.0})
    noise = np.random.default_rng(len(name)).uniform(0.97, 1.03, 60)
    made.times = {20: (ms * 1e6 * noise).astype(np.int64)}
    return made


def board(source: Source, *entries: Entry) -> Board:
    baseline = entry("pytorch-eager", 10.0)
    return Board(source, replace(baseline, recipe=BASELINE), list(entries), (20,))


@pytest.mark.parametrize(
    ("entries", "order"),
    [
        ([("slow", 2.0, {}), ("fast", 1.0, {})], ["fast", "slow"]),
        ([("plain", 1.001, {}), ("ornate", 1.0, {"passes": 3})], ["plain", "ornate"]),  # a tie: the simpler
        ([("plain", 1.2, {}), ("ornate", 1.0, {"passes": 3})], ["ornate", "plain"]),  # no tie
        ([("alone", 0.1, {"batchable": False}), ("slow", 2.0, {})], ["slow", "alone"]),
        ([("alone", 0.1, {"batchable": False}), ("broken", 0.1, {"drop": 0.1})], ["alone"]),
        ([("broken", 0.1, {"drop": 0.1})], []),
    ],
)
def test_ranking(entries: list[tuple[str, float, dict[str, Any]]], order: list[str], source: Source) -> None:
    made = board(source, *(entry(name, ms, **more) for name, ms, more in entries))
    assert [e.recipe.name for e in made.ranking()] == order


def test_the_nearest_miss_lost_least(source: Source) -> None:
    unbuilt = Entry(choose("openvino-bf16", ())[0], {"build": Finding(Verdict(False, "no such CPU"))})
    made = board(source, unbuilt, entry("worse", 1, drop=0.3), entry("near", 1, drop=0.1), entry("fine", 1))
    miss = made.nearest_miss()
    assert miss is not None
    assert (miss.recipe.name, miss.reason) == ("near", "drop 0.1")
    assert board(source, unbuilt).nearest_miss() is unbuilt
    assert board(source, entry("fine", 1)).nearest_miss() is None


def test_the_leaderboard_is_plain_json(source: Source) -> None:
    lost = entry("lost", 1)
    lost.findings["parity"] = judge.parity(Fake(not_finite(np.nan, 0)), "fp32", INPUTS, REFERENCE, 32)
    table = json.loads(json.dumps(board(source, lost).to_json(None), allow_nan=False))
    assert table["gate"] == {"max_drop": 0.005}  # a floor of minus infinity has no JSON
    assert table["candidates"][0]["verdicts"]["parity"] == {
        "ok": False,
        "why": "worst of 100 rows differs by inf (allowed 0.0001)",
        "worst": None,
        "mean": None,
        "limit": pytest.approx(1e-4),
    }


def test_a_speed_up_comes_with_its_interval(source: Source) -> None:
    made = board(source, entry("fast", 2.0))
    found = made.speedup(made.entries[0])["20"]
    assert found["low"] < found["ratio"] < found["high"]
    assert found["ratio"] == pytest.approx(5.0, rel=0.05)


class Counter:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> int:
        self.calls += 1
        return self.calls


def test_a_value_is_computed_once_per_key(tmp_path: Path) -> None:
    compute, cache = Counter(), Cache(tmp_path)
    assert [cache.value({"a": 1}, compute) for _ in range(3)] == [1, 1, 1]
    assert cache.hits == 2
    assert cache.value({"a": 2}, compute) == 2
    again = Cache(tmp_path)
    assert again.value({"a": 1}, compute) == 1
    assert (again.hits, compute.calls) == (1, 2)


def test_fresh_redoes_every_step_once(tmp_path: Path) -> None:
    compute = Counter()
    Cache(tmp_path).value({"a": 1}, compute)
    fresh = Cache(tmp_path, fresh=True)
    assert [fresh.value({"a": 1}, compute) for _ in range(3)] == [2, 2, 2]
    assert Cache(tmp_path).value({"a": 1}, compute) == 2


def test_a_step_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def make(folder: Path) -> None:
        (folder / "half").write_text("written")
        raise RuntimeError("halfway")

    with pytest.raises(RuntimeError, match="halfway"):
        Cache(tmp_path).step({"a": 1}, make)
    assert not list(tmp_path.iterdir())


def test_a_killed_steps_scratch_is_no_result(tmp_path: Path) -> None:
    name = Cache(tmp_path).step({"a": 1}, lambda folder: None).name
    (tmp_path / name).rename(tmp_path / ".making.killed")
    compute = Counter()
    assert Cache(tmp_path).value({"a": 1}, compute) == 1


def test_a_value_not_worth_keeping_is_computed_anew(tmp_path: Path) -> None:
    compute, cache = Counter(), Cache(tmp_path)
    assert [cache.value({"a": 1}, compute, keep=lambda v: v > 1) for _ in range(3)] == [1, 2, 2]


def proof(status: str, rate: float) -> Proof:
    """What a load test would have found."""
    found = {
        "highest_rate": rate,
        "limit_why": "p99 above the line",
        "trials": [{"rate_rps": rate, "p99_ms": 49.0}, {"rate_rps": 2 * rate, "p99_ms": None}],
        "at_rate": {"curve": [[0.5, 20.0], [0.99, 49.0]]},
    }
    return Proof({
        "sla": {"p99_ms": 50.0, "rate_rps": 50.0, "rows": 20},
        "served_by": "embedded",
        "verdict": {"status": status, "why": f"{status} at {rate:g}/s"},
        "engines": {"embedded": found},
        "baseline": found,
        "conditions": {},
    })  # fmt: skip


@pytest.mark.parametrize(
    ("batchable", "other", "winner", "code", "said", "proven"),
    [
        ("held", None, "onnxruntime-fp32", 0, "held", ["onnxruntime-fp32"]),
        ("broken", "held", "onnxruntime-int8-dynamic", 0, "held", ["onnxruntime-fp32", "onnxruntime-int8-dynamic"]),
        ("broken", "broken", "onnxruntime-fp32", 1, "broken", ["onnxruntime-fp32", "onnxruntime-int8-dynamic"]),
        ("invalid", "held", "onnxruntime-fp32", 4, "unproven", ["onnxruntime-fp32"]),
    ],
)
def test_contenders_are_proven_until_one_holds(
    batchable: str, other: str | None, winner: str, code: int, said: str, proven: list[str],
    source: Source, steps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    asked = []

    def prove(path: Path, baseline: Path | None, say: Callable[[str], None], automatic: Path | None) -> Proof:
        manifest = artifact.load(path).manifest  # a whole artifact, as `serve` needs it
        assert baseline is not None
        assert automatic is None  # the contenders are
        assert artifact.load(baseline).manifest.engine == "torch_eager"
        asked.append(manifest.recipe["name"])
        return proof(batchable if manifest.batchable else str(other), 40.0 if manifest.batchable else 30.0)

    monkeypatch.setattr(road, "prove", prove)
    made = found_board(source, steps)
    monkeypatch.setattr(road, "search", lambda *_: made)
    monkeypatch.setattr(road.machine, "code_sha256", lambda *_: "the same code")  # whoever edits it meanwhile
    walker = road.Road(source, Cache(tmp_path / "proofs"), step, "redline optimize job.py")
    outcome = walker.walk((), with_proof=True)
    assert (asked, outcome.exit_code) == (proven, code)
    assert outcome.winner is not None
    assert outcome.winner.recipe.name == winner
    with artifact.writing(tmp_path / "out") as folder:
        walker.write(folder, outcome)
    written = artifact.load(tmp_path / "out")
    assert (written.manifest.proof, written.manifest.recipe["name"]) == (said, winner)
    assert f"{40 if winner == 'onnxruntime-fp32' else 30}/s" in written.manifest.proof_why
    assert written.evidence("sla")["engines"]["embedded"]["highest_rate"] > 0
    assert "highest rate" in (tmp_path / "out" / "report.html").read_text()
    walker.walk((), with_proof=True)
    assert asked == proven * (2 if batchable == "invalid" else 1)  # a valid measurement is kept, an invalid one never


def test_where_the_expert_track_wins_the_best_automatic_candidate_is_loaded_too(
    source: Source, steps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = found_board(source, steps)
    fast = made.entries[0]
    expert = replace(fast, recipe=replace(fast.recipe, name="mine", track="expert"))
    expert.times = {rows: ns // 3 for rows, ns in fast.times.items()}
    made.entries.append(expert)

    def prove(path: Path, baseline: Path | None, say: Callable[[str], None], automatic: Path | None) -> Proof:
        assert automatic is not None
        names = [artifact.load(p).manifest.recipe["name"] for p in (path, automatic)]
        assert names == ["mine", "onnxruntime-fp32"]  # int8-dynamic is not batchable: no rival to what is
        found = proof("held", 40.0).table
        return Proof(found | {"automatic": {"recipe": names[1], "highest_rate": 21.0, "limit_why": "", "trials": []}})

    monkeypatch.setattr(road, "prove", prove)
    monkeypatch.setattr(road, "search", lambda *_: made)
    walker = road.Road(source, Cache(tmp_path / "proofs"), step, "redline optimize job.py")
    outcome = walker.walk((), with_proof=True)
    assert outcome.winner is expert
    with artifact.writing(tmp_path / "out") as folder:
        walker.write(folder, outcome)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "best automatic, onnxruntime-fp32" in page
    assert "best automatic 21/s" in page


def test_what_hand_tuning_gained_undoes_no_verdict(
    source: Source, steps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = found_board(source, steps)
    fast = made.entries[0]
    recipe = replace(fast.recipe, name="mine", track="expert", passes=(*fast.recipe.passes, FuseKernels()))
    expert = replace(fast, recipe=recipe)
    expert.times = {rows: ns // 3 for rows, ns in fast.times.items()}
    made.entries.append(expert)
    found: list[Any] = [MeasurementError("a part is off"), [{"operator": "Fused", "rows": {"20": {"ratio": 2.5}}}]]

    def gains(*_: object) -> Any:
        if isinstance(one := found.pop(0), Exception):
            raise one
        return one

    monkeypatch.setattr(road, "gains", gains)
    monkeypatch.setattr(road, "search", lambda *_: made)
    walker = road.Road(source, Cache(tmp_path / "steps"), step, "redline optimize job.py")
    said = [walker.walk((), with_proof=False).hand_tuning for _ in range(3)]
    assert said == [[], *[[{"operator": "Fused", "rows": {"20": {"ratio": 2.5}}}]] * 2]  # only what was told is kept


class step:  # noqa: N801
    """A progress that shows nothing."""

    def __init__(self, label: str) -> None:
        pass

    def __enter__(self) -> Callable[[str], None]:
        return lambda text: None

    def __exit__(self, *_: object) -> None:
        pass


def found_board(source: Source, steps: Path) -> Board:
    """A real search of two recipes, one of them not batchable."""
    recipes = choose("onnxruntime-fp32,onnxruntime-int8-dynamic", ())
    made = search(source, recipes, Cache(steps / "steps"), step)
    assert [e.batchable for e in made.entries] == [True, False]
    assert all(isinstance(e.candidate, Candidate) for e in made.entries)
    plain, dynamic = made.entries
    # Without VNNI its parity breaks, too (ONNX Runtime saturates there); what is asked here is the order.
    dynamic.findings = plain.findings | {"invariance": dynamic.findings["invariance"]}
    dynamic.times = dynamic.times or plain.times
    return made
