import math
import os
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from virtual import make_run

from redline.bench.goals import Figure, Goal, judge_goal, judge_goals, read_goals
from redline.bench.load import Run, joined
from redline.bench.neighbors import Neighbors
from redline.bench.search import Trial, highest
from redline.bench.verdict import RedLine, glance, judge, until_valid

_LINE = RedLine(p99_ms=50)
_FINE = [10.0] * 1000
_LATE = [0.0] * 980 + [20.0] * 20


@pytest.mark.parametrize(
    ("run", "status", "why"),
    [
        (make_run(_FINE), "held", "<= 50 ms at 100/s (N 1,000, 0 errors)"),
        (make_run([10.0] * 458), "invalid", "too few samples: 458 of at least 459"),
        (make_run([]), "invalid", "too few samples: 0"),
        (make_run([math.inf] * 30), "broken", "30 errors"),
        (make_run([60.0] * 1000), "broken", "> 50 ms"),
        (make_run(([10.0] * 49 + [math.inf]) * 20), "broken", "20 errors"),
        (make_run(_FINE, _LATE), "invalid", "the generator was late"),
        (make_run([60.0] * 1000, _LATE), "invalid", "the generator was late"),
        (make_run([90.0] * 1000, _LATE), "broken", "> 50 ms"),  # late, yet over the line without it
        (make_run([10.0] * 1000 + [40.0] * 1000), "invalid", "drifts"),
        (make_run(list(np.linspace(60, 5000, 2000))), "broken", "> 50 ms"),  # drifts because it is overloaded
        (make_run([10.0] * 991 + [60.0] * 9), "invalid", "undecided"),
    ],
)
def test_what_a_run_proves(run: Run, status: str, why: str) -> None:
    finding = judge(run, _LINE)
    assert (finding.status, why in finding.why) == (status, True), finding.why
    assert bool(finding.verdict) == (status == "held")


def test_an_invalid_run_is_repeated_up_to_three_times_and_a_short_one_is_not() -> None:
    late, fine, short = make_run(_FINE, _LATE), make_run(_FINE), make_run([10.0] * 9)
    for runs, count, status in (
        ([late, late, late, fine], 3, "invalid"),
        ([late, fine], 2, "held"),
        ([short], 1, "invalid"),
    ):
        _, findings, number = until_valid(lambda i, runs=runs: [runs[i]], _LINE, 3)  # type: ignore[misc]
        assert (number, findings[0].status) == (count, status)


def test_rounds_join_in_order() -> None:
    both = joined([make_run([1.0, math.inf]), make_run([math.inf])])
    assert both.errors == {"HTTP 500": 2}
    assert (np.diff(both.due_ns) > 0).all()


def test_a_glance_reads_without_proving() -> None:
    assert glance(make_run([10.0] * 50), _LINE).status == "held"
    assert glance(make_run([60.0] * 50), _LINE).status == "broken"
    assert glance(make_run(_FINE, _LATE), _LINE).status == "invalid"


@pytest.mark.parametrize("true_rate", [3.0, 40.0, 330.0, 5000.0])
@pytest.mark.parametrize("start", [1.0, 250.0, 20_000.0])
def test_search_finds_the_knee(true_rate: float, start: float) -> None:
    def trial(rate: float) -> Trial:
        return Trial(rate, "held" if rate <= true_rate else "broken", 10.0, "")

    found = highest(trial, trial, start_rps=start)
    assert true_rate / 1.06 <= found.rate_rps <= true_rate
    assert found.limit is not None
    assert found.limit.rate_rps > true_rate
    assert len(found.trials) < 22


def test_search_distrusts_lucky_trials_and_may_find_nothing() -> None:
    def trial(rate: float) -> Trial:
        return Trial(rate, "held" if rate <= 400 else "broken", 10.0, "")

    def confirm(rate: float) -> Trial:
        return Trial(rate, "held" if rate <= 300 else "broken", 10.0, "", confirming=True)

    assert 270 <= highest(trial, confirm, start_rps=250).rate_rps <= 300
    never = highest(lambda r: Trial(r, "broken", 99.0, ""), confirm, start_rps=250)
    assert never.rate_rps == 0
    always = highest(
        lambda r: Trial(r, "held", 1.0, ""), lambda r: Trial(r, "held", 1.0, ""), start_rps=250, ceiling_rps=1000
    )
    assert (always.rate_rps, always.limit) == (1000, None)


@pytest.mark.parametrize(
    ("comparison", "figure", "verdict"),
    [
        (">=", Figure(3.1, 3.05, 3.2), "held"),
        (">=", Figure(3.0, 2.95, 3.05), "held"),  # narrow, and not wholly missing
        (">=", Figure(2.9, 2.85, 2.95), "missed"),
        (">=", Figure(2.0, 1.0, 2.9), "no result"),
        (">=", Figure(3.2, 2.5, 4.0), "no result"),
        (">=", Figure(5.0, 4.0, 6.0), "held"),
        ("<=", Figure(2.9, 2.85, 2.95), "held"),
        (">=", None, "no result"),
    ],
)
def test_a_goal_is_missed_only_when_the_whole_interval_misses(
    comparison: str, figure: Figure | None, verdict: str
) -> None:
    assert judge_goal(Goal(name="", metric="", comparison=comparison, value=3.0, why=""), figure) == verdict


@pytest.mark.parametrize(("here", "verdict"), [("avx2", "no result"), ("avx512_vnni", "missed")])
def test_a_goal_for_a_better_cpu_is_neither_held_nor_missed_here(
    here: str, verdict: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("redline.machine.isa", lambda: here)
    goal = Goal(name="share", metric="share", comparison=">=", value=3.0, why="", isa="avx512_vnni")
    assert judge_goal(goal, Figure(2.0, 1.99, 2.01)) == verdict
    judge_goals({"share": Figure(2.0, 1.99, 2.01)}, [goal])
    assert (f"on avx512_vnni, here is {here}" in capsys.readouterr().out) is (verdict == "no result")


def test_goals_are_readable() -> None:
    assert {"rate_ratio", "speedup_500", "auc_drop"} <= {g.metric for g in read_goals()}


def test_a_server_whose_core_was_taken_was_not_measured() -> None:
    slow = make_run([80.0] * 1000)
    busy = replace(slow, neighbors=0.3)
    assert judge(slow, _LINE).status == "broken"
    assert judge(busy, _LINE).status == "invalid"
    assert glance(busy, _LINE).status == "invalid"
    assert "30%" in judge(busy, _LINE).why
    assert judge(replace(make_run(_FINE), neighbors=0.3), _LINE).status == "held"  # held in spite of them


def test_neighbors_sees_a_process_that_is_not_ours() -> None:
    core = min(os.sched_getaffinity(0))
    spin = f"import os, time; os.sched_setaffinity(0, [{core}])\nend = time.monotonic() + 1\n"
    spin += "while time.monotonic() < end: pass"
    neighbors = Neighbors([core])
    # started by a shell that ends at once, so that it is nobody's child of ours
    subprocess.run(["setsid", "--fork", sys.executable, "-c", spin], check=True)
    time.sleep(1.5)
    assert neighbors.share() > 0.2
