"""The token SLA: guidellm's report put right and judged; the road from `redline bench` to a guidellm that is a fake."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from redline import artifact
from redline.bench.goals import judge_goal, read_goals
from redline.bench.llm_goals import _GOALS
from redline.bench.stats import MISS
from redline.bench.token_command import described
from redline.bench.tokens import TokenSLA, judge_tokens, measure, read_guidellm, run_guidellm, sla_of
from redline.cli import main
from redline.errors import MeasurementError, MissingError, UsageError
from redline.runtimes import llm_env

SLA = TokenSLA(ttft="500ms", itl="50ms", rate=10, prompt_tokens=64, output_tokens=24)


def row(i: int, *, ttft_ms: float = 100.0, itl_ms: float = 20.0, delay_ms: float = 2.0, tokens: int = 24) -> Any:
    """A request of guidellm 0.8.1's report, as far as it is read; due every 0.1 s."""
    due = 1_795_546_428.0 + i / 10
    return {
        "info": {"timings": {"targeted_start": due, "request_end": due + 1.0}},
        "request_dispatch_delay": delay_ms / 1e3,
        "time_to_first_token_ms": ttft_ms,
        "inter_token_latency_ms": itl_ms,
        "output_tokens": tokens,
    }


def report(successful: list[Any], errored: list[Any] | None = None, incomplete: list[Any] | None = None) -> Any:
    requests = {"successful": successful, "errored": errored or [], "incomplete": incomplete, "total": None}
    return {"benchmarks": [{"requests": requests}]}


def judged(rows: list[Any], **more: Any) -> tuple[str, str]:
    found = judge_tokens(read_guidellm(report(rows, **more), SLA), SLA)
    return found.status, found.why


def test_the_first_token_counts_from_the_schedule() -> None:
    seen = read_guidellm(report([row(1, delay_ms=30.0), row(0)]), SLA)
    assert seen.ttft.latency_ns.tolist() == [102_000_000, 130_000_000]  # in the order they were due
    assert seen.ttft.late_ns.tolist() == [2_000_000, 30_000_000]
    assert seen.itl.latency_ns.tolist() == [20_000_000] * 2
    np.testing.assert_allclose(seen.ttft.due_ns, [0, 100_000_000], atol=1000)
    assert seen.tokens_per_s == pytest.approx(48 / 1.1, rel=1e-3)


def test_what_is_no_whole_answer_is_a_miss_of_both() -> None:
    dead = row(2) | {"time_to_first_token_ms": None, "inter_token_latency_ms": None, "output_tokens": None}
    seen = read_guidellm(report([row(0), row(1, tokens=23)], [dead], [row(3)]), SLA)
    assert seen.ttft.errors == {"cut short": 1, "errored": 1, "incomplete": 1} == seen.itl.errors
    assert seen.ttft.latency_ns.tolist() == [102_000_000, MISS, MISS, MISS]
    assert seen.itl.latency_ns.tolist()[1:] == [MISS] * 3


def test_an_error_is_named_by_its_cause_and_one_that_was_never_scheduled_stretches_nothing() -> None:
    """guidellm leaves targeted_start at 0 where a request failed before it was sent."""
    dead = row(1) | {"time_to_first_token_ms": None, "inter_token_latency_ms": None, "output_tokens": None}
    said = "Server error '503 Service Unavailable' for url 'http://127.0.0.1:1/v1'\nFor more information check: ..."
    unsent = dead | {"info": {"timings": {"targeted_start": 0.0, "request_end": None}, "error": said}}
    left = dead | {"info": {"timings": {"targeted_start": None, "request_end": None}}}
    seen = read_guidellm(report([row(1), row(0)], [unsent], [left]), SLA)
    assert seen.ttft.errors == {"errored: Server error '503 Service Unavailable'": 1}
    assert sorted(seen.ttft.latency_ns.tolist()) == [102_000_000, 102_000_000, MISS]
    assert seen.tokens_per_s == pytest.approx(48 / 1.1, rel=1e-3)


def test_held() -> None:
    status, why = judged([row(i) for i in range(480)])
    assert status == "held"
    assert why == (
        "TTFT p99 102.0 ms [102.0, 102.0] <= 500 ms at 10/s (N 480, 0 errors); "
        "ITL p99 20.0 ms [20.0, 20.0] <= 50 ms at 10/s (N 480, 0 errors)"
    )


