"""The whole road of a language job, over a fake vLLM and a fake guidellm in environments of their own."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", reason="needs `pip install 'redline[llm]'`")
from test_llm_quantize import CONFIG, llama  # noqa: F401

from redline import artifact
from redline.cli import main
from redline.runtimes import llm_env

FAKE = Path(__file__).parents[1] / "runtimes" / "fake_vllm.py"
_JOB = """
from pathlib import Path
from redline.bench.tokens import TokenSLA
from redline.optimize.llm_job import LanguageJob

job = LanguageJob(
    name="tiny", model=lambda: Path("MODEL"), text=lambda split: "a b c d e f g h " * 100, context=600, streams=4,
    sla=TokenSLA(ttft="500ms", itl="50ms", rate=RATE, prompt_tokens=8, output_tokens=4), max_rise=RISE,
)
"""
_GUIDELLM = """
import json, sys, urllib.request
words = sys.argv[1:]
named = {words[i]: words[i + 1] for i in range(len(words) - 1) if words[i].startswith("--")}
url = named["--backend"].partition("target=")[2].partition(",")[0]
assert urllib.request.urlopen(url + "/health").status == 200
ask = {"model": "tiny", "prompt": "hello", "max_tokens": 4}
request = urllib.request.Request(url + "/v1/completions", json.dumps(ask).encode())
assert json.load(urllib.request.urlopen(request))["choices"]
row = {"request_dispatch_delay": 0.0, "time_to_first_token_ms": 100.0, "inter_token_latency_ms": 20.0}
row["output_tokens"] = 4
due = [100.0 + i for i in range(int(named["--constraint"].rpartition("count=")[2]))]
rows = [row | {"info": {"timings": {"targeted_start": t, "request_end": t + 1}}} for t in due]
table = {"benchmarks": [{"requests": {"successful": rows, "errored": [], "incomplete": []}}]}
open(named["--output"].rpartition("path=")[2], "w").write(json.dumps(table))
"""


@pytest.fixture
def home(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:  # noqa: F811
    """A job beside its model, and a cache with both environments."""
    monkeypatch.setenv("REDLINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FAKE_VLLM_PID", str(tmp_path / "pid"))
    (tmp_path / "guidellm.py").write_text(_GUIDELLM)
    for name, script in (("vllm", FAKE), ("guidellm", tmp_path / "guidellm.py")):
        folder = llm_env.folder(name)
        (folder / "bin").mkdir(parents=True)
        (folder / ".complete").touch()
        (folder / "bin" / "python").write_text(f'#!/bin/sh\nexec {sys.executable} {script} "$@"\n')
        (folder / "bin" / "python").chmod(0o755)
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.safetensors").write_bytes((llama / "model.safetensors").read_bytes())
    words = {word: i for i, word in enumerate(["[UNK]", *"abcdefgh"])}
    tokenizer = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None}
    tokenizer |= {"pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None}
    tokenizer["model"] = {"type": "WordLevel", "vocab": words, "unk_token": "[UNK]"}
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    return tmp_path


def optimize(home: Path, *options: str, rise: float = 0.05, rate: float = 10.0, **config: Any) -> int:
    (home / "model" / "config.json").write_text(json.dumps(CONFIG | {"pause_s": 0.05} | config))
    text = _JOB.replace("MODEL", str(home / "model")).replace("RISE", str(rise)).replace("RATE", str(rate))
    (home / "job.py").write_text(text)
    return main(["optimize", str(home / "job.py"), "--out", str(home / "out"), *options])


@pytest.mark.slow
def test_the_faster_candidate_is_chosen_proven_and_served(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert optimize(home) == 0
    shown = capsys.readouterr().out
    assert "vllm-w8a8-smoothquant" in shown and "chosen" in shown and "held: TTFT p99 100.0 ms" in shown
    made = artifact.load(home / "out")
    m = made.manifest
    assert (m.kind, m.engine, m.proof, m.recipe["name"]) == ("llm", "vllm", "held", "vllm-w8a8-smoothquant")
    assert m.serving == {"context": 600, "max_inflight": 4, "kv_cache_gib": 1}
    assert m.metric["test"]["candidate"] > m.metric["test"]["source"] and len(made.golden()) == 1
    board, sla = made.evidence("leaderboard"), made.evidence("sla")
    assert [c["alive"] for c in board["candidates"]] == [True, True] and board["speedup"]["4"]["low"] > 1
    assert sla["status"] == "held" and sla["samples"] == 482
    assert "compressed-tensors" in (home / "out" / "model" / "config.json").read_text()
    assert "held" in (home / "out" / "report.html").read_text()
    assert main(["inspect", str(home / "out"), "--replay"]) == 0
    assert "1 golden requests replayed" in capsys.readouterr().out


@pytest.mark.slow
def test_what_loses_too_much_is_rejected_and_a_short_proof_is_none(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert optimize(home, "--no-prove", rise=0.0001, loss=1.05) == 0
    shown = capsys.readouterr().out
    assert "rejected" in shown, shown
    assert "> 0.01%" in shown, shown
    m = artifact.load(home / "out").manifest
    assert (m.recipe["name"], m.proof, m.proof_why) == ("vllm-bf16", "unproven", "not asked")


@pytest.mark.parametrize(
    ("options", "code", "text"),
    [
        (["--p99", "50ms"], 2, "--p99: not for a language job"),
        (["--max-drop", "1"], 2, "--max-drop: not for a language job"),
        (["--recipes", "vllm-bf16"], 2, "tries all of its candidates"),
        (["--rate", "-1"], 2, "above zero"),
    ],
)
def test_options(home: Path, capsys: pytest.CaptureFixture[str], options: list[str], code: int, text: str) -> None:
    assert optimize(home, *options) == code
    assert text in capsys.readouterr().err


def test_what_is_missing(home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "model" / "model.safetensors").unlink()
    assert optimize(home) == 2
    assert "is not a model folder: no model.safetensors" in capsys.readouterr().err
    assert not (home / "out").exists()
    monkeypatch.setenv("REDLINE_CACHE", str(home / "empty"))
    assert optimize(home) == 3
    assert "-m redline.runtimes.llm_env vllm" in capsys.readouterr().err
