"""The whole road on one small artifact: served, asked, judged; by Redline's server and by its rival."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from redline import artifact
from redline.bench import goals
from redline.bench.measuring import Load, Subject, measure
from redline.bench.questions import golden_questions
from redline.bench.serving import serve_artifact
from redline.cli import main
from redline.tensors import Arrays, Tensor

_ROWS = 3


@pytest.fixture
def baseline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    import tiny_source
    import torch

    model, cases = tiny_source.make(), list[tuple[Arrays, Arrays, Arrays]]()
    for rows in (_ROWS, _ROWS, 1):
        x = np.random.default_rng(len(cases)).normal(size=(rows, 4)).astype(np.float32)
        with torch.inference_mode():
            answer = {"score": model(torch.from_numpy(x)).numpy()}
        cases.append(({"x": x}, answer, answer))
    out = tmp_path / "baseline"
    with artifact.writing(out) as folder:
        (folder / "model").mkdir()
        source = {"factory": "tiny_source:make", "inputs": ["x"], "outputs": ["score"]}
        (folder / "model" / "source.json").write_text(json.dumps(source))
        (folder / "evidence").mkdir()
        speedup = {"500": {"ratio": 3.0, "low": 2.95, "high": 3.05}}
        (folder / "evidence" / "leaderboard.json").write_text(json.dumps({"speedup": speedup}))
        artifact.save_golden(folder / "golden.npz", cases)
        manifest = artifact.Manifest(
            name="tiny", engine="torch_eager", model="model/source.json", recipe={"name": "source"},
            inputs=(Tensor(name="x", dtype="float32", shape=("rows", 4)),),
            outputs=(Tensor(name="score", dtype="float32", shape=("rows", 1)),),
            batchable=True, batchable_why="", replay_tolerance=1e-4, source_tolerance=1e-4, max_rows=500,
            sla={"p99_ms": 5000.0, "rate_rps": 200.0, "rows": _ROWS}, proof="unproven", proof_why="a test",
            metric={"name": "auc", "test": {"source": 0.8, "candidate": 0.799}},
        )  # fmt: skip
        artifact.seal(folder, manifest)
    return out


def test_an_artifact_is_served_asked_and_judged(baseline: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", str(baseline), "--engine", "embedded", "--duration", "3s"]) == 0
    assert "held: p99" in capsys.readouterr().out


def test_the_rival_answers_right(baseline: Path) -> None:
    asked = golden_questions(artifact.load(baseline))
    assert len(asked.requests) == 2  # those of the SLA's size
    rival = Path(goals.__file__).parent / "peers" / "kserve_eager.py"
    with serve_artifact(baseline, command=[sys.executable, str(rival)]) as server:
        for protocol in ("http-binary", "v1"):
            subject = Subject(server.http_url, "tiny", asked.requests, asked.expected, asked.tolerance, protocol)
            report = measure(subject, rate_rps=50, duration_s=0.3, p99_ms=5000, load=Load(warmup_s=0.1))
            assert (report.attempts, report.checked, report.errors) == (1, True, {}), report.why


def test_evidence_becomes_figures(baseline: Path) -> None:
    figures = goals.figures_of_evidence(artifact.load(baseline))
    assert figures["speedup_500"] == goals.Figure(3.0, 2.95, 3.05)
    assert figures["auc_before"].value == 0.8
    assert figures["auc_drop"].value == pytest.approx(0.001)