@pytest.mark.parametrize(
    ("rows", "status", "text"),
    [
        ([row(i) for i in range(458)], "invalid", "TTFT too few samples: 458 of at least 459"),
        ([row(i, ttft_ms=600.0) for i in range(480)], "broken", "TTFT p99 602.0 ms"),
        ([row(i, itl_ms=51.0) for i in range(480)], "broken", "ITL p99 51.0 ms"),
        # the send is in time, the schedule was not: guidellm's own figure would hold
        ([row(i, ttft_ms=490.0, delay_ms=15.0) for i in range(480)], "broken", "TTFT p99 505.0 ms"),
        ([row(i, delay_ms=30.0) for i in range(480)], "invalid", "TTFT the generator was late: lateness p99 30.00 ms"),
        # late by at most 30 ms, but a second over the line
        ([row(i, ttft_ms=1500.0, delay_ms=30.0) for i in range(480)], "broken", "TTFT p99 1530.0 ms"),
        ([row(i, itl_ms=20.0 + (i >= 480) * 20) for i in range(960)], "invalid", "ITL the run drifts"),
        ([row(i, tokens=24 - (i % 20 == 0)) for i in range(480)], "broken", "24 errors"),
        ([row(i, ttft_ms=600.0, itl_ms=51.0) for i in range(480)], "broken", "; ITL p99 51.0"),
    ],
)
def test_not_held(rows: list[Any], status: str, text: str) -> None:
    found, why = judged(rows)
    assert found == status and text in why, why


def test_a_line_that_broke_beside_busy_neighbors_was_not_measured() -> None:
    table = report([row(i, itl_ms=51.0) for i in range(480)])
    found = judge_tokens(read_guidellm(table, SLA, neighbors=0.3), SLA)
    assert found.status == "invalid" and "other processes used 30% of the server's cores: p99 51.0 ms" in found.why


def test_a_broken_line_outweighs_an_invalid_one() -> None:
    status, why = judged([row(i, itl_ms=51.0, delay_ms=30.0) for i in range(480)])
    assert status == "broken" and why.startswith("ITL") and "late" not in why


@pytest.mark.parametrize(
    "table",
    [
        {},
        {"benchmarks": []},
        {"benchmarks": [{}]},
        report([{"info": {}}]),
        report([row(0) | {"output_tokens": "many"}]),
        report([]),
        report([row(0) | {"time_to_first_token_ms": "soon"}]),
    ],
)
def test_another_report_is_no_measurement(table: Any) -> None:
    with pytest.raises(MeasurementError, match="guidellm's report"):
        read_guidellm(table, SLA)


@pytest.mark.parametrize("bad", [{"rate": 0}, {"rate": float("nan")}, {"ttft": "0s"}, {"output_tokens": 1}])
def test_an_sla_without_sense(bad: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="above zero"):
        TokenSLA(**bad)


def test_an_sla_survives_its_manifest() -> None:
    assert sla_of(SLA.table).table == SLA.table
    assert SLA.seconds_needed() * SLA.rate > 459


_GUIDELLM = """
import json, os, sys
words = sys.argv[1:]
named = {words[i]: words[i + 1] for i in range(len(words) - 1) if words[i].startswith("--")}
count = int(named["--constraint"].rpartition("count=")[2])
if "broken" in named["--backend"]:
    sys.exit("guidellm: no such server")
due = [100.0 + i / 10 for i in range(count)]
rows = [ROW | {"info": {"timings": {"targeted_start": t, "request_end": t + 1}}} for t in due]
table = {"benchmarks": [{"requests": {"successful": rows, "errored": [], "incomplete": []}}], "argv": words,
         "workers": os.environ["GUIDELLM__MAX_WORKER_PROCESSES"]}
open(named["--output"].rpartition("path=")[2], "w").write(json.dumps(table))
"""


@pytest.fixture
def fake_guidellm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("REDLINE_CACHE", str(tmp_path / "cache"))
    home = llm_env.folder("guidellm")
    (home / "bin").mkdir(parents=True)
    (home / ".complete").touch()
    script = home / "fake.py"
    script.write_text(f"ROW = {row(0)!r}\n{_GUIDELLM}")
    python = home / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} {script} "$@"\n')
    python.chmod(0o755)
    return home


@pytest.mark.usefixtures("fake_guidellm")
def test_guidellm_is_asked_for_what_the_sla_says(tmp_path: Path) -> None:
    table = run_guidellm("http://127.0.0.1:1", "m", tmp_path, SLA, 5, None)
    words = table["argv"]
    assert table["workers"] == "1"  # else its arrivals are no Poisson process
    assert words[:3] == ["-m", "guidellm", "run"]
    asked = {words[i]: words[i + 1] for i in range(4, len(words), 2)}
    assert asked["--backend"] == "kind=openai_http,target=http://127.0.0.1:1,model=m"
    assert asked["--profile"] == "kind=poisson,rate=10" and asked["--constraint"] == "kind=max_requests,count=5"
    assert asked["--data"] == "kind=synthetic_text,prompt_tokens=64,output_tokens=24"
    with pytest.raises(MeasurementError, match="exit code 1: guidellm: no such server"):
        run_guidellm("http://broken", "m", tmp_path, SLA, 5, None)


@pytest.mark.usefixtures("fake_guidellm")
def test_a_measurement(tmp_path: Path) -> None:
    found = measure("http://h", "m", tmp_path, SLA, duration_s=48.0, placement="a test")
    assert (found.status, found.samples, found.attempts, found.exit_code) == ("held", 480, 1, 0)
    assert found.ttft_ms == {"p50": 102.0, "p99": 102.0, "low": 102.0, "high": 102.0}
    short = measure("http://h", "m", tmp_path, SLA, duration_s=4.0, placement="a test")
    assert (short.status, short.attempts, short.exit_code) == ("invalid", 1, 4)  # more of the same would not help
    assert json.loads(json.dumps(short.as_dict(), allow_nan=False))["itl_ms"]["high"] is None


def llm_artifact(out: Path) -> Path:
    with artifact.writing(out) as folder:
        (folder / "model").mkdir()
        (folder / "model" / "config.json").write_text("{}")
        (folder / "golden.json").write_text("[]")
        manifest = artifact.Manifest(
            name="tiny", engine="vllm", kind="llm", model="model", inputs=(), outputs=(),
            recipe={"name": "bf16", "passes": []},
            serving={"context": 2048, "max_inflight": 16, "kv_cache_gib": 1},
            batchable=True, batchable_why="", replay_tolerance=0.25, source_tolerance=0.5, max_rows=1, sla=SLA.table,
            proof="unproven", proof_why="a test",
        )  # fmt: skip
        artifact.seal(folder, manifest)
    return out


@pytest.mark.usefixtures("fake_guidellm")
def test_redline_bench_of_a_url(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = str(llm_artifact(tmp_path / "a"))
    assert main(["bench", "http://127.0.0.1:1/", "--requests", made]) == 0
    assert "held: TTFT p99 102.0 ms" in capsys.readouterr().out
    assert main(["bench", "http://127.0.0.1:1", "--requests", made, "--itl", "10ms", "--rate", "20", "--json"]) == 1
    (found,) = json.loads(capsys.readouterr().out)["reports"]
    assert found["why"].startswith("ITL p99 20.0 ms") and found["sla"] == SLA.table | {"itl_ms": 10.0, "rate_rps": 20.0}
    assert main(["bench", "http://127.0.0.1:1", "--requests", made, "--duration", "3s"]) == 4


def test_what_redline_bench_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDLINE_CACHE", str(tmp_path / "empty"))
    made = str(llm_artifact(tmp_path / "a"))
    for options, code, text in (
        (["http://127.0.0.1:1", "--ttft", "1s"], 2, "give its artifact"),
        (["http://127.0.0.1:1", "--requests", made, "--p99", "50ms"], 2, "no --p99, --search, --compare"),
        (["http://127.0.0.1:1", "--requests", made, "--ttft", "1"], 2, "wanted a duration with a unit"),
        (["http://127.0.0.1:1", "--requests", made, "--rate", "0"], 2, "above zero"),
        (["http://127.0.0.1:1", "--requests", made], 3, "-m redline.runtimes.llm_env guidellm"),
        ([made], 3, "-m redline.runtimes.llm_env vllm"),
    ):
        assert main(["bench", *options]) == code, options
        assert text in capsys.readouterr().err


def test_a_tensor_artifact_goes_the_other_road() -> None:
    asked = argparse.Namespace(target="http://127.0.0.1:1", requests=None, ttft=None, itl=None)
    assert described(asked) is None


def test_inspect_reads_an_llm_artifact(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(llm_artifact(tmp_path / "a"))]) == 0
    shown = capsys.readouterr().out
    assert "TTFT p99 <= 500 ms, ITL p99 <= 50 ms at 10/s, 64 + 24 tokens" in shown and "vllm, a supervised" in shown


def test_goals_are_readable() -> None:
    assert {g.metric for g in read_goals(_GOALS)} == {"tokens_ratio", "ttft_extra_ms", "perplexity_rise"}
    assert all(judge_goal(goal, None) == "no result" for goal in read_goals(_GOALS))


def test_environments_that_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDLINE_CACHE", str(tmp_path))
    with pytest.raises(MissingError, match=r"guidellm is not installed: run .*llm_env guidellm"):
        llm_env.python("guidellm")
